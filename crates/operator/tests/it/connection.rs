//! Azure DevOps as it fails, and as it differs.

use std::time::Duration;

use api::RunnerPool;
use azure_devops_simulator::world::{
    AgentVersion, BusyTypeKey, CapabilityPrecedence, Fault, FaultKind, JobRequestOrder,
    MatchedAgents, Outcome, PatSpec, Scope, Switches,
};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::bed::{
    Bed, ORGANIZATION, POOL, agent_names, control_plane, jobs, long_job, names, within,
};

const SHORT: Duration = Duration::from_millis(200);

/// A RunnerPool with one busy and one idle agent, both warm.
async fn at_work(bed: &Bed) -> i64 {
    bed.create("web", json!({ "minAgents": 2, "maxAgents": 4 }))
        .await;
    bed.online(2).await;
    let job = bed.queue(long_job()).await[0];
    bed.status_when("web", "one is busy, one idle", |status| {
        let count = |wanted: &str| {
            status
                .agents
                .iter()
                .filter(|agent| agent.status == wanted)
                .count()
        };
        (count("Busy"), count("Idle")) == (1, 1)
    })
    .await;
    job
}

/// Nothing was removed or disabled, and the job goes on.
async fn unharmed(bed: &Bed, job: i64) {
    assert_eq!(names(&bed.pods().await), ["web-agent-0", "web-agent-1"]);
    let agents = bed.agents().await;
    assert_eq!(agent_names(&agents), ["web-agent-0", "web-agent-1"]);
    assert!(agents.iter().all(|agent| agent.enabled), "{agents:#?}");
    let jobs = bed.jobs().await;
    assert!(
        jobs.iter()
            .any(|seen| seen.id == job && seen.outcome == Outcome::Running),
        "{jobs:#?}"
    );
}

