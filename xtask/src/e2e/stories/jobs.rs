//! What agents do for their jobs: they come and go, keep data, trust certificates.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    e2e::{
        images,
        world::{NAMESPACE, Team, World},
    },
    output, repository,
};

/// The Service of the metrics.
const METRICS: &str = "azdo-runner-operator-metrics";

/// The team whose jobs are given the token.
const CONTROL: &str = "control";

/// None, then five at once, then none.
pub(super) async fn scale(world: &World) -> Result<String> {
    let team = world.team("scale").await?;
    team.runner_pool("runners", json!({ "maxAgents": 5 }))
        .await?;
    ensure!(
        team.pods().await?.is_empty(),
        "there are agents before there are jobs"
    );
    let begin = Instant::now();
    team.queue(5, Duration::from_secs(40))?;
    team.until_running(5).await?;
    let up = output::duration(begin.elapsed());
    ensure!(team.pods().await?.len() == 5, "not an agent for each job");
    until_measured(world, "scale", 5).await?;
    team.until_finished().await?;
    let finished = Instant::now();
    team.until_none().await?;
    let down = output::duration(finished.elapsed());
    team.delete("runners").await?;
    Ok(format!(
        "5 jobs run {up} after they were queued, nothing is left {down} after their end"
    ))
}

/// Waits until the replicas' metrics, at the addresses that the Service has, tell of one leader and so many busy agents.
async fn until_measured(world: &World, namespace: &str, busy: u32) -> Result<()> {
    let wanted = [
        "azdo_runner_leader 1".to_owned(),
        format!(
            "azdo_runner_agents{{namespace=\"{namespace}\",pool=\"runners\",state=\"busy\"}} {busy}"
        ),
    ];
    let looks = async || {
        let mut found = 0;
        for (pod, port) in endpoints(world).await? {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{port}/proxy/metrics");
            let figures = world.kubectl(&["get", "--raw", &path]).await?;
            let lines = figures.lines();
            found += lines
                .filter(|line| wanted.iter().any(|wanted| wanted == line))
                .count();
        }
        Ok((found == wanted.len()).then_some(()))
    };
    world.until("the metrics tell of it", looks).await
}

/// The Pods behind the Service of the metrics, each with its port.
async fn endpoints(world: &World) -> Result<Vec<(String, u64)>> {
    let service = format!("kubernetes.io/service-name={METRICS}");
    let slices = [
        "endpointslices",
        "--namespace",
        NAMESPACE,
        "--selector",
        &service,
    ];
    let slices = world.get(&slices).await?;
    let mut found = Vec::new();
    for slice in slices["items"].as_array().into_iter().flatten() {
        let port = slice["ports"][0]["port"].as_u64().unwrap_or_default();
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let pods = endpoints.filter_map(|endpoint| endpoint["targetRef"]["name"].as_str());
        found.extend(pods.map(|pod| (pod.to_owned(), port)));
    }
    Ok(found)
}

/// What an agent leaves in a kept claim is there for the next agent of its index. The init container has given the volume
/// to the agents' user.
pub(super) async fn storage(world: &World) -> Result<String> {
    let team = world.team("storage").await?;
    let step =
        "echo \"$AZP_AGENT_NAME $(id -u) $(ls /cache)\" >>/workspace/visitors; touch /cache/used";
    let fields = json!({
        "pvcs": [
            { "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" },
            { "name": "cache", "mountPath": "/cache", "storage": "1Gi", "deleteWithAgent": true },
        ],
        "initContainer": { "image": images::BASE },
        "extraEnv": [{ "name": "STAND_IN_STEP", "value": step }],
    });
    team.runner_pool("runners", fields).await?;
    for _ in 0..2 {
        team.queue(1, Duration::from_secs(1))?;
        team.until_finished().await?;
        team.until_none().await?;
        until_only_kept_claim(&team).await?;
    }
    let volume = volume(world, team.name).await?;
    let folder = Path::new(&volume);
    let visitors = fs::read_to_string(folder.join("visitors"))
        .with_context(|| format!("no job has written to {volume}"))?;
    ensure!(
        visitors == "runners-agent-0 1000 \n".repeat(2),
        "the jobs wrote {visitors:?}"
    );
    let owner = fs::metadata(folder)?;
    ensure!(
        (owner.uid(), owner.gid()) == (1000, 1000),
        "the volume belongs to {}:{}",
        owner.uid(),
        owner.gid()
    );
    look_around(&team).await?;
    team.delete("runners").await?;
    until_only_kept_claim(&team).await?;
    Ok("the second agent found what the first had left, and a fresh cache".to_owned())
}

