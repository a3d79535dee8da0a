//! A job goes on to its end, whatever happens around it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::operators;
use crate::{
    e2e::world::{Team, World},
    output,
};

/// Long enough that all that happens meanwhile happens meanwhile.
const JOB: Duration = Duration::from_secs(20);

/// Somebody deletes the Pod.
pub(super) async fn deletion(world: &World) -> Result<String> {
    let team = world.team("deletion").await?;
    let pod = begin(&team).await?;
    world
        .kubectl(&[
            "delete",
            "pod",
            &pod,
            "--namespace",
            team.name,
            "--wait=false",
        ])
        .await?;
    end(&team).await?;
    Ok("the Pod went after its job".to_owned())
}

/// The node is drained.
pub(super) async fn drain(world: &World) -> Result<String> {
    let team = world.team("drain").await?;
    begin(&team).await?;
    // Only agents: the operator has nowhere to go, on the only node there is.
    let drained = world
        .kubectl(&[
            "drain",
            "node",
            "--pod-selector=app=azdo-runner",
            "--timeout=2m",
        ])
        .await;
    let finished = team.jobs().iter().all(|job| job.outcome.is_finished());
    world.kubectl(&["uncordon", "node"]).await?;
    drained?;
    ensure!(finished, "the drain ended before the job");
    end(&team).await?;
    Ok("the drain waited for the job".to_owned())
}

/// The operator hands over within a second, and the kubelet takes a few more on a busy machine. After its grace period of 30
/// seconds a replica would be killed.
const LONGEST_STOP: Duration = Duration::from_secs(15);

/// Both replicas of the operator are replaced.
pub(super) async fn upgrade(world: &World) -> Result<String> {
    let team = world.team("upgrade").await?;
    begin(&team).await?;
    let before = operators(world).await?;
    let annotation = world.upgrade("--set podAnnotations.upgraded=yes");
    let (upgraded, slowest) = tokio::join!(annotation, until_replaced(world, &before));
    upgraded?;
    let slowest = slowest?;
    ensure!(
        slowest < LONGEST_STOP,
        "a replica took {} to stop",
        output::duration(slowest)
    );
    end(&team).await?;
    Ok(format!(
        "both replicas were replaced meanwhile, the slower one stopped within {}",
        output::duration(slowest)
    ))
}

/// Waits until none of these Pods of the operator is there any more; the longest time from the wish that one goes to its end.
async fn until_replaced(world: &World, before: &[Value]) -> Result<Duration> {
    let mut asked: BTreeMap<String, Instant> = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    world
        .until("all replicas are replaced", async || {
            let pods = super::operator_pods(world).await?;
            asked.retain(|uid, since| {
                let there = pods.iter().any(|pod| pod["metadata"]["uid"] == **uid);
                if !there {
                    slowest = slowest.max(since.elapsed());
                }
                there
            });
            for pod in &pods {
                let metadata = &pod["metadata"];
                if !metadata["deletionTimestamp"].is_null()
                    && let Some(uid) = metadata["uid"].as_str()
                {
                    asked.entry(uid.to_owned()).or_insert_with(Instant::now);
                }
            }
            let left = pods
                .iter()
                .any(|pod| before.contains(&pod["metadata"]["uid"]));
            Ok((!left).then_some(()))
        })
        .await?;
    Ok(slowest)
}

/// A RunnerPool with a running job; the name of its Pod.
async fn begin(team: &Team<'_>) -> Result<String> {
    team.runner_pool("runners", json!({})).await?;
    team.queue(1, JOB)?;
    team.until_running(1).await?;
    let jobs = team.jobs();
    let agent = jobs.first().and_then(|job| job.agent.clone());
    agent.context("nobody has the running job")
}

/// The job ends well, and nothing is left.
async fn end(team: &Team<'_>) -> Result<()> {
    team.until_finished().await?;
    team.until_none().await?;
    team.delete("runners").await
}
