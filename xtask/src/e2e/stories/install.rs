//! From nothing to a finished job, with the commands of the README.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    e2e::{
        images,
        world::{NAMESPACE, POOL, RELEASE, Team, World},
    },
    output, repository,
};

/// Installs the operator where the Pod Security Standard `restricted` is enforced, and goes on as Helm tells.
pub(super) async fn install(world: &World) -> Result<String> {
    world.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    world
        .kubectl(&["label", "namespace", NAMESPACE, restricted])
        .await?;
    let begin = Instant::now();
    let told = world.install().await?;
    let deployment = world
        .get(&["deployment", RELEASE, "--namespace", NAMESPACE])
        .await?;
    let ready = &deployment["status"]["readyReplicas"];
    ensure!(*ready == 2, "{ready} replicas are ready instead of 2");
    let team = next_steps(world, &told).await?;
    let first = output::duration(begin.elapsed());
    team.until_none().await?;
    team.delete("basic-runners").await?;
    Ok(format!(
        "2 replicas are ready, under Pod Security restricted; {first} from helm install to a first finished job"
    ))
}

/// The three commands that Helm tells, to a first finished job.
async fn next_steps<'a>(world: &'a World, told: &str) -> Result<Team<'a>> {
    let commands = told.lines().map(str::trim);
    let commands: Vec<&str> = commands
        .filter(|line| line.starts_with("kubectl "))
        .collect();
    let [ready, secret, pool] = commands[..] else {
        bail!("Helm does not tell three commands: {told}");
    };
    let team = world.organization("default", &world.simulator)?;
    world.shell(ready, &[], "").await?;
    world
        .shell(secret, &[("YOUR_PAT_TOKEN", &team.token)], "")
        .await?;
    let example = "examples/basic.yaml";
    let manifest = fs::read_to_string(repository::root().join(example))?;
    let own = own_manifest(&team, &manifest)?;
    world.shell(pool, &[(example, &own)], "").await?;
    team.until_ready("basic-runners").await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    Ok(team)
}

/// The README's first RunnerPool.
pub(super) async fn quick_start(world: &World) -> Result<String> {
    let team = world.team("my-org").await?;
    let own = own_manifest(&team, &first_runner_pool()?)?;
    team.documented(
        "kubectl apply --filename ",
        &[("my-runners.yaml", &own)],
        "",
    )
    .await?;
    team.until_ready("my-runners").await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    look_around(&team).await?;
    world.look_for_tokens().await?;
    team.documented("kubectl delete runnerpool ", &[], "--timeout=3m")
        .await?;
    team.until_none().await?;
    Ok("the README's RunnerPool ran a job, and what to look at told of it".to_owned())
}

/// A manifest with what users change in it; the name of its file.
fn own_manifest(team: &Team<'_>, manifest: &str) -> Result<String> {
    let mut pool: Value = serde_saphyr::from_str(manifest).context("the RunnerPool is no YAML")?;
    pool["spec"]["azDoUrl"] = format!("{}{}", team.simulator.url(), team.name).into();
    pool["spec"]["pool"] = POOL.into();
    pool["spec"]["image"] = images::AGENT.into();
    let file = env::temp_dir().join(format!("azdo-e2e-{}.yaml", team.name));
    fs::write(&file, pool.to_string()).context("cannot write a manifest")?;
    Ok(file.to_string_lossy().into_owned())
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
    let length = team.token.len().to_string();
    let questions = [
        ("kubectl get runnerpools", "Connected"),
        ("kubectl get pods --selector runner-pool=", pod),
        ("kubectl get events ", "AgentCreated"),
        ("kubectl describe runnerpool ", "AsExpected"),
        ("kubectl describe pods --selector runner-pool=", pod),
        ("kubectl get secret pat-token ", &length),
        ("kubectl explain ", "azDoUrl"),
        ("kubectl get lease ", RELEASE),
    ];
    for (command, answer) in questions {
        team.ask(command, &[], answer).await?;
    }
    let own = [("POD", pod)];
    team.ask("kubectl describe pod ", &own, pod).await?;
    team.ask("kubectl logs POD", &own, "Listening for Jobs")
        .await?;
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
fn first_runner_pool() -> Result<String> {
    let file = repository::root().join("README.md");
    let readme = fs::read_to_string(&file).context("cannot read the README")?;
    let begin = readme
        .find("apiVersion: devops.opentools.mf/v1\nkind: RunnerPool")
        .context("there is no RunnerPool in the README")?;
    let manifest = readme[begin..].split("```").next().unwrap_or_default();
    Ok(manifest.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_readme_has_a_runner_pool() {
        let pool: Value = serde_saphyr::from_str(&first_runner_pool().unwrap()).unwrap();
        assert_eq!(pool["metadata"]["name"], "my-runners");
        assert_eq!(pool["spec"]["pool"], POOL);
    }
}
