//! What tests rely on: clients, kubeconfigs, namespaces, garbage collection, volumes and the audit log.

use std::time::Duration;

use anyhow::Context as _;
use control_plane::{ControlPlane, User};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod},
    apimachinery::pkg::version::Info,
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use serde_json::json;
use tokio::time::timeout;

/// Far more than anything here takes, also on a machine that compiles at the same time.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn clients_and_kubeconfigs_of_all_users_work() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let version: Info = control_plane.client()?.apiserver_version().await?;
    assert_eq!(
        version.git_version, "v1.36.3",
        "stamped, or else from KUBEBUILDER_ASSETS or PATH"
    );
    for user in [
        User::Admin,
        User::Operator,
        User::HollowNode,
        User::Stranger,
        User::ControllerManager,
    ] {
        let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig_as(user))?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        for client in [Client::try_from(config)?, control_plane.client_as(user)?] {
            Api::<Namespace>::all(client).get("default").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_namespace_is_fresh_and_takes_pods_at_once() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let (first, second) = (
        control_plane.namespace("fresh").await?,
        control_plane.namespace("fresh").await?,
    );
    assert_ne!(first, second);
    let pods: Api<Pod> = Api::namespaced(control_plane.client()?, &first);
    let pod = serde_json::from_value(json!({
        "metadata": { "name": "pod" },
        "spec": { "containers": [{ "name": "agent", "image": "agent" }] },
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    assert_eq!(
        pod.spec.unwrap().service_account_name.as_deref(),
        Some("default")
    );
    Ok(())
}

#[tokio::test]
async fn what_an_object_owns_goes_with_it() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("garbage").await?;
    let maps: Api<ConfigMap> = Api::namespaced(control_plane.client()?, &namespace);
    let mut map = ConfigMap::default();
    map.metadata.name = Some("owner".into());
    let parent = maps.create(&PostParams::default(), &map).await?;
    map.metadata.name = Some("owned".into());
    map.metadata.owner_references = parent
        .controller_owner_ref(&())
        .map(|reference| vec![reference]);
    let child = maps.create(&PostParams::default(), &map).await?;

    maps.delete("owner", &DeleteParams::background()).await?;
    let gone = conditions::is_deleted(child.metadata.uid.as_deref().unwrap());
    timeout(LONG, await_condition(maps, "owned", gone))
        .await
        .context("the owned object stayed")??;
    Ok(())
}

#[tokio::test]
async fn a_claim_binds() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("claim").await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(control_plane.client()?, &namespace);
    let claim = serde_json::from_value(json!({
        "metadata": { "name": "work" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))?;
    claims.create(&PostParams::default(), &claim).await?;
    let bound = |claim: Option<&PersistentVolumeClaim>| {
        claim
            .and_then(|claim| claim.status.as_ref()?.phase.as_deref())
            .is_some_and(|phase| phase == "Bound")
    };
    timeout(LONG, await_condition(claims, "work", bound))
        .await
        .context("the claim did not bind")??;
    Ok(())
}

#[tokio::test]
async fn the_audit_log_tells_who_asked_for_what() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("audit").await?;
    let maps: Api<ConfigMap> =
        Api::namespaced(control_plane.client_as(User::Operator)?, &namespace);
    let mut map = ConfigMap::default();
    map.metadata.name = Some("noted".into());
    maps.create(&PostParams::default(), &map).await?;
    assert!(
        maps.create(&PostParams::default(), &map).await.is_err(),
        "it exists"
    );
    maps.get("noted").await?;

    let log = control_plane.audit_log()?;
    let noted: Vec<_> = log
        .iter()
        .filter(|event| event.namespace == namespace && event.user == "operator")
        .map(|event| {
            (
                event.verb.as_str(),
                event.resource.as_str(),
                event.name.as_str(),
                event.code,
                event.is_write(),
            )
        })
        .collect();
    let expected = [
        ("create", "configmaps", "noted", 201, true),
        ("create", "configmaps", "noted", 409, true),
        ("get", "configmaps", "noted", 200, false),
    ];
    assert_eq!(noted, expected);
    Ok(())
}