/// The README's questions about claims.
async fn look_around(team: &Team<'_>) -> Result<()> {
    let own = [("my-runners", "runners")];
    let claims = "kubectl get pvc --selector runner-pool=";
    team.ask(claims, &own, "runners-agent-0-workspace").await?;
    team.ask("kubectl describe pvc ", &own, "Bound").await?;
    team.ask("kubectl get storageclass,", &[], "(default)")
        .await?;
    team.ask("kubectl auth can-i create ", &[], "yes").await
}

async fn until_only_kept_claim(team: &Team<'_>) -> Result<()> {
    let world = team.world;
    world
        .until("only the kept claim is left", async || {
            let claims = ["persistentvolumeclaims", "--namespace", team.name];
            let claims = world.get(&claims).await?;
            let names = claims["items"].as_array().into_iter().flatten();
            let names: Vec<_> = names.map(|claim| &claim["metadata"]["name"]).collect();
            ensure!(
                names
                    .iter()
                    .any(|name| *name == "runners-agent-0-workspace"),
                "the kept claim is gone: {names:?}"
            );
            Ok((names.len() == 1).then_some(()))
        })
        .await
}

/// The folder of the volume of a kept claim in a namespace.
async fn volume(world: &World, namespace: &str) -> Result<String> {
    let volumes = world.get(&["persistentvolumes"]).await?;
    let mut volumes = volumes["items"].as_array().into_iter().flatten();
    let volume = volumes
        .find(|volume| {
            let claim = &volume["spec"]["claimRef"];
            claim["namespace"] == namespace && claim["name"] == "runners-agent-0-workspace"
        })
        .context("there is no volume")?;
    let path = volume["spec"]["hostPath"]["path"].as_str();
    path.map(str::to_owned).context("the volume is no folder")
}

/// Operator and agents trust an Azure DevOps Server with a certificate of its own; agents that are not told of it do
/// not.
pub(super) async fn trust(world: &World) -> Result<String> {
    let certificates = certificates()?;
    let simulator =
        World::simulator_with_tls(&certificates.join("tls.crt"), &certificates.join("tls.key"))
            .await?;
    let authority = certificates.join("ca.crt");
    let file = format!("--from-file=ca.crt={}", authority.display());
    world
        .kubectl(&[
            "create",
            "configmap",
            "azure-devops-ca",
            &file,
            "--namespace",
            NAMESPACE,
        ])
        .await?;
    world
        .upgrade("--set customCA.configMap=azure-devops-ca")
        .await?;
    let team = world.team_of("trust", &simulator).await?;
    let own = |file: &str| format!("={}", certificates.join(file).display());
    let [authority, certificate, key] = ["ca.crt", "tls.crt", "tls.key"].map(own);
    team.documented(
        "kubectl create secret generic my-ca-cert ",
        &[("=ca.crt", &authority)],
        "",
    )
    .await?;
    team.documented(
        "kubectl create secret tls proxy-cert ",
        &[("=proxy.crt", &certificate), ("=proxy.key", &key)],
        "",
    )
    .await?;
    for told in ["authority", "notAfter="] {
        team.ask("kubectl get secret my-ca-cert ", &[], told)
            .await?;
    }
    let secrets = json!([{ "secretName": "my-ca-cert" }, { "secretName": "proxy-cert" }]);
    team.runner_pool("runners", json!({ "certTrustStore": secrets }))
        .await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    team.delete("runners").await?;

    team.runner_pool("strangers", json!({ "minAgents": 1 }))
        .await?;
    let refusal = "is not trusted: mount that of its authority";
    let own = [("POD", "strangers-agent-0")];
    world
        .until(
            "an agent says that it does not trust the certificate",
            async || {
                // Those of a container that has not started cannot be read.
                let log = team.documented("kubectl logs POD", &own, "").await;
                Ok(log.is_ok_and(|log| log.contains(refusal)).then_some(()))
            },
        )
        .await?;
    team.delete("strangers").await?;
    simulator.shutdown().await;
    Ok("by certTrustStore; without it the agent says what is missing".to_owned())
}

