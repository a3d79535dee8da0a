//! What every task that runs the operator does to its cluster: the `CustomResourceDefinition`, and objects as `kubectl apply`
//! puts them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{conditions, wait::await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time;

const FIELD_MANAGER: &str = "xtask";

/// It takes a fraction of a second; a machine that compiles at the same time takes longer.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Creates the `CustomResourceDefinition` and waits until it can be used.
pub(crate) async fn install_crd(client: &Client, yaml: &str) -> Result<CustomResourceDefinition> {
    let crd: CustomResourceDefinition =
        serde_saphyr::from_str(yaml).context("the operator's crd is no YAML")?;
    let (crds, name) = (
        Api::<CustomResourceDefinition>::all(client.clone()),
        crd.name_any(),
    );
    crds.create(&PostParams::default(), &crd)
        .await
        .context("cannot create the CRD")?;
    let established = await_condition(crds, &name, conditions::is_crd_established());
    time::timeout(TIMEOUT, established)
        .await
        .context("the CRD was not established")??;
    Ok(crd)
}

/// As `kubectl apply --server-side`.
pub(crate) async fn put<K>(api: &Api<K>, name: &str, manifest: &Value) -> Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let patched = api
        .patch(
            name,
            &PatchParams::apply(FIELD_MANAGER),
            &Patch::Apply(manifest),
        )
        .await;
    patched
        .map(drop)
        .with_context(|| format!("cannot apply {name}"))
}
