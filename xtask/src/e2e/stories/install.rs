//! From nothing to a finished job, with the commands of the README.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    e2e::{
        images,
        world::{NAMESPACE, POOL, RELEASE, World},
    },
    output, repository,
};

/// Installs the operator where the Pod Security Standard `restricted` is enforced.
pub(super) async fn install(world: &World) -> Result<String> {
    world.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    world
        .kubectl(&["label", "namespace", NAMESPACE, restricted])
        .await?;
    world.deploy(&World::chart(), &["install"])?;
    let deployment = world
        .get(&["deployment", RELEASE, "--namespace", NAMESPACE])
        .await?;
    let ready = &deployment["status"]["readyReplicas"];
    ensure!(*ready == 2, "{ready} replicas are ready instead of 2");
    Ok("2 replicas are ready, under Pod Security restricted".to_owned())
}

/// The README's first RunnerPool.
pub(super) async fn quick_start(world: &World, begin: Instant) -> Result<String> {
    let team = world.team("my-org").await?;
    let mut pool = first_runner_pool()?;
    // What users change in it.
    pool["metadata"]["namespace"] = team.name.into();
    pool["spec"]["azDoUrl"] = format!("{}{}", world.simulator.url(), team.name).into();
    pool["spec"]["image"] = images::AGENT.into();
    ensure!(
        pool["spec"]["pool"] == POOL,
        "the README has another agent pool"
    );
    world.apply(&pool).await?;
    team.until_ready("my-runners").await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    let first = output::duration(begin.elapsed());
    let table = world
        .kubectl(&["get", "runnerpools", "--namespace", team.name])
        .await?;
    ensure!(table.contains("Connected"), "{table}");
    team.delete("my-runners").await?;
    team.until_none().await?;
    Ok(format!("{first} from helm install to a first finished job"))
}

/// The manifest in the README.
fn first_runner_pool() -> Result<Value> {
    let file = repository::root().join("README.md");
    let readme = fs::read_to_string(&file).context("cannot read the README")?;
    let begin = readme
        .find("apiVersion: devops.opentools.mf/v1\nkind: RunnerPool")
        .context("there is no RunnerPool in the README")?;
    let manifest = readme[begin..].split("```").next().unwrap_or_default();
    serde_saphyr::from_str(manifest).context("the RunnerPool in the README is no YAML")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_readme_has_a_runner_pool() {
        let pool = first_runner_pool().unwrap();
        assert_eq!(pool["metadata"]["name"], "my-runners");
        assert_eq!(pool["spec"]["pool"], POOL);
    }
}
