//! Moving over from the former operator: what it leaves in a cluster is taken over, and no job is lost.
//!
//! The objects are as that operator makes them (docs/migrate-from-original.md lists them); it does not run here.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use azure_devops_simulator::Outcome;
use serde_json::{Value, json};

use crate::e2e::{
    images,
    world::{NAMESPACE, POOL, RELEASE, Team, World},
};

const JOB: Duration = Duration::from_secs(25);
const CLAIM: &str = "runners-agent-0-workspace";
const FINALIZER: &str = "devops.opentools.mf/runnerpoolfinalizer";
const WEBHOOKS: [(&str, &str); 2] = [
    (
        "ValidatingWebhookConfiguration",
        "azdo-runner-validating-webhook",
    ),
    (
        "MutatingWebhookConfiguration",
        "azdo-runner-mutating-webhook",
    ),
];

pub(super) async fn moving(world: &World) -> Result<String> {
    let team = world.team("moving").await?;
    // Meanwhile nobody acts, as before the new operator is installed.
    replicas(world, 0).await?;
    leave_objects(&team).await?;
    world
        .until("the former operator's agents are online", async || {
            let agents = team.agents();
            let online = agents.iter().filter(|agent| agent.online).count();
            Ok((online == 2).then_some(()))
        })
        .await?;
    team.queue(1, JOB)?;
    team.until_running(1).await?;
    let claim = claim_uid(&team).await?;
    delete_webhooks(&team).await?;

    let busy = busy_pod(&team).await?;
    replicas(world, 2).await?;
    world
        .until("the idle agent is replaced", async || {
            let pods = pods(&team).await?;
            let replaced = pods
                .iter()
                .any(|pod| has_owner_mark(pod) && pod["status"]["phase"] == "Running");
            Ok(replaced.then_some(()))
        })
        .await?;
    ensure!(
        busy == busy_pod(&team).await?,
        "the busy agent was replaced before its job was over"
    );
    team.until_finished().await?;
    world
        .until("no agent of the former operator is left", async || {
            let pods = pods(&team).await?;
            Ok((!pods.is_empty() && pods.iter().all(has_owner_mark)).then_some(()))
        })
        .await?;
    let pool = ["runnerpool", "runners", "--namespace", team.name];
    let finalizers = &world.get(&pool).await?["metadata"]["finalizers"];
    ensure!(
        !finalizers.to_string().contains(FINALIZER),
        "the former finalizer is still there: {finalizers}"
    );

    // As the guide says, so that the data outlives the RunnerPool.
    let patch = r#"[{"op":"remove","path":"/metadata/ownerReferences"}]"#;
    let patch = [
        "patch",
        "persistentvolumeclaim",
        CLAIM,
        "--type=json",
        "--patch",
        patch,
    ];
    let namespace = ["--namespace", team.name];
    world.kubectl(&[&patch[..], &namespace].concat()).await?;
    team.delete("runners").await?;
    team.until_none().await?;
    ensure!(claim == claim_uid(&team).await?, "the claim was made anew");
    Ok(
        "the idle agent was replaced at once, the busy one after its job; the claim is in use"
            .to_owned(),
    )
}

