//! From nothing to a finished job, with the commands of the README.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    e2e::{
        images,
        world::{NAMESPACE, POOL, RELEASE, Team, World},
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
    world.install().await?;
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
    look_around(&team).await?;
    world.look_for_tokens().await?;
    team.documented("kubectl delete runnerpool ", &[], "--timeout=3m")
        .await?;
    team.until_none().await?;
    Ok(format!("{first} from helm install to a first finished job"))
}

/// With the commands that the README has for those who look for trouble.
async fn look_around(team: &Team<'_>) -> Result<()> {
    let agents = "kubectl logs --selector runner-pool=";
    team.world
        .until("the warm agent tells that it listens", async || {
            // Those of a container that has not started cannot be read.
            let logs = team.documented(agents, &[], "").await;
            let listens = logs.is_ok_and(|logs| logs.contains("Listening for Jobs"));
            Ok(listens.then_some(()))
        })
        .await?;
    let pod = "my-runners-agent-0";
    let own = [("POD", pod)];
    let length = team.token.len().to_string();
    let questions: [(&str, &[(&str, &str)], &str); 10] = [
        ("kubectl get runnerpools", &[], "Connected"),
        ("kubectl get pods --selector runner-pool=", &[], pod),
        ("kubectl get events ", &[], "AgentCreated"),
        ("kubectl describe runnerpool ", &[], "AsExpected"),
        ("kubectl describe pods --selector runner-pool=", &[], pod),
        ("kubectl describe pod ", &own, pod),
        ("kubectl logs POD", &own, "Listening for Jobs"),
        ("kubectl get secret pat-token ", &[], &length),
        ("kubectl explain ", &[], "azDoUrl"),
        ("kubectl get lease ", &[], RELEASE),
    ];
    for (command, replaced, answer) in questions {
        team.ask(command, replaced, answer).await?;
    }
    let operators = "kubectl logs --namespace azdo-operator --selector app.kubernetes.io/name=azdo-runner-operator --prefix --tail=-1";
    let log = team.world.documented(operators, &[], "").await?;
    ensure!(log.contains("Created Pod"), "the operator's log: {log}");
    Ok(())
}

/// A RunnerPool whose token is refused cannot be left in order, but at once.
pub(super) async fn forced_deletion(world: &World) -> Result<String> {
    let team = world.team("forced").await?;
    team.runner_pool("my-runners", json!({})).await?;
    team.simulator
        .with_world(|azure_devops| azure_devops.revoke_pat(team.name, &team.token))?;
    let status = ["runnerpool", "my-runners", "--namespace", team.name];
    world
        .until("the token is refused", async || {
            let pool = world.get(&status).await?;
            Ok((pool["status"]["connectionStatus"] == "Unauthorized").then_some(()))
        })
        .await?;
    team.documented("kubectl delete runnerpool ", &[], "--wait=false")
        .await?;
    world
        .until("it says that it waits", async || {
            let pool = world.get(&status).await?;
            Ok(pool["status"]["conditions"]
                .to_string()
                .contains("Deleting")
                .then_some(()))
        })
        .await?;
    team.documented("kubectl annotate runnerpool ", &[], "")
        .await?;
    let arguments = [&["wait", "--for=delete", "--timeout=1m"], &status[..]].concat();
    world.kubectl(&arguments).await?;
    Ok("it waited for a token that works, until it was told not to".to_owned())
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