/// An authority, and a certificate of it for the simulator's address.
fn certificates() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join("azdo-e2e-certificates");
    fs::create_dir_all(&folder)?;
    let address = control_plane::node::ADDRESS;
    fs::write(
        folder.join("extensions"),
        format!("subjectAltName=IP:{address}\n"),
    )?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let commands = [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt"),
        format!("req {key} -subj /CN=azure-devops -keyout tls.key -out tls.csr"),
        "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out tls.crt".to_owned(),
    ];
    for arguments in commands {
        let mut openssl = repository::command("openssl", &arguments.split(' ').collect::<Vec<_>>());
        openssl.current_dir(&folder);
        repository::output(openssl)?;
    }
    Ok(folder)
}

/// What a step of a job can read of the processes beside it does not have the token, nor has anything else that users
/// see.
pub(super) async fn token(world: &World) -> Result<String> {
    let team = world.team("token").await?;
    // All that the job's user may read of any process, and the files of the agent.
    let step = "for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr '\\0' '\\n' <$file; done 2>/dev/null; \
        grep --recursive --text --no-messages . /azp /opt/azure-pipelines-agent/.* /tmp 2>/dev/null; echo THE END";
    let fields = |more: &[Value]| {
        let step = [json!({ "name": "STAND_IN_STEP", "value": step })];
        let all = [&step, more].concat();
        json!({ "extraEnv": all })
    };
    team.runner_pool("runners", fields(&[])).await?;
    team.queue(1, Duration::from_secs(2))?;
    team.until_finished().await?;
    team.until_none().await?;
    let seen = logs_of(world, "token_runners-agent")?;
    ensure!(
        seen.contains("AZP_AGENT_NAME=runners-agent-0") && seen.contains("THE END"),
        "the job has not looked at its neighbours: {seen}"
    );
    ensure!(
        world.canaries.found_in(&seen).is_empty(),
        "the job has seen the token"
    );
    team.delete("runners").await?;
    logs(world)?;

    // A token that is given to the jobs is found.
    let control = world.team(CONTROL).await?;
    let leak = json!({ "name": "LEAK", "valueFrom": { "secretKeyRef": { "name": "pat-token", "key": "token" } } });
    control.runner_pool("leaks", fields(&[leak])).await?;
    control.queue(1, Duration::from_secs(2))?;
    control.until_finished().await?;
    control.until_none().await?;
    control.delete("leaks").await?;
    let seen = logs_of(world, "control_leaks-agent")?;
    ensure!(
        world.canaries.found_in(&seen) == [CONTROL],
        "a token that was given to a job was not found: this story proves nothing"
    );
    Ok("in no log, event, status and ConfigMap, and in nothing that a job can read".to_owned())
}

/// No token is in the log of a container, but for the control's in its own.
pub(super) fn logs(world: &World) -> Result<String> {
    let logs = world.canaries.logs()?;
    let of_control = format!("/{CONTROL}_");
    for (path, log) in &logs {
        let mut found = world.canaries.found_in(log);
        if path.to_string_lossy().contains(&of_control) {
            found.retain(|owner| owner != CONTROL);
        }
        ensure!(
            found.is_empty(),
            "{} has tokens of {found:?}",
            path.display()
        );
    }
    Ok(format!("no token is in any of {} logs", logs.len()))
}

pub(super) fn logs_of(world: &World, pod: &str) -> Result<String> {
    let logs = world.canaries.logs()?;
    let of_pod = logs
        .into_iter()
        .filter(|(path, _)| path.to_string_lossy().contains(pod));
    Ok(of_pod.map(|(_, log)| log).collect())
}
