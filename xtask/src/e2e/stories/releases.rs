//! The release changes: what it serves, its version, its end.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    e2e::{
        images,
        world::{NAMESPACE, OWN_IMAGE, RELEASE, World},
    },
    repository,
};

pub(super) const CRD: &str = "runnerpools.devops.opentools.mf";
/// How the command begins that ends the release.
pub(super) const UNINSTALL: &str = "helm uninstall ";
/// A field that the former version of the chart does not know.
const NEW_FIELD: &str = "priority";

/// With `watchNamespaces`, RunnerPools elsewhere are left alone, and there are no rights there.
pub(super) async fn namespaces(world: &World) -> Result<String> {
    let (served, other) = (world.team("team-a").await?, world.team("team-b").await?);
    world.upgrade("--set 'watchNamespaces={team-a}'").await?;
    other.apply("runners", json!({})).await?;
    served.runner_pool("runners", json!({})).await?;
    served.queue(1, Duration::from_secs(1))?;
    served.until_finished().await?;
    let left_alone = world
        .get(&["runnerpool", "runners", "--namespace", other.name])
        .await?;
    ensure!(
        left_alone["status"].is_null() && left_alone["metadata"]["finalizers"].is_null(),
        "the operator has been at a RunnerPool elsewhere: {left_alone}"
    );
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:{RELEASE}");
    for (namespace, right) in [(served.name, "yes"), (other.name, "no")] {
        let can = [
            "auth",
            "can-i",
            "get",
            "secrets/pat-token",
            "--namespace",
            namespace,
            &account,
        ];
        // It ends with a failure when it says no.
        let answer = world
            .kubectl(&can)
            .await
            .unwrap_or_else(|error| error.to_string());
        ensure!(
            answer.trim().ends_with(right),
            "secrets in {namespace}: {answer}"
        );
    }
    served.delete("runners").await?;
    world.upgrade("--set watchNamespaces=null").await?;
    other.delete("runners").await?;
    Ok("the one that is not listed was left alone".to_owned())
}

/// All objects but for those that come and go by themselves.
pub(super) async fn inventory(world: &World) -> Result<BTreeSet<String>> {
    let kinds = world
        .kubectl(&["api-resources", "--verbs=list", "--output=name"])
        .await?;
    let passing = [
        "events",
        "pods",
        "replicasets",
        "endpointslices",
        "endpoints",
        "leases",
        "podmetrics",
    ];
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !passing.contains(&kind.split('.').next().unwrap_or_default()))
        .collect();
    let columns = "--output=custom-columns=A:.kind,B:.metadata.namespace,C:.metadata.name";
    let list = world
        .kubectl(&[
            "get",
            &kinds.join(","),
            "--all-namespaces",
            "--no-headers",
            columns,
        ])
        .await?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(list.lines().map(words).collect())
}

/// What the README says of the end. `before` is what there was before the installation.
pub(super) async fn uninstall(world: &World, before: &BTreeSet<String>) -> Result<String> {
    world
        .documented("kubectl delete runnerpools ", &[], "")
        .await?;
    world.documented(UNINSTALL, &[], "--wait").await?;
    let after = inventory(world).await?;
    let left: Vec<&String> = after
        .difference(before)
        .filter(|object| !is_documented(object))
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(
        after.contains(&format!("CustomResourceDefinition <none> {CRD}")),
        "the CustomResourceDefinition is gone"
    );
    Ok("the CustomResourceDefinition and kept claims stay".to_owned())
}

/// The definition, kept claims with their volumes, and what the stories made themselves or the cluster makes in each
/// namespace.
fn is_documented(object: &str) -> bool {
    let parts: Vec<&str> = object.split(' ').collect();
    let [kind, namespace, name] = parts[..] else {
        return false;
    };
    match kind {
        "CustomResourceDefinition" => name == CRD,
        "APIService" => name == "v1.devops.opentools.mf", // made by the API server of the definition
        "PersistentVolumeClaim" | "PersistentVolume" | "Namespace" => true,
        "ServiceAccount" => name == "default",
        "ConfigMap" => ["kube-root-ca.crt", "azure-devops-ca"].contains(&name),
        "Secret" => namespace != NAMESPACE,
        _ => false,
    }
}

