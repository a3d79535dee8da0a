//! RunnerPools that are paused or drained.

use std::time::Duration;

use azure_devops_simulator::world::Outcome;
use serde_json::json;

use crate::bed::{Bed, jobs, long_job, names};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_one_changes_nothing_until_it_is_active_again() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1, "maxAgents": 2 }))
        .await;
    bed.online(1).await;
    // Now there is an agent to make and one to replace.
    bed.change(
        "web",
        json!({ "mode": "Paused", "minAgents": 2, "image": "agent:2" }),
    )
    .await;
    bed.condition_when("web", "Ready", "False", "Paused").await;
    let before = bed.pods().await;
    bed.queue(long_job()).await;
    bed.queue(jobs(1, Duration::from_millis(100))).await;
    bed.status_when("web", "one is busy, and a job waits", |status| {
        status.running_agents == 1 && status.queued_jobs == 1
    })
    .await;
    let uids = |pods: &[k8s_openapi::api::core::v1::Pod]| {
        pods.iter().map(kube::ResourceExt::uid).collect::<Vec<_>>()
    };
    assert_eq!(uids(&bed.pods().await), uids(&before));
    bed.change("web", json!({ "mode": "Active" })).await;
    bed.jobs_when("the job that waited ran", |jobs| {
        jobs.iter().any(|job| job.outcome == Outcome::Succeeded)
    })
    .await;
    bed.ready("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_one_lets_its_jobs_finish_and_keeps_others_queued() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 2, "maxAgents": 2 }))
        .await;
    bed.online(2).await;
    bed.queue(long_job()).await;
    bed.status_when("web", "one is busy", |status| {
        status.running_agents == 2 && status.queued_jobs == 0
    })
    .await;
    bed.change("web", json!({ "mode": "Drained" })).await;
    bed.condition_when("web", "Ready", "False", "Drained").await;
    let left = bed
        .pods_when("only the busy one is left", |pods| pods.len() == 1)
        .await;
    bed.queue(jobs(1, Duration::from_millis(100))).await;
    bed.status_when("web", "a job waits", |status| status.queued_jobs == 1)
        .await;
    assert_eq!(names(&bed.pods().await), names(&left));
    bed.change("web", json!({ "mode": "Active" })).await;
    bed.jobs_when("the job that waited ran", |jobs| {
        jobs.iter().any(|job| job.outcome == Outcome::Succeeded)
    })
    .await;
    let jobs = bed.jobs().await;
    assert!(
        jobs.iter().all(|job| job.outcome != Outcome::Killed),
        "{jobs:#?}"
    );
}