/// The operator works again without a restart.
async fn recovers(bed: &Bed) {
    bed.condition_when("web", "Connected", "True", "Answered")
        .await;
    let job = bed.queue(jobs(1, SHORT)).await[0];
    bed.jobs_when("a new job runs", |jobs| {
        jobs.iter()
            .any(|seen| seen.id == job && seen.outcome == Outcome::Succeeded)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_that_is_down_is_unknown_not_empty() {
    let bed = Bed::start().await;
    let job = at_work(&bed).await;
    let identity = Some("pat:default".to_owned());
    bed.control
        .add_fault(&Fault {
            identity,
            ..Fault::new(FaultKind::DroppedConnection)
        })
        .await
        .unwrap();
    let status = bed
        .condition_when("web", "Connected", "False", "Unreachable")
        .await;
    assert_eq!(
        serde_json::to_value(status.connection_status).unwrap(),
        json!("Disconnected")
    );
    assert_eq!(status.agents.len(), 2, "what is not known is as it was");
    unharmed(&bed, job).await;
    // Warm agents are still kept up: the idle one vanishes and is replaced.
    let idle = status
        .agents
        .iter()
        .find(|agent| agent.status == "Idle")
        .unwrap()
        .name
        .clone();
    assert!(bed.node.vanish(&bed.namespace, &idle));
    bed.pods_when("it is replaced", |pods| {
        pods.len() == 2 && names(pods).contains(&"web-agent-2".to_owned())
    })
    .await;
    bed.control.clear_faults().await.unwrap();
    recovers(&bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_page_is_a_refused_token_and_harms_nothing() {
    let bed = Bed::start().await;
    let job = at_work(&bed).await;
    let identity = Some("pat:default".to_owned());
    bed.control
        .add_fault(&Fault {
            identity,
            ..Fault::new(FaultKind::SignInPage)
        })
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "False", "Unauthorized")
        .await;
    unharmed(&bed, job).await;
    bed.control.clear_faults().await.unwrap();
    recovers(&bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_come_back_empty_or_cut_harm_nothing() {
    let bed = Bed::start().await;
    let job = at_work(&bed).await;
    bed.control
        .add_fault(&Fault::new(FaultKind::EmptyList).on("Agents.List"))
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "False", "Unreachable")
        .await;
    unharmed(&bed, job).await;
    bed.control.clear_faults().await.unwrap();
    bed.condition_when("web", "Connected", "True", "Answered")
        .await;
    bed.control
        .add_fault(&Fault::new(FaultKind::TruncatedBody).on("JobRequests.List"))
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "False", "Unreachable")
        .await;
    unharmed(&bed, job).await;
    bed.control.clear_faults().await.unwrap();
    recovers(&bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_registration_is_back_with_the_look_after_somebody_deleted_it() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let agents = bed.agents_when("there is a placeholder", |agents| agents.len() == 1);
    let deleted = agents.await.remove(0);
    bed.control.reset_requests().await.unwrap();
    bed.control
        .delete_agent(ORGANIZATION, POOL, &deleted.name)
        .await
        .unwrap();
    let back = bed
        .agents_when("another one is there", |agents| {
            agents.iter().any(|agent| agent.id != deleted.id)
        })
        .await;
    assert_eq!(back[0].name, deleted.name);
    let log = bed.control.request_log().await.unwrap();
    let looks = log.iter().filter(|entry| entry.operation == "Agents.List");
    // One may have been on its way.
    assert!(looks.count() <= 2, "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_organization_is_left_alone() {
    let bed = Bed::start().await;
    let job = at_work(&bed).await;
    let identity = Some("pat:default".to_owned());
    let kind = FaultKind::TooManyRequests { retry_after: 12 };
    bed.control
        .add_fault(&Fault {
            identity,
            ..Fault::new(kind)
        })
        .await
        .unwrap();
    let status = bed
        .condition_when("web", "Connected", "False", "Throttled")
        .await;
    assert_eq!(
        serde_json::to_value(status.connection_status).unwrap(),
        json!("Throttled")
    );
    bed.control.clear_faults().await.unwrap();
    bed.control.reset_requests().await.unwrap();
    let told = jiff::Timestamp::now();
    unharmed(&bed, job).await;
    recovers(&bed).await;
    let log = bed.control.request_log().await.unwrap();
    let first = log
        .iter()
        .find(|entry| entry.identity == "pat:default" && entry.operation.ends_with(".List"))
        .unwrap();
    let waited = first.time.duration_since(told);
    assert!(
        waited >= jiff::SignedDuration::from_secs(5),
        "it asked again after {waited}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_a_condition_and_a_right_one_takes_effect_without_a_restart() {
    let mut bed = Bed::make().await;
    bed.secret("pat-token", &[("token", "wrong")]).await;
    bed.start_operator().await;
    bed.create("web", json!({ "minAgents": 1 })).await;
    let status = bed
        .condition_when("web", "Connected", "False", "Unauthorized")
        .await;
    assert_eq!(
        serde_json::to_value(status.connection_status).unwrap(),
        json!("Unauthorized")
    );
    assert!(
        status
            .last_error
            .is_some_and(|error| error.contains("Secret") && !error.contains("wrong\""))
    );
    assert!(
        bed.pods().await.is_empty(),
        "no Pod is made that could not register"
    );
    // With the line end that `echo` leaves.
    bed.secret("pat-token", &[("token", &format!("{}\n", bed.token))])
        .await;
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    bed.pods_when("the warm agent comes", |pods| pods.len() == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_rotated_without_harm() {
    let bed = Bed::start().await;
    let job = at_work(&bed).await;
    let spec = PatSpec {
        name: "second".into(),
        ..PatSpec::default()
    };
    let second = bed.control.create_pat(ORGANIZATION, &spec).await.unwrap();
    bed.secret("pat-token", &[("token", &second)]).await;
    bed.control
        .revoke_pat(ORGANIZATION, &bed.token)
        .await
        .unwrap();
    within("the second token is used", async {
        loop {
            if bed
                .control
                .requests(Some(ORGANIZATION))
                .await
                .unwrap()
                .of("pat:second", "JobRequests.List")
                >= 2
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    unharmed(&bed, job).await;
    recovers(&bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_missing_or_lacks_the_key_is_named() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "patSecretName": "later", "minAgents": 1 }))
        .await;
    let status = bed
        .condition_when("web", "Connected", "False", "SecretUnusable")
        .await;
    assert!(status.last_error.unwrap().contains("\"later\""));
    bed.secret("later", &[("pat", &bed.token)]).await;
    bed.status_when("web", "the key is named", |status| {
        status
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("no key \"token\""))
    })
    .await;
    bed.secret("later", &[("token", &bed.token)]).await;
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    bed.pods_when("the warm agent comes", |pods| pods.len() == 1)
        .await;
    // Without a side effect there is nothing to wait for.
    bed.create("other", json!({ "patSecretName": "never" }))
        .await;
    bed.condition_when("other", "Connected", "False", "SecretUnusable")
        .await;
    bed.delete("other").await;
    bed.gone("other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_agent_pool_is_a_condition_and_is_found_when_it_comes_back() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "pool": "Another Pool", "minAgents": 1 }))
        .await;
    let status = bed
        .condition_when("web", "Connected", "False", "PoolNotFound")
        .await;
    assert_eq!(
        serde_json::to_value(status.connection_status).unwrap(),
        json!("PoolNotFound")
    );
    assert!(bed.pods().await.is_empty());
    bed.control
        .create_pool(ORGANIZATION, "another pool")
        .await
        .unwrap();
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    bed.pods_when("the warm agent comes", |pods| pods.len() == 1)
        .await;
    // Gone and made anew: the pool has another id.
    bed.control
        .delete_pool(ORGANIZATION, "another pool")
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "False", "PoolNotFound")
        .await;
    bed.control
        .create_pool(ORGANIZATION, "ANOTHER pool")
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "True", "Answered")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slow_organization_delays_nobody() {
    let bed = Bed::start().await;
    bed.control.create_organization("slow").await.unwrap();
    bed.control.create_pool("slow", POOL).await.unwrap();
    let slow = bed
        .control
        .create_pat("slow", &PatSpec::default())
        .await
        .unwrap();
    bed.secret("slow-token", &[("token", &slow)]).await;
    let latency = Fault {
        organization: Some("slow".into()),
        ..Fault::new(FaultKind::Latency {
            delay: Duration::from_secs(30),
        })
    };
    bed.control.add_fault(&latency).await.unwrap();
    let url = format!("{}slow", bed.simulator.url());
    bed.create(
        "slow",
        json!({ "azDoUrl": url, "patSecretName": "slow-token", "minAgents": 1 }),
    )
    .await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    bed.queue(jobs(2, SHORT)).await;
    bed.all_succeed().await;
    let requests = bed.control.requests(Some("slow")).await.unwrap();
    assert_eq!(
        requests.of("pat:default", "JobRequests.List"),
        0,
        "the slow one still waits for its first answer"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_while_nothing_changes() {
    let mut bed = Bed::make().await;
    bed.create("web", json!({ "minAgents": 2 })).await;
    // What the former operator left in the status of another one, and another tool's condition: fields that we leave out.
    bed.create("former", json!({})).await;
    let status = json!({ "status": {
        "currentAgentIndex": 7, "queuedJobs": 3, "lastError": "no PAT", "conditions": [{
            "type": "Error", "status": "True", "reason": "NoPat", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    } });
    let pools: Api<RunnerPool> = bed.api();
    pools
        .patch_status("former", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    bed.start_operator().await;
    bed.online(2).await;
    bed.status_when("web", "two idle agents", |status| {
        status
            .agents
            .iter()
            .filter(|agent| agent.status == "Idle")
            .count()
            == 2
            && status
                .agent_indexes
                .values()
                .all(|index| index.status == "Idle")
    })
    .await;
    // Two looks for what follows from the last change, then twelve in which nothing is: a minute.
    bed.look_again(2).await;
    let calls = || {
        let log = futures::executor::block_on(control_plane())
            .audit_log()
            .unwrap();
        let user = bed.account.user();
        let ours = log
            .into_iter()
            .filter(|event| event.user == user && event.namespace == bed.namespace);
        // A watch ends and begins anew every few minutes, and the lease is renewed, whatever happens.
        ours.filter(|event| event.verb != "watch" && event.resource != "leases")
            .collect::<Vec<_>>()
    };
    let before = calls().len();
    bed.look_again(12).await;
    let calls = calls();
    assert_eq!(
        calls[before..],
        [],
        "requests to the API server in a quiet minute"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_whichever_way_the_unverified_parts_of_the_protocol_turn_out() {
    let defaults = Switches::default();
    let refused = [(409, BusyTypeKey::default()), (400, BusyTypeKey::default())];
    let variants = [
        Switches {
            patch_needs_name: true,
            preview_flag_required: true,
            suppress_redirect: false,
            ..defaults.clone()
        },
        Switches {
            agent_version: AgentVersion::Capability,
            minimum_version_inclusive: false,
            capability_precedence: CapabilityPrecedence::User,
            matched_agents: MatchedAgents::Frozen,
            ..defaults.clone()
        },
        Switches {
            job_request_order: JobRequestOrder::NewestFirst,
            unknown_agent_status: 400,
            replace_ends_session: false,
            ..defaults.clone()
        },
    ];
    let busy = refused.map(|(busy_delete_status, busy_delete_type_key)| Switches {
        busy_delete_status,
        busy_delete_type_key,
        assigned_job_blocks_delete: false,
        ..defaults.clone()
    });
    let story = |switches: Switches| async move {
        let bed = Bed::start().await;
        bed.control.set_switches(&switches).await.unwrap();
        bed.create("web", json!({ "minAgents": 1, "maxAgents": 3 }))
            .await;
        bed.ready("web").await;
        let spec = azure_devops_simulator::world::JobSpec {
            demands: vec!["Agent.Version -gtVersion 2.182.1".into()],
            ..jobs(4, SHORT)
        };
        bed.queue(spec).await;
        bed.all_succeed().await;
        bed.delete("web").await;
        bed.gone("web").await;
        assert!(bed.agents().await.is_empty(), "{switches:#?}");
        let pods = bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
        assert!(pods.iter().all(|pod| pod.name_any().is_empty()));
    };
    futures::future::join_all(variants.into_iter().chain(busy).map(story)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_too_few_rights_is_named_and_a_better_one_is_taken_without_a_restart() {
    let mut bed = Bed::make().await;
    let reader = PatSpec {
        name: "reader".into(),
        scopes: vec![Scope::Read],
        ..PatSpec::default()
    };
    let reader = bed.control.create_pat(ORGANIZATION, &reader).await.unwrap();
    bed.secret("pat-token", &[("token", &reader)]).await;
    bed.start_operator().await;
    bed.create("web", json!({})).await;
    let status = bed
        .condition_when("web", "Degraded", "True", "Unauthorized")
        .await;
    assert!(
        status
            .last_error
            .unwrap()
            .contains("Agent Pools (read, manage)")
    );
    bed.secret("pat-token", &[("token", &bed.token)]).await;
    bed.condition_when("web", "Degraded", "False", "AsExpected")
        .await;
    bed.ready("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_pool_is_found_without_regard_to_case_even_where_the_service_has_regard_to_it() {
    let bed = Bed::start().await;
    let switches = Switches {
        pool_name_ignores_case: false,
        ..Switches::default()
    };
    bed.control.set_switches(&switches).await.unwrap();
    bed.create("web", json!({ "pool": POOL.to_uppercase() }))
        .await;
    bed.condition_when("web", "Connected", "True", "Answered")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_makes_jobs_wait_and_the_api_server_is_not_pestered() {
    let bed = Bed::start().await;
    bed.quota(json!({ "pods": "1" })).await;
    bed.create("web", json!({ "maxAgents": 100 })).await;
    bed.ready("web").await;
    let refusals = || {
        let log = futures::executor::block_on(control_plane())
            .audit_log()
            .unwrap();
        let user = bed.account.user();
        let ours = log
            .into_iter()
            .filter(|event| event.user == user && event.namespace == bed.namespace);
        ours.filter(|event| event.resource == "pods" && event.verb == "create" && event.code == 403)
            .count()
    };
    let long = bed.queue(long_job()).await[0];
    bed.queue(jobs(60, SHORT)).await;
    let status = bed
        .condition_when("web", "ScalingLimited", "True", "QuotaExceeded")
        .await;
    let message = |type_: &str| {
        let mut conditions = status.conditions.iter();
        let condition = conditions.find(|condition| condition.type_ == type_);
        condition.map(|condition| (condition.status.clone(), condition.message.clone()))
    };
    let (_, limited) = message("ScalingLimited").unwrap();
    assert!(limited.contains("exceeded quota: few"), "{limited}");
    assert_eq!(message("Degraded").unwrap().0, "False", "jobs only wait");
    let before = refusals();
    bed.look_again(4).await;
    let refused = refusals() - before;
    // Each pass asks for no more than are under way when the first refusal arrives.
    assert!(refused <= 32 * 12, "{refused} refused Pods in four looks");
    let seen = bed.jobs().await;
    assert!(seen.iter().all(|job| matches!(
        job.outcome,
        Outcome::Queued | Outcome::Assigned | Outcome::Running | Outcome::Succeeded
    )));
    assert!(seen.iter().any(|job| job.id == long));
    bed.api::<ResourceQuota>()
        .delete("few", &DeleteParams::default())
        .await
        .unwrap();
    bed.jobs_when("the others run", |jobs| {
        jobs.iter()
            .filter(|job| job.outcome == Outcome::Succeeded)
            .count()
            == 60
    })
    .await;
    bed.condition_when("web", "ScalingLimited", "False", "AsExpected")
        .await;
}