/// `helm upgrade` brings the new schema.
pub(super) async fn schema(world: &World) -> Result<String> {
    world.documented("kubectl delete crd ", &[], "").await?;
    let former = former_chart()?;
    let chart = ("./charts/azdo-runner-operator", former.to_string_lossy());
    let changes = [&OWN_IMAGE[..], &[(chart.0, &chart.1)]].concat();
    world.documented("helm install ", &changes, "").await?;
    ensure!(
        !knows_new_field(world).await?,
        "the former chart has the field already"
    );
    world.upgrade("").await?;
    ensure!(
        knows_new_field(world).await?,
        "the schema is the former one"
    );
    outlive(world).await?;
    Ok(format!(
        "{NEW_FIELD} came with it; a RunnerPool that outlived the release could be deleted"
    ))
}

/// Ends the release while there is a RunnerPool. As the README says, it stays until its finalizer is taken off.
async fn outlive(world: &World) -> Result<()> {
    let team = world.team("outlive").await?;
    team.runner_pool("my-runners", json!({})).await?;
    world.documented(UNINSTALL, &[], "--wait").await?;
    team.documented("kubectl delete runnerpool ", &[], "--wait=false")
        .await?;
    let pool = ["runnerpool", "my-runners", "--namespace", team.name];
    let left = world.get(&pool).await?;
    ensure!(
        !left["metadata"]["deletionTimestamp"].is_null(),
        "nobody has deleted it: {left}"
    );
    team.documented("kubectl patch runnerpool ", &[], "")
        .await?;
    let arguments = [&["wait", "--for=delete", "--timeout=1m"], &pool[..]].concat();
    world.kubectl(&arguments).await.map(drop)
}

/// The manifests for those without Helm.
pub(super) async fn plain(world: &World) -> Result<String> {
    let folder = env::temp_dir().join("azdo-e2e-manifests");
    let mut copy = repository::command("cp", &["--recursive"]);
    copy.arg(repository::root().join("deploy")).arg(&folder);
    repository::output(copy)?;
    change(&folder.join("kustomization.yaml"), |kustomization| {
        let image = &mut kustomization["images"][0];
        image["newName"] = images::OPERATOR.into();
        image["newTag"] = images::TAG.into();
    })?;
    let folder = folder.to_string_lossy();
    world
        .documented(
            "kubectl apply --server-side --kustomize ",
            &[("deploy", &folder)],
            "",
        )
        .await?;
    let deployment = format!("deployment/{RELEASE}");
    let ready = ["rollout", "status", &deployment, "--namespace", NAMESPACE];
    world
        .kubectl(&[&ready[..], &["--timeout=2m"]].concat())
        .await?;
    let team = world.team("plain").await?;
    team.runner_pool("runners", json!({})).await?;
    team.queue(1, Duration::from_secs(1))?;
    team.until_finished().await?;
    world.look_for_tokens().await?;
    world
        .documented("kubectl delete runnerpools ", &[], "")
        .await?;
    world
        .documented("kubectl delete --kustomize ", &[("deploy", &folder)], "")
        .await?;
    Ok("a job was run".to_owned())
}

/// Whether the definition is the one of this version.
pub(super) async fn knows_new_field(world: &World) -> Result<bool> {
    let crd = world.get(&["crd", CRD]).await?;
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    Ok(spec["properties"].get(NEW_FIELD).is_some())
}

/// The chart as it might have been before: another version, and a schema without a field.
fn former_chart() -> Result<PathBuf> {
    let folder = env::temp_dir().join("azdo-e2e-former-chart");
    let mut copy = repository::command("cp", &["--recursive"]);
    copy.arg(World::chart()).arg(&folder);
    repository::output(copy)?;
    change(&folder.join("Chart.yaml"), |chart| {
        chart["version"] = "0.0.1".into();
    })?;
    change(&folder.join("files/crd.yaml"), forget_new_field)?;
    Ok(folder)
}

/// Makes the definition a former one.
pub(super) fn forget_new_field(crd: &mut Value) {
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    if let Some(properties) = spec["properties"].as_object_mut() {
        properties.remove(NEW_FIELD);
    }
}

/// Changes a YAML file. JSON is YAML.
fn change(file: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut value: Value = serde_saphyr::from_str(&text)?;
    change(&mut value);
    fs::write(file, value.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_documented_may_stay() {
        assert!(is_documented(&format!(
            "CustomResourceDefinition <none> {CRD}"
        )));
        assert!(is_documented(
            "PersistentVolumeClaim storage runners-agent-0-workspace"
        ));
        assert!(is_documented("Secret scale pat-token"));
        for other in [
            "CustomResourceDefinition <none> others.example.com",
            "ClusterRole <none> azdo-operator:azdo-runner-operator",
            "Deployment azdo-operator azdo-runner-operator",
            "Secret azdo-operator webhook",
            "ServiceAccount azdo-operator azdo-runner-operator",
        ] {
            assert!(!is_documented(other), "{other}");
        }
    }
}
