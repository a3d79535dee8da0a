//! What happens to agents when the RunnerPool, the operator or their Pods change.

use std::time::Duration;

use api::RunnerPool;
use azure_devops_simulator::world::{Fault, FaultKind, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::bed::{Bed, ORGANIZATION, POOL, agent_names, jobs, long_job, names};

const SHORT: Duration = Duration::from_millis(200);

fn image(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.containers[0].image.as_deref())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_spec_replaces_idle_agents_first_and_busy_ones_after_their_job() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 2, "maxAgents": 4 }))
        .await;
    bed.online(2).await;
    let running = bed.run(long_job()).await;
    let (job, busy) = (running.id, running.agent.unwrap());
    bed.change("web", json!({ "image": "agent:new" })).await;
    let pods = bed
        .pods_when("two new agents beside the busy one", |pods| {
            pods.len() == 3 && pods.iter().filter(|pod| image(pod) == "agent:new").count() == 2
        })
        .await;
    let old: Vec<_> = pods
        .iter()
        .filter(|pod| image(pod) == "agent:base")
        .map(kube::ResourceExt::name_any)
        .collect();
    assert_eq!(old, std::slice::from_ref(&busy));
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Running);
    bed.control.cancel_job(ORGANIZATION, job).await.unwrap();
    bed.pods_when("the old one goes after its job", |pods| {
        pods.iter().all(|pod| pod.name_any() != busy)
    })
    .await;
    bed.agents_when("with its registration", |agents| {
        agents.iter().all(|agent| agent.name != busy)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_lets_busy_agents_finish_and_leaves_nothing() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 2 })).await;
    bed.online(2).await;
    let running = bed.run(long_job()).await;
    let (job, busy) = (running.id, running.agent.unwrap());
    bed.delete("web").await;
    bed.pods_when("the idle agent goes", |pods| names(pods) == [busy.clone()])
        .await;
    bed.agents_when("the busy one gets no other job", |agents| {
        agents
            .iter()
            .any(|agent| agent.name == busy && !agent.enabled)
    })
    .await;
    bed.condition_when("web", "Ready", "False", "Deleting")
        .await;
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Running);
    bed.control.cancel_job(ORGANIZATION, job).await.unwrap();
    bed.gone("web").await;
    assert!(bed.agents().await.is_empty(), "{:#?}", bed.agents().await);
    bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_deletion_does_not_wait() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1 })).await;
    bed.agents_when("a warm agent", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    bed.run(long_job()).await;
    bed.control
        .add_fault(&Fault::new(FaultKind::DroppedConnection).on("Agents."))
        .await
        .unwrap();
    bed.condition_when("web", "Connected", "False", "Unreachable")
        .await;
    bed.delete("web").await;
    bed.condition_when("web", "Ready", "False", "Deleting")
        .await;
    let annotation =
        json!({ "metadata": { "annotations": { "devops.opentools.mf/force-delete": "true" } } });
    bed.api::<RunnerPool>()
        .patch("web", &PatchParams::default(), &Patch::Merge(annotation))
        .await
        .unwrap();
    bed.gone("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_of_the_former_operator_do_not_hold_a_deletion() {
    let bed = Bed::make().await;
    let mut pool = bed.runner_pool("web", json!({}));
    pool.metadata.finalizers = Some(vec!["devops.opentools.mf/runnerpoolfinalizer".into()]);
    let pools: Api<RunnerPool> = bed.api();
    pools.create(&PostParams::default(), &pool).await.unwrap();
    let mut bed = bed;
    bed.start_operator().await;
    bed.ready("web").await;
    let held = pools.get("web").await.unwrap();
    assert_eq!(held.finalizers(), ["devops.opentools.mf/registrations"]);
    bed.delete("web").await;
    bed.gone("web").await;
    assert!(bed.agents().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_loses_nothing() {
    let mut bed = Bed::start().await;
    bed.create("web", json!({ "maxAgents": 4 })).await;
    bed.ready("web").await;
    bed.queue(jobs(12, Duration::from_secs(1))).await;
    for round in 0..3 {
        bed.jobs_when("some jobs are done", |jobs| {
            jobs.iter()
                .filter(|job| job.outcome == Outcome::Succeeded)
                .count()
                > round * 3
        })
        .await;
        bed.kill_operator().await;
        bed.start_operator().await;
    }
    bed.all_succeed().await;
    bed.pods_when("nothing is left", <[_]>::is_empty).await;
    bed.agents_when("no registration is left", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
    // A stop between deletion and its end, too.
    bed.create("other", json!({ "minAgents": 1 })).await;
    bed.agents_when("a warm agent", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    bed.stop_operator().await;
    bed.delete("other").await;
    bed.start_operator().await;
    bed.gone("other").await;
    bed.agents_when("its registrations are gone", |agents| {
        agents.iter().all(|agent| !agent.name.starts_with("other"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_pod_is_being_deleted_gets_no_new_job_and_finishes_its_own() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1, "maxAgents": 3 }))
        .await;
    bed.agents_when("a warm agent", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    let job = bed.run(jobs(1, Duration::from_secs(15))).await.id;
    bed.api::<Pod>()
        .delete("web-agent-0", &DeleteParams::default())
        .await
        .unwrap();
    bed.agents_when("it is disabled", |agents| {
        agents
            .iter()
            .any(|agent| agent.name == "web-agent-0" && !agent.enabled)
    })
    .await;
    let ran = bed
        .jobs_when("the job ends", |jobs| jobs[0].finished.is_some())
        .await;
    assert_eq!((ran[0].id, ran[0].outcome), (job, Outcome::Succeeded));
    bed.pods_when("another takes its place", |pods| {
        names(pods) == ["web-agent-1"]
    })
    .await;
    bed.agents_when("its registration is gone", |agents| {
        agent_names(agents) == ["web-agent-1"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_guarded_against_eviction_only_while_it_starts_or_works() {
    let bed = Bed::start().await;
    let guards = |pod: &Pod| {
        let annotation = |name: &str| pod.annotations().get(name).map(String::as_str);
        let both = (
            annotation("cluster-autoscaler.kubernetes.io/safe-to-evict"),
            annotation("karpenter.sh/do-not-disrupt"),
        );
        match both {
            (Some("false"), Some("true")) => true,
            (None, None) => false,
            other => unreachable!("half a guard: {other:?}"),
        }
    };
    let rule = bed
        .node
        .inject(hollow_node::Rule::new(hollow_node::What::HangPending));
    bed.create("web", json!({ "minAgents": 1 })).await;
    let pods = bed.pods_when("it starts", |pods| pods.len() == 1).await;
    assert!(guards(&pods[0]));
    bed.node.retract(rule);
    bed.pods_when("it is idle", |pods| !guards(&pods[0])).await;
    let job = bed.queue(long_job()).await[0];
    let pods = bed.pods_when("it works", |pods| guards(&pods[0])).await;
    assert_eq!(pods[0].labels()["job-request-id"], job.to_string());
    bed.control.cancel_job(ORGANIZATION, job).await.unwrap();
    let pods = bed
        .pods_when("it is idle again", |pods| !guards(&pods[0]))
        .await;
    assert!(!pods[0].labels().contains_key("job-request-id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn placeholders_come_back_and_go_with_the_runner_pool() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let placeholder = bed.agents().await.remove(0);
    assert!(
        placeholder.user_capabilities["AZDO_RUNNER_OWNER"]
            .ends_with(&format!("/{}/web", bed.namespace))
    );
    assert!(!placeholder.online && placeholder.enabled);
    bed.control
        .delete_agent(ORGANIZATION, POOL, "web-placeholder-base")
        .await
        .unwrap();
    bed.ready("web").await;
    // Without it Azure DevOps refuses a job.
    let demanding = azure_devops_simulator::world::JobSpec {
        demands: vec!["Agent.Version -gtVersion 4.200.0".into()],
        ..jobs(1, SHORT)
    };
    bed.queue(demanding).await;
    bed.all_succeed().await;
    bed.delete("web").await;
    bed.gone("web").await;
    assert!(bed.agents().await.is_empty());
    let refused = bed.queue(jobs(1, SHORT)).await[0];
    let jobs = bed.jobs().await;
    assert!(
        jobs.iter()
            .any(|job| job.id == refused && job.outcome == Outcome::Refused),
        "the control: {jobs:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_job_is_reported_and_its_registration_goes() {
    let bed = Bed::start().await;
    let mut switches = bed.control.switches().await.unwrap();
    switches.lock = Duration::from_secs(15);
    bed.control.set_switches(&switches).await.unwrap();
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    bed.run(long_job()).await;
    bed.status_when("web", "a busy agent", |status| {
        status.agents.iter().any(|agent| agent.status == "Busy")
    })
    .await;
    assert!(bed.node.vanish(&bed.namespace, "web-agent-0"));
    let events: Api<k8s_openapi::api::events::v1::Event> = bed.api();
    crate::bed::objects_when(events, "an event tells of it", |events| {
        events
            .iter()
            .any(|event| event.reason.as_deref() == Some("JobLost"))
    })
    .await;
    bed.jobs_when("Azure DevOps gives it up", |jobs| {
        jobs[0].finished.is_some()
    })
    .await;
    bed.agents_when("the registration goes", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_its_runner_pool_and_secret() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1 })).await;
    bed.agents_when("a warm agent", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(bed.client.clone());
    namespaces
        .delete(&bed.namespace, &DeleteParams::default())
        .await
        .unwrap();
    bed.agents_when("no registration is left", <[_]>::is_empty)
        .await;
    bed.gone("web").await;
}

/// Two more looks, and nothing has become of the busy agent and its job.
async fn untouched(bed: &Bed, busy: &str) {
    bed.look_again(2).await;
    let pods = bed.pods().await;
    assert_eq!(names(&pods), [busy]);
    assert_eq!(pods[0].metadata.deletion_timestamp, None);
    let agents = bed.agents().await;
    assert_eq!(agent_names(&agents), [busy]);
    assert!(agents.iter().all(|agent| agent.enabled), "{agents:#?}");
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_pool_that_is_led_to_another_agent_pool_waits_until_it_is_led_back() {
    const OTHER: &str = "Other Pool";
    let mut bed = Bed::make().await;
    bed.control.create_pool(ORGANIZATION, OTHER).await.unwrap();
    bed.start_operator().await;
    bed.create("web", json!({ "minAgents": 1, "maxAgents": 1 }))
        .await;
    bed.online(1).await;
    let running = bed.run(long_job()).await;
    let (job, busy) = (running.id, running.agent.unwrap());
    let found = bed
        .status_when("web", "the agent pool is written down", |status| {
            status.agent_pool.is_some()
        })
        .await;
    assert_eq!(
        found.agent_pool,
        api::AgentPoolStatus::of(&bed.runner_pool("web", json!({})).spec)
    );

    bed.change("web", json!({ "pool": OTHER })).await;
    let strayed = bed
        .condition_when("web", "Degraded", "True", "InvalidSpec")
        .await;
    let error = strayed.last_error.unwrap();
    assert!(
        error.contains("spec.pool: must be \"linux pool\"") && error.contains("put it back"),
        "{error}"
    );
    untouched(&bed, &busy).await;
    bed.delete("web").await;
    bed.condition_when("web", "Ready", "False", "Deleting")
        .await;
    untouched(&bed, &busy).await;
    // What was found is not what the operator remembers.
    bed.kill_operator().await;
    bed.start_operator().await;

    bed.change("web", json!({ "pool": POOL })).await;
    bed.agents_when(
        "it is led back, and its agent gets no other job",
        |agents| {
            let mut agents = agents.iter();
            agents.any(|agent| agent.name == busy && !agent.enabled)
        },
    )
    .await;
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Running);
    bed.control.cancel_job(ORGANIZATION, job).await.unwrap();
    bed.gone("web").await;
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Canceled);
    bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
    for pool in [POOL, OTHER] {
        let left = bed.control.agents(ORGANIZATION, pool).await.unwrap();
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_pool_that_was_never_found_can_be_corrected() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "pool": "Typo" })).await;
    let status = bed
        .condition_when("web", "Connected", "False", "PoolNotFound")
        .await;
    assert_eq!(status.agent_pool, None);
    bed.change("web", json!({ "pool": POOL })).await;
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    bed.ready("web").await;
}
