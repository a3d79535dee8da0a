//! What `podTemplate` is for: the recipes in `examples/`, as far as one node can show them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use control_plane::node::NAME as NODE;
use serde_json::{Value, json};

use super::jobs::logs_of;
use crate::{
    e2e::{
        images,
        world::{Team, World},
    },
    repository,
};

/// A sidecar and a work volume come and go with their agent; agents go where nodes are kept for them.
pub(super) async fn recipes(world: &World) -> Result<String> {
    let team = world.team("recipes").await?;
    sidecar(world, &team).await?;
    placement(world, &team).await?;
    Ok("a native sidecar and an ephemeral volume ended with their agent, and another one waited for its node".to_owned())
}

/// `examples/sidecar.yaml`, with a stand-in for what builds images.
async fn sidecar(world: &World, team: &Team<'_>) -> Result<()> {
    let mut fields = fields("sidecar.yaml")?;
    let work = fields["extraEnv"][0]["value"].as_str();
    let work = work.context("the example has no work folder")?.to_owned();
    let template = &mut fields["podTemplate"]["spec"];
    let builder =
        "id -u >/run/buildkit/buildkitd.sock; trap 'exit 0' TERM; while :; do sleep 1; done";
    let sidecar = &mut template["initContainers"][0];
    ensure!(
        sidecar["restartPolicy"] == "Always",
        "the example has no sidecar"
    );
    sidecar["image"] = images::BASE.into();
    sidecar["command"] = json!(["sh", "-c", builder]);
    sidecar["args"] = Value::Null;
    // Volumes of this node are folders, to which no group is given.
    let own = json!({
        "name": "own", "image": images::BASE, "command": ["chown", "1000:1000", work],
        "securityContext": { "runAsUser": 0, "runAsNonRoot": false },
        "volumeMounts": [{ "name": "work", "mountPath": work }],
    });
    let first = template["initContainers"].as_array_mut();
    first.context("no init containers")?.insert(0, own);
    let step = format!(
        "echo \"the builder is $(cat /run/buildkit/buildkitd.sock)\"; cd {work} && touch checkout && ls"
    );
    let variables = fields["extraEnv"].as_array_mut();
    variables
        .context("no variables")?
        .push(json!({ "name": "STAND_IN_STEP", "value": step }));
    team.runner_pool("image-builders", fields).await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    // A Pod whose sidecar went on would never end.
    team.until_none().await?;
    let seen = logs_of(world, "recipes_image-builders-agent")?;
    ensure!(
        seen.contains("the builder is 1000") && seen.contains("checkout"),
        "the job has not seen both its sidecar and its work folder: {seen}"
    );
    let claims = ["persistentvolumeclaims", "--namespace", team.name];
    world
        .until("the claim of the work folder is gone", async || {
            let claims = world.get(&claims).await?;
            Ok((claims["items"] == json!([])).then_some(()))
        })
        .await?;
    team.delete("image-builders").await
}

/// `examples/pod-template.yaml`, on a node that is kept for it.
async fn placement(world: &World, team: &Team<'_>) -> Result<()> {
    let mut fields = fields("pod-template.yaml")?;
    let template = &mut fields["podTemplate"]["spec"];
    let selector = template["nodeSelector"].as_object_mut();
    // Whatever this machine is.
    selector
        .context("the example selects no nodes")?
        .remove("kubernetes.io/arch");
    template["containers"][0]["resources"]["requests"] = json!({ "cpu": "50m", "memory": "64Mi" });
    let here = ["--namespace", team.name];
    world
        .kubectl(&[&here[..], &["create", "serviceaccount", "builds"]].concat())
        .await?;
    let secret = [
        "create",
        "secret",
        "docker-registry",
        "registry-credentials",
        "--docker-server=registry.example.com",
        "--docker-username=reader",
        "--docker-password=none",
    ];
    world.kubectl(&[&here[..], &secret].concat()).await?;
    team.runner_pool("large-runners", fields).await?;
    team.queue(1, Duration::from_secs(1))?;
    world
        .until("the Pod waits for its node", async || {
            let pods = team.pods().await?;
            let conditions = pods.first().map(|pod| &pod["status"]["conditions"]);
            let conditions = conditions.and_then(Value::as_array);
            let mut conditions = conditions.into_iter().flatten();
            Ok(conditions
                .any(|condition| condition["reason"] == "Unschedulable")
                .then_some(()))
        })
        .await?;
    let taint = ["taint", "node", NODE, "dedicated=builds:NoSchedule"];
    world.kubectl(&taint).await?;
    let ran = async {
        let label = ["label", "node", NODE, "node-pool=builds"];
        world.kubectl(&label).await?;
        run(team).await
    };
    let ran = ran.await;
    // The node is there for all the other stories, too.
    let untaint = ["taint", "node", NODE, "dedicated-"];
    let unlabel = ["label", "node", NODE, "node-pool-"];
    let given_back = [world.kubectl(&untaint).await, world.kubectl(&unlabel).await];
    ran?;
    given_back.into_iter().collect::<Result<Vec<_>>>()?;
    team.delete("large-runners").await?;
    let made = ["serviceaccount/builds", "secret/registry-credentials"];
    world
        .kubectl(&[&here[..], &["delete"], &made].concat())
        .await?;
    Ok(())
}

/// The job runs in the one Pod that waited for it.
async fn run(team: &Team<'_>) -> Result<()> {
    let pods = team.pods().await?;
    let pod = &pods.first().context("there is no Pod")?["spec"];
    ensure!(
        pods.len() == 1
            && pod["serviceAccountName"] == "builds"
            && pod["imagePullSecrets"] == json!([{ "name": "registry-credentials" }]),
        "the Pod is {pod}"
    );
    team.until_finished().await?;
    team.until_none().await
}

/// The fields of an example's spec, but for those that a team has its own for.
fn fields(example: &str) -> Result<Value> {
    let file = repository::root().join("examples").join(example);
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut example: Value = serde_saphyr::from_str(&text)?;
    let spec = example["spec"].as_object_mut();
    let spec = spec.context("the example has no spec")?;
    for field in ["azDoUrl", "pool", "patSecretName", "image"] {
        spec.remove(field)
            .with_context(|| format!("the example has no {field}"))?;
    }
    Ok(example["spec"].take())
}
