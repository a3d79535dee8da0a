//! Names and proof: whose agent is whose.

use std::{collections::BTreeMap, time::Duration};

use api::RunnerPool;
use azure_devops_simulator::world::{AgentSpec, Fault, FaultKind, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::bed::{Bed, ORGANIZATION, POOL, agent_names, jobs, long_job, names, within};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_used_again_only_when_its_registration_is_gone() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    // Registrations cannot be deleted for now.
    let fault = Fault::new(FaultKind::ServerError { status: 500 }).on("Agents.Delete");
    bed.control.add_fault(&fault).await.unwrap();
    bed.queue(jobs(1, SHORT)).await;
    bed.all_succeed().await;
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert_eq!(
        ran[1].agent.as_deref(),
        Some("web-agent-1"),
        "index 0 is still registered"
    );
    bed.control.clear_faults().await.unwrap();
    bed.agents_when("the registrations are gone", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
    bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert_eq!(
        ran[2].agent.as_deref(),
        Some("web-agent-0"),
        "the lowest free index"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_not_used_again_while_lists_may_not_show_its_agent_yet() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    // From now on lists show what is now.
    let age = Duration::from_secs(25);
    let fault = Fault::new(FaultKind::StaleRead { age });
    bed.control.add_fault(&fault).await.unwrap();
    bed.change("web", json!({ "minAgents": 1 })).await;
    bed.agents_when("an agent is online", |agents| {
        agents
            .iter()
            .any(|agent| agent.online && agent.name == "web-agent-0")
    })
    .await;
    bed.change("web", json!({ "mode": "Paused" })).await;
    bed.condition_when("web", "Ready", "False", "Paused").await;
    let pods: Api<Pod> = bed.api();
    let force = DeleteParams::default().grace_period(0);
    pods.delete("web-agent-0", &force).await.unwrap();
    bed.pods_when("its Pod is gone", <[_]>::is_empty).await;
    bed.look_again(2).await;
    bed.change("web", json!({ "mode": "Active" })).await;
    let next = bed
        .pods_when("another agent takes its place", |pods| !pods.is_empty())
        .await;
    assert_eq!(names(&next), ["web-agent-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_agents_are_left_alone_and_their_names_skipped() {
    let bed = Bed::start().await;
    let stranger = |name: &str, capabilities: &[(&str, &str)]| AgentSpec {
        name: name.into(),
        capabilities: capabilities
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        ..AgentSpec::default()
    };
    // One has our name, one the mark of another cluster, one only looks like ours.
    let mark = "another-cluster/another-namespace/web";
    let strangers = [
        stranger("web-agent-0", &[]),
        stranger("web-agent-1", &[("AZDO_RUNNER_OWNER", mark)]),
        stranger("web-agent-01", &[]),
        stranger("web-placeholder-old", &[]),
    ];
    for stranger in &strangers {
        bed.control
            .add_agent(ORGANIZATION, POOL, stranger)
            .await
            .unwrap();
    }
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert_eq!(ran[0].agent.as_deref(), Some("web-agent-2"));
    let status = bed
        .condition_when("web", "Degraded", "True", "NameTaken")
        .await;
    let message = status.last_error.unwrap();
    assert!(
        message.contains("web-agent-0") && message.contains("web-agent-1"),
        "{message}"
    );
    bed.pods_when("the Pod is gone", <[_]>::is_empty).await;
    bed.delete("web").await;
    bed.gone("web").await;
    let left: Vec<String> = bed
        .agents()
        .await
        .into_iter()
        .map(|agent| agent.name)
        .collect();
    assert_eq!(left, strangers.map(|stranger| stranger.name));
    assert!(bed.agents().await.iter().all(|agent| agent.enabled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runner_pools_of_one_name_share_an_agent_pool() {
    let mut here = Bed::make().await;
    let there = Bed::make().await;
    // The other namespace's RunnerPool uses this organization.
    there.secret("pat-token", &[("token", &here.token)]).await;
    let namespaces = [here.namespace.clone(), there.namespace.clone()];
    here.start_operator_of(&[&namespaces[0], &namespaces[1]])
        .await;
    let pool = here.runner_pool("web", json!({ "minAgents": 2 }));
    for bed in [&here, &there] {
        bed.api()
            .create(&PostParams::default(), &pool)
            .await
            .unwrap();
    }
    let agents = here
        .agents_when("four warm agents are online", |agents| {
            agents.iter().filter(|agent| agent.online).count() == 4
        })
        .await;
    assert_eq!(
        agent_names(&agents),
        ["web-agent-0", "web-agent-1", "web-agent-2", "web-agent-3"]
    );
    let (ours, theirs) = (names(&here.pods().await), names(&there.pods().await));
    assert_eq!((ours.len(), theirs.len()), (2, 2));
    let marks: BTreeMap<_, _> = agents
        .iter()
        .filter(|agent| agent.online)
        .map(|agent| (&agent.name, &agent.system_capabilities["AZDO_RUNNER_OWNER"]))
        .collect();
    for (name, mark) in marks {
        let owner = if ours.contains(name) {
            &here.namespace
        } else {
            &there.namespace
        };
        assert!(
            mark.ends_with(&format!("/{owner}/web")),
            "{name} carries {mark}"
        );
    }
    // The end of one does not touch the other.
    here.delete("web").await;
    here.gone("web").await;
    let left = here.agents().await;
    assert_eq!(agent_names(&left), theirs);
    assert!(left.iter().all(|agent| agent.enabled), "{left:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runner_pools_on_one_agent_pool_do_not_disturb_each_other() {
    let bed = Bed::start().await;
    for name in ["blue", "green"] {
        bed.create(name, json!({ "minAgents": 1, "maxAgents": 1 }))
            .await;
    }
    bed.online(2).await;
    let running = bed.run(long_job()).await;
    let (job, busy) = (running.id, running.agent.unwrap());
    let (stays, goes) = if busy == "blue-agent-0" {
        ("blue", "green")
    } else {
        ("green", "blue")
    };
    bed.delete(goes).await;
    bed.gone(goes).await;
    let agents = bed.agents().await;
    assert_eq!(agent_names(&agents), [busy.as_str()]);
    assert!(
        agents
            .iter()
            .all(|agent| agent.enabled && agent.name.starts_with(stays)),
        "{agents:#?}"
    );
    assert_eq!(names(&bed.pods().await), [busy]);
    assert!(
        bed.jobs()
            .await
            .iter()
            .any(|seen| seen.id == job && seen.outcome == Outcome::Running)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_runner_pools_of_one_agent_pool_look_at_it_together() {
    let bed = Bed::start().await;
    for i in 0..20 {
        bed.create(
            &format!("web-{i}"),
            json!({ "pool": if i % 2 == 0 { POOL.to_owned() } else { POOL.to_lowercase() } }),
        )
        .await;
    }
    for i in 0..20 {
        bed.ready(&format!("web-{i}")).await;
    }
    bed.run(long_job()).await;
    let counts = || async { bed.control.requests(Some(ORGANIZATION)).await.unwrap() };
    let start = counts().await;
    let polls = |counts: &azure_devops_simulator::world::RequestCounts| {
        counts.of("pat:default", "JobRequests.List")
    };
    let now = within("six more looks", async {
        loop {
            let now = counts().await;
            if polls(&now) >= polls(&start) + 6 {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let looks = polls(&now) - polls(&start);
    let reads = |counts: &azure_devops_simulator::world::RequestCounts| -> u64 {
        [
            "Agents.List",
            "JobRequests.List",
            "Pools.List",
            "Agents.Get",
        ]
        .iter()
        .map(|operation| counts.of("pat:default", operation))
        .sum()
    };
    assert!(
        reads(&now) - reads(&start) <= 2 * looks + 1,
        "{looks} looks took {} requests",
        reads(&now) - reads(&start)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_of_the_former_operator_are_adopted() {
    let mut bed = Bed::make().await;
    let pool = bed.create("web", json!({ "minAgents": 1 })).await;
    // A Pod as the former operator makes it: owned and labelled, without mark and shape.
    let pod = json!({
        "metadata": {
            "name": "web-agent-0",
            "labels": { "app": "azdo-runner", "runner-pool": "web", "managed-by": "azdo-runner-operator", "min-agent": "true" },
            "ownerReferences": [{
                "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": "web", "uid": pool.uid(), "controller": true,
            }],
        },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "agent", "image": "agent:base", "env": [
            { "name": "AZP_URL", "value": bed.organization_url() }, { "name": "AZP_POOL", "value": POOL },
            { "name": "AZP_AGENT_NAME", "value": "web-agent-0" },
            { "name": "AZP_TOKEN", "valueFrom": { "secretKeyRef": { "name": "pat-token", "key": "token" } } },
        ] }] },
    });
    let pods: Api<k8s_openapi::api::core::v1::Pod> = bed.api();
    pods.create(
        &PostParams::default(),
        &serde_json::from_value(pod).unwrap(),
    )
    .await
    .unwrap();
    bed.agents_when("it is online", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    let busy = bed.run(long_job()).await.id;
    bed.start_operator().await;
    // It is not of today's shape: it keeps its job, gets no other, and a successor takes its place beside it.
    bed.agents_when("it is disabled, and its successor is online", |agents| {
        agents
            .iter()
            .any(|agent| agent.name == "web-agent-0" && !agent.enabled)
            && agents
                .iter()
                .any(|agent| agent.name == "web-agent-1" && agent.online)
    })
    .await;
    let jobs = bed.jobs().await;
    assert!(
        jobs.iter()
            .any(|job| job.id == busy && job.outcome == Outcome::Running),
        "{jobs:#?}"
    );
    bed.control.cancel_job(ORGANIZATION, busy).await.unwrap();
    bed.pods_when("it goes after its job", |pods| {
        names(pods) == ["web-agent-1"]
    })
    .await;
    bed.agents_when("with its registration", |agents| {
        agent_names(agents) == ["web-agent-1"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_named_by_a_prefix_that_cannot_be_changed() {
    let bed = Bed::start().await;
    let work =
        json!({ "name": "work", "mountPath": "/work", "storage": "1Gi", "deleteWithAgent": true });
    bed.create("web", json!({ "agentNamePrefix": "east", "pvcs": [work] }))
        .await;
    bed.agents_when("the placeholder is there", |agents| agents.len() == 1)
        .await;
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert_eq!(ran[0].agent.as_deref(), Some("east-agent-0"));
    bed.pods_when("the Pod is gone", <[_]>::is_empty).await;
    bed.claims_when("so is its claim", <[_]>::is_empty).await;
    let agents = bed.agents().await;
    let names: Vec<&str> = agents.iter().map(|agent| agent.name.as_str()).collect();
    assert_eq!(names, ["east-placeholder-base"]);
    let api: Api<RunnerPool> = bed.api();
    for prefix in [json!("west"), json!(null)] {
        let patch = Patch::Merge(json!({ "spec": { "agentNamePrefix": prefix } }));
        let refused = api
            .patch("web", &PatchParams::default(), &patch)
            .await
            .unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("agentNamePrefix cannot be changed"),
            "{refused}"
        );
    }
    bed.delete("web").await;
    bed.gone("web").await;
    assert!(bed.agents().await.is_empty());
}
