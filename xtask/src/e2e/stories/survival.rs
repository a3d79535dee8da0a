//! A job goes on to its end, whatever happens around it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::operators;
use crate::e2e::world::{Team, World};

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

/// Both replicas of the operator are replaced.
pub(super) async fn upgrade(world: &World) -> Result<String> {
    let team = world.team("upgrade").await?;
    begin(&team).await?;
    let before = operators(world).await?;
    world.deploy(
        &World::chart(),
        &[
            "upgrade",
            "--reset-then-reuse-values",
            "--set",
            "podAnnotations.upgraded=yes",
        ],
    )?;
    let after = operators(world).await?;
    ensure!(
        before.iter().all(|pod| !after.contains(pod)),
        "a replica was not replaced"
    );
    end(&team).await?;
    Ok("both replicas were replaced meanwhile".to_owned())
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
