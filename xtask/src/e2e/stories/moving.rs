//! Moving over from the former operator: what it leaves in a cluster is taken over, and no job is lost.
//!
//! The objects are as that operator and its chart make them (docs/migrate-from-original.md lists them); it does not run
//! here.

use std::{env, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use azure_devops_simulator::Outcome;
use serde_json::{Value, json};

use super::releases;
use crate::{
    chart,
    e2e::{
        images,
        world::{NAMESPACE, OWN_IMAGE, POOL, RELEASE, Team, World},
    },
};

const JOB: Duration = Duration::from_secs(25);
/// As in the guide.
const POOL_NAME: &str = "my-runners";
/// What the guide calls the release, and what it is called here; its Deployment.
const OWN_RELEASE: [(&str, &str); 1] = [("my-azdo-operator", RELEASE)];
const OWN_DEPLOYMENT: [(&str, &str); 1] = [("my-azdo-operator-azdo-runner-operator", RELEASE)];
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
    install_former(world).await?;
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
    let claims = claims(&team).await?;

    let listed = world.documented("helm list ", &[], "").await?;
    ensure!(listed.contains(RELEASE), "{listed}");
    let scale = "kubectl scale deployment ";
    world.documented(scale, &OWN_DEPLOYMENT, "").await?;
    delete_webhooks(&team).await?;
    let busy = busy_pod(&team).await?;
    move_over(world).await?;
    ensure!(
        releases::knows_new_field(world).await?,
        "the CustomResourceDefinition is still the former one"
    );
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
    let table = world
        .documented("kubectl get runnerpools --all-namespaces", &[], "")
        .await?;
    ensure!(table.contains("Connected"), "{table}");
    world
        .documented("kubectl get pods --selector app=azdo-runner ", &[], "")
        .await?;
    let pool = ["runnerpool", POOL_NAME, "--namespace", team.name];
    let finalizers = &world.get(&pool).await?["metadata"]["finalizers"];
    ensure!(
        !finalizers.to_string().contains(FINALIZER),
        "the former finalizer is still there: {finalizers}"
    );

    team.delete(POOL_NAME).await?;
    team.until_none().await?;
    let left = self::claims(&team).await?;
    ensure!(
        claims.len() == 2 && claims.iter().all(|claim| left.contains(claim)),
        "of the claims {claims:?} only {left:?} are left"
    );
    go_back(&team).await?;
    move_over(world).await?;
    Ok(
        "idle agents were replaced at once, the busy one after its job; kept claims outlived all"
            .to_owned(),
    )
}

/// With the guide's command.
async fn move_over(world: &World) -> Result<()> {
    let changes = [&OWN_RELEASE[..], &OWN_IMAGE].concat();
    world
        .documented("helm upgrade my-azdo-operator ", &changes, "")
        .await?;
    world
        .until(
            "the operator has as many Pods as it is to have",
            async || Ok((super::operators(world).await?.len() == 2).then_some(())),
        )
        .await
}

/// As the guide says: the former chart is there again, and a RunnerPool can be deleted under it.
async fn go_back(team: &Team<'_>) -> Result<()> {
    let world = team.world;
    team.runner_pool(POOL_NAME, json!({})).await?;
    world.documented("helm rollback ", &OWN_RELEASE, "").await?;
    let deployment = ["deployment", RELEASE, "--namespace", NAMESPACE];
    let image =
        &world.get(&deployment).await?["spec"]["template"]["spec"]["containers"][0]["image"];
    ensure!(
        *image == images::BASE,
        "the Deployment has the image {image}"
    );
    world
        .until("only the former operator is there", async || {
            Ok((super::operator_pods(world).await?.len() == 1).then_some(()))
        })
        .await?;
    team.documented("kubectl patch runnerpool ", &[], "")
        .await?;
    team.delete(POOL_NAME).await
}

/// A release that looks like one of the former operator's chart, in place of ours, and a definition that is no part of it.
async fn install_former(world: &World) -> Result<()> {
    world.documented(releases::UNINSTALL, &[], "--wait").await?;
    world.kubectl(&["delete", "crd", releases::CRD]).await?;
    let mut crd = chart::read("files/crd.yaml")?;
    releases::forget_new_field(&mut crd);
    world.apply(&crd).await?;
    let established = format!("crd/{}", releases::CRD);
    world
        .kubectl(&["wait", "--for=condition=Established", &established])
        .await?;
    let chart = former_chart()?;
    let install = ["install", RELEASE, &chart, "--namespace", NAMESPACE];
    // Helm 3, which installed it, knew no other way.
    let as_then = ["--server-side=false", "--wait"];
    world
        .helm(&[&install[..], &as_then].concat())
        .await
        .map(drop)
}