/// The webhooks of an operator that is gone refuse everything. The guide says to delete them.
async fn delete_webhooks(team: &Team<'_>) -> Result<()> {
    let world = team.world;
    leave_webhooks(world).await?;
    let change = [
        "annotate",
        "runnerpool",
        "runners",
        "a=b",
        "--namespace",
        team.name,
    ];
    let refusal = match world.kubectl(&change).await {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    ensure!(
        refusal.contains("failed calling webhook"),
        "the former webhooks refuse nothing, they need not be deleted: {refusal}"
    );
    for (kind, name) in WEBHOOKS {
        world.kubectl(&["delete", kind, name]).await?;
    }
    Ok(())
}

/// The uid of the Pod whose agent has the running job.
async fn busy_pod(team: &Team<'_>) -> Result<Value> {
    let jobs = team.jobs();
    let job = jobs.first().context("there is no job")?;
    ensure!(
        job.outcome == Outcome::Running,
        "the job does not run any more"
    );
    let agent = job.agent.as_deref().context("nobody has the job")?;
    uid(team.world, &["pod", agent, "--namespace", team.name]).await
}

async fn claim_uid(team: &Team<'_>) -> Result<Value> {
    uid(
        team.world,
        &["persistentvolumeclaim", CLAIM, "--namespace", team.name],
    )
    .await
}

async fn replicas(world: &World, count: u8) -> Result<()> {
    let replicas = format!("--replicas={count}");
    let deployment = format!("deployment/{RELEASE}");
    world
        .kubectl(&["scale", &deployment, "--namespace", NAMESPACE, &replicas])
        .await?;
    world
        .kubectl(&[
            "rollout",
            "status",
            &deployment,
            "--namespace",
            NAMESPACE,
            "--timeout=2m",
        ])
        .await?;
    world
        .until(
            "the operator has as many Pods as it is to have",
            async || {
                let pods = super::operators(world).await?;
                Ok((pods.len() == usize::from(count)).then_some(()))
            },
        )
        .await
}

/// A RunnerPool with two warm agents, of which the first has a claim.
async fn leave_objects(team: &Team<'_>) -> Result<()> {
    let url = format!("{}{}", team.simulator.url(), team.name);
    let pvcs = json!([{ "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" }]);
    let pool = json!({
        "apiVersion": "devops.opentools.mf/v1",
        "kind": "RunnerPool",
        "metadata": { "name": "runners", "namespace": team.name, "finalizers": [FINALIZER] },
        "spec": {
            "azDoUrl": url, "pool": POOL, "patSecretName": "pat-token", "image": images::AGENT,
            "minAgents": 2, "maxAgents": 3, "pvcs": pvcs,
        },
    });
    team.world.apply(&pool).await?;
    let owner = uid(
        team.world,
        &["runnerpool", "runners", "--namespace", team.name],
    )
    .await?;
    let owners = json!([{
        "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": "runners", "uid": owner,
        "controller": true, "blockOwnerDeletion": true,
    }]);
    for index in 0..2 {
        team.world.apply(&claim(team.name, index, &owners)).await?;
        team.world
            .apply(&agent(team.name, &url, index, &owners))
            .await?;
    }
    Ok(())
}

fn claim(namespace: &str, index: u8, owners: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": format!("runners-agent-{index}-workspace"),
            "namespace": namespace,
            "labels": {
                "app": "azdo-runner", "runner-pool": "runners", "managed-by": "azdo-runner-operator",
                "agent-index": index.to_string(), "pvc-name": "workspace",
            },
            "ownerReferences": owners,
        },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    })
}

fn agent(namespace: &str, url: &str, index: u8, owners: &Value) -> Value {
    let name = format!("runners-agent-{index}");
    let volume = format!("{name}-workspace");
    let token = json!({ "secretKeyRef": { "name": "pat-token", "key": "token" } });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app": "azdo-runner", "runner-pool": "runners", "managed-by": "azdo-runner-operator",
                "min-agent": "true", "capability": "base", "capability-aware": "false",
            },
            "ownerReferences": owners,
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "agent",
                "image": images::AGENT,
                "imagePullPolicy": "IfNotPresent",
                "env": [
                    { "name": "AZP_URL", "value": url },
                    { "name": "AZP_POOL", "value": POOL },
                    { "name": "AZP_TOKEN", "valueFrom": token },
                    { "name": "AZP_AGENT_NAME", "value": name },
                    { "name": "AZP_CAPABILITY", "value": "base" },
                ],
                "volumeMounts": [{ "name": volume, "mountPath": "/workspace" }],
                "resources": {
                    "requests": { "cpu": "100m", "memory": "256Mi" },
                    "limits": { "cpu": "2", "memory": "4Gi" },
                },
                "lifecycle": { "preStop": { "exec": { "command": [
                    "/bin/bash", "-c", "pkill -TERM Agent.Listener || true; sleep 5",
                ] } } },
            }],
            "volumes": [{ "name": volume, "persistentVolumeClaim": { "claimName": volume } }],
        },
    })
}

/// They point to a Service that is gone with its chart, and refuse what they cannot check.
async fn leave_webhooks(world: &World) -> Result<()> {
    for (kind, name) in WEBHOOKS {
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": name },
            "webhooks": [{
                "name": "runnerpool.devops.opentools.mf.v1",
                "clientConfig": { "service": { "name": "former", "namespace": NAMESPACE, "path": "/" } },
                "rules": [{
                    "operations": ["CREATE", "UPDATE"], "apiGroups": ["devops.opentools.mf"],
                    "apiVersions": ["v1"], "resources": ["runnerpools"],
                }],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "matchPolicy": "Exact",
            }],
        });
        world.apply(&configuration).await?;
    }
    Ok(())
}

async fn pods(team: &Team<'_>) -> Result<Vec<Value>> {
    let mut pods = team.pods().await?;
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

/// Agents of this operator carry it, those of the former one do not.
fn has_owner_mark(pod: &Value) -> bool {
    let environment = pod["spec"]["containers"][0]["env"]
        .as_array()
        .into_iter()
        .flatten();
    environment
        .into_iter()
        .any(|variable| variable["name"] == "AZDO_RUNNER_OWNER")
}

async fn uid(world: &World, arguments: &[&str]) -> Result<Value> {
    Ok(world.get(arguments).await?["metadata"]["uid"].clone())
}
