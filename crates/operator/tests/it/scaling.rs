//! How the number of agents follows the jobs.

use std::time::Duration;

use azure_devops_simulator::world::Outcome;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{WatchEvent, WatchParams};
use serde_json::json;

use crate::bed::{Bed, agent_names, jobs, long_job, names, unfinished, within};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_queued_at_zero_agents_are_run_and_nothing_is_left() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    bed.queue(jobs(3, SHORT)).await;
    let ran = bed.all_succeed().await;
    let mut agents: Vec<_> = ran.iter().filter_map(|job| job.agent.as_deref()).collect();
    agents.sort_unstable();
    assert_eq!(
        agents,
        ["web-agent-0", "web-agent-1", "web-agent-2"],
        "each job has a fresh agent, lowest index first"
    );
    bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
    bed.agents_when("only the placeholder is registered", |agents| {
        agents.len() == 1 && agents[0].name == "web-placeholder-base"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_go_up_to_the_maximum_and_no_further() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "maxAgents": 2 })).await;
    bed.ready("web").await;
    bed.queue(long_job()).await;
    bed.queue(jobs(4, SHORT)).await;
    let pods = bed
        .pods_when("two agents run", |pods| unfinished(pods) >= 2)
        .await;
    assert_eq!(names(&pods), ["web-agent-0", "web-agent-1"]);
    let status = bed
        .condition_when("web", "ScalingLimited", "True", "MaxAgentsReached")
        .await;
    assert!(status.agents_summary.is_some());
    // The second agent's successors run the short ones, one after the other, beside the long one.
    let most = std::cell::Cell::new(0);
    bed.pods_when("three more agents have come and gone", |pods| {
        most.set(most.get().max(unfinished(pods)));
        pods.iter().any(|pod| {
            pod.metadata
                .name
                .as_deref()
                .is_some_and(|name| !["web-agent-0", "web-agent-1"].contains(&name))
        })
    })
    .await;
    bed.jobs_when("the short jobs end", |jobs| {
        jobs.iter()
            .filter(|job| job.outcome == Outcome::Succeeded)
            .count()
            == 4
    })
    .await;
    assert!(most.get() <= 2, "{} agents at a time", most.get());
    bed.condition_when("web", "ScalingLimited", "False", "AsExpected")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_job_is_not_counted_as_queued() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    bed.run(long_job()).await;
    let status = bed.status_when("web", "a busy agent", |status| {
        status.agents.iter().any(|agent| agent.status == "Busy")
    });
    let status = status.await;
    assert_eq!(
        (
            status.queued_jobs,
            status.running_agents,
            status.agents_summary.as_deref()
        ),
        (0, 1, Some("1/10"))
    );
    assert_eq!(names(&bed.pods().await), ["web-agent-0"]);
    assert_eq!(agent_names(&bed.agents().await), ["web-agent-0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_minimum_is_kept_and_its_agents_run_on() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 2 })).await;
    let pods = bed
        .pods_when("two warm agents", |pods| pods.len() == 2)
        .await;
    for pod in &pods {
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["min-agent"], "true");
        assert_eq!(
            pod.spec.as_ref().unwrap().containers[0].args,
            None,
            "no --once"
        );
    }
    bed.online(2).await;
    let before = names(&pods);
    // Two jobs need no further agents, and the agents that ran them stay.
    bed.queue(jobs(2, SHORT)).await;
    bed.all_succeed().await;
    bed.status_when("web", "both are idle again", |status| {
        status
            .agents
            .iter()
            .filter(|agent| agent.status == "Idle" && agent.last_active.is_some())
            .count()
            == 2
    })
    .await;
    assert_eq!(names(&bed.pods().await), before);
    // One that goes is replaced.
    assert!(bed.node.vanish(&bed.namespace, &before[0]));
    bed.pods_when("the lost one is replaced", |pods| {
        pods.len() == 2 && names(pods) != before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_with_a_ttl_run_on_and_go_when_they_have_been_idle_for_so_long() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "ttlIdleSeconds": 20 })).await;
    bed.ready("web").await;
    bed.queue(jobs(1, SHORT)).await;
    bed.all_succeed().await;
    let pods = bed.pods().await;
    assert_eq!(names(&pods), ["web-agent-0"]);
    assert_eq!(
        pods[0].spec.as_ref().unwrap().containers[0].args,
        None,
        "no --once"
    );
    // A second job finds it.
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert!(
        ran.iter()
            .all(|job| job.agent.as_deref() == Some("web-agent-0")),
        "{ran:#?}"
    );
    bed.pods_when("the idle agent goes", <[_]>::is_empty).await;
    let gone = jiff::Timestamp::now();
    let idle = gone.duration_since(ran[1].finished.unwrap());
    assert!(
        idle >= jiff::SignedDuration::from_secs(20),
        "it went after {idle}"
    );
    bed.agents_when("its registration is gone", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_whose_job_was_cancelled_are_taken_back() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let rule = bed
        .node
        .inject(hollow_node::Rule::new(hollow_node::What::ImagePullBackOff));
    let ids = bed.queue(jobs(2, SHORT)).await;
    bed.pods_when("two Pods wait for their image", |pods| {
        let bound = |pod: &Pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        };
        pods.len() == 2 && pods.iter().all(bound)
    })
    .await;
    let pods = bed.api::<Pod>();
    let changes = pods.watch(&WatchParams::default(), "0").await.unwrap();
    bed.control
        .cancel_job(crate::bed::ORGANIZATION, ids[0])
        .await
        .unwrap();
    bed.pods_when("one is taken back", |pods| pods.len() == 1)
        .await;
    let given = changes.filter_map(|change| async {
        let (WatchEvent::Modified(pod) | WatchEvent::Deleted(pod)) = change.unwrap() else {
            return None;
        };
        pod.metadata.deletion_grace_period_seconds
    });
    let given = within("its deletion shows", std::pin::pin!(given).next()).await;
    assert_eq!(
        given,
        Some(24 * 3600),
        "its agent may start before the kubelet hears of it, and get a job of any length"
    );
    bed.node.retract(rule);
    bed.jobs_when("the other job ends", |jobs| {
        jobs[1].outcome == Outcome::Succeeded
    })
    .await;
    bed.pods_when("nothing is left", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lowered_maximum_takes_idle_agents_away_and_no_busy_one() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "ttlIdleSeconds": 3600, "maxAgents": 3 }))
        .await;
    bed.ready("web").await;
    bed.queue(jobs(2, SHORT)).await;
    let long = bed.queue(long_job()).await[0];
    bed.jobs_when("two are done, one runs", |jobs| {
        jobs.iter()
            .filter(|job| job.outcome == Outcome::Succeeded)
            .count()
            == 2
            && jobs
                .iter()
                .any(|job| job.id == long && job.outcome == Outcome::Running)
    })
    .await;
    bed.change("web", json!({ "maxAgents": 1 })).await;
    let pods = bed
        .pods_when("one agent is left", |pods| pods.len() == 1)
        .await;
    let jobs = bed.jobs().await;
    let job = jobs.iter().find(|job| job.id == long).unwrap();
    assert_eq!(
        (job.outcome, job.agent.clone()),
        (Outcome::Running, pods[0].metadata.name.clone())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_an_agent_of_the_image_that_it_demands() {
    let bed = Bed::start().await;
    let images = json!({ "java": "agent:java", "docker": "agent:docker" });
    bed.create(
        "web",
        json!({ "capabilityAware": true, "capabilityImages": images }),
    )
    .await;
    bed.agents_when("one placeholder per image", |agents| {
        let mut names: Vec<_> = agents.iter().map(|agent| agent.name.as_str()).collect();
        names.sort_unstable();
        names
            == [
                "web-placeholder-base",
                "web-placeholder-docker",
                "web-placeholder-java",
            ]
    })
    .await;
    let demanding = |demand: &str| azure_devops_simulator::world::JobSpec {
        demands: vec![demand.to_owned()],
        ..jobs(1, Duration::from_secs(3))
    };
    let java = bed.queue(demanding("Java")).await[0];
    bed.queue(jobs(1, Duration::from_secs(3))).await;
    let pods = bed.pods_when("two agents", |pods| pods.len() == 2).await;
    let mut made: Vec<_> = pods
        .iter()
        .map(|pod| {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let env = container.env.as_ref().unwrap();
            let capability = env
                .iter()
                .find(|env| env.name == "AZP_CAPABILITY")
                .unwrap()
                .value
                .clone()
                .unwrap();
            let labels = pod.metadata.labels.as_ref().unwrap();
            assert_eq!(labels["capability-aware"], "true");
            (
                labels["capability"].clone(),
                capability,
                container.image.clone().unwrap(),
            )
        })
        .collect();
    made.sort();
    let expected = [("base", "agent:base"), ("java", "agent:java")];
    assert_eq!(
        made,
        expected.map(|(name, image)| (name.to_owned(), name.to_owned(), image.to_owned()))
    );
    let ran = bed.all_succeed().await;
    let agent = ran
        .iter()
        .find(|job| job.id == java)
        .unwrap()
        .agent
        .clone()
        .unwrap();
    let pod = pods
        .iter()
        .find(|pod| pod.metadata.name.as_ref() == Some(&agent))
        .unwrap();
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["capability"], "java");
}