/// Objects of the names and labels that the former chart gives them; its program does nothing.
fn former_chart() -> Result<String> {
    let folder = env::temp_dir().join("azdo-e2e-chart-of-the-former-operator");
    fs::create_dir_all(folder.join("templates"))?;
    let labels = json!({
        "app.kubernetes.io/name": "azdo-runner-operator", "app.kubernetes.io/instance": RELEASE,
    });
    let metadata = json!({ "name": RELEASE, "labels": labels });
    let rights = json!({ "apiGroups": ["devops.opentools.mf"], "resources": ["runnerpools"], "verbs": ["*"] });
    let role =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RELEASE });
    let container = json!({
        "name": "azdo-runner-operator",
        "image": images::BASE,
        "ports": [{ "name": "https", "containerPort": 8443 }],
        "volumeMounts": [{ "name": "certificates", "mountPath": "/certs" }],
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "runAsNonRoot": true, "runAsUser": 1000,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    let pod = json!({
        "serviceAccountName": RELEASE,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{ "name": "certificates", "emptyDir": {} }],
    });
    let deployment = json!({
        "replicas": 1,
        "selector": { "matchLabels": labels },
        "template": { "metadata": { "labels": labels }, "spec": pod },
    });
    let ports = json!([{ "name": "https", "port": 443, "targetPort": "https" }]);
    let objects = [
        ("v1", "ServiceAccount", json!({})),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            json!({ "rules": [rights] }),
        ),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            json!({
                "roleRef": role,
                "subjects": [{ "kind": "ServiceAccount", "name": RELEASE, "namespace": NAMESPACE }],
            }),
        ),
        (
            "v1",
            "Service",
            json!({ "spec": { "selector": labels, "ports": ports } }),
        ),
        ("apps/v1", "Deployment", json!({ "spec": deployment })),
    ];
    for (version, kind, mut object) in objects {
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        object["metadata"] = metadata.clone();
        let file = folder.join("templates").join(format!("{kind}.yaml"));
        fs::write(file, object.to_string())?;
    }
    let about = json!({ "apiVersion": "v2", "name": "azdo-runner-operator", "version": "0.0.1" });
    fs::write(folder.join("Chart.yaml"), about.to_string())?;
    Ok(folder.to_string_lossy().into_owned())
}

/// The webhooks of an operator that is gone refuse everything. The guide says to delete them.
async fn delete_webhooks(team: &Team<'_>) -> Result<()> {
    let world = team.world;
    leave_webhooks(world).await?;
    let change = [
        "annotate",
        "runnerpool",
        POOL_NAME,
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
        let delete = format!("kubectl delete {} {name}", kind.to_lowercase());
        world.documented(&delete, &[], "").await?;
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

/// Names and uids of the claims that are not about to go.
async fn claims(team: &Team<'_>) -> Result<Vec<(Value, Value)>> {
    let list = team
        .world
        .get(&["persistentvolumeclaims", "--namespace", team.name])
        .await?;
    let claims = list["items"].as_array().into_iter().flatten();
    let staying = claims.filter(|claim| claim["metadata"]["deletionTimestamp"].is_null());
    let name = |claim: &Value| {
        (
            claim["metadata"]["name"].clone(),
            claim["metadata"]["uid"].clone(),
        )
    };
    Ok(staying.map(name).collect())
}

/// A RunnerPool with two warm agents, of which the first has a claim.
async fn leave_objects(team: &Team<'_>) -> Result<()> {
    let url = format!("{}{}", team.simulator.url(), team.name);
    let pvcs = json!([{ "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" }]);
    let pool = json!({
        "apiVersion": "devops.opentools.mf/v1",
        "kind": "RunnerPool",
        "metadata": { "name": POOL_NAME, "namespace": team.name, "finalizers": [FINALIZER] },
        "spec": {
            "azDoUrl": url, "pool": POOL, "patSecretName": "pat-token", "image": images::AGENT,
            "minAgents": 2, "maxAgents": 3, "pvcs": pvcs,
        },
    });
    team.world.apply(&pool).await?;
    let owner = uid(
        team.world,
        &["runnerpool", POOL_NAME, "--namespace", team.name],
    )
    .await?;
    let owners = json!([{
        "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": POOL_NAME, "uid": owner,
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
            "name": format!("{POOL_NAME}-agent-{index}-workspace"),
            "namespace": namespace,
            "labels": {
                "app": "azdo-runner", "runner-pool": POOL_NAME, "managed-by": "azdo-runner-operator",
                "agent-index": index.to_string(), "pvc-name": "workspace",
            },
            "ownerReferences": owners,
        },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    })
}

fn agent(namespace: &str, url: &str, index: u8, owners: &Value) -> Value {
    let name = format!("{POOL_NAME}-agent-{index}");
    let volume = format!("{name}-workspace");
    let token = json!({ "secretKeyRef": { "name": "pat-token", "key": "token" } });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app": "azdo-runner", "runner-pool": POOL_NAME, "managed-by": "azdo-runner-operator",
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
