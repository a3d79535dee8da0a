//! The finalizer: put on before the first side effect, taken off when nothing is left that the cluster cannot clean up.

use api::{RunnerPool, names};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;

use super::{Context, Error, Identity};

/// Whether a deletion waits for us; a finalizer of the former operator counts, as nobody else would take it off.
pub(crate) fn holds(pool: &RunnerPool) -> bool {
    pool.finalizers()
        .iter()
        .any(|finalizer| finalizer.starts_with(names::FINALIZER_PREFIX))
}

/// Puts the finalizer on, and takes off those of the former operator.
pub(crate) async fn hold(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
) -> Result<(), Error> {
    write(pool, identity, context, held(pool)).await
}

/// The finalizers of a RunnerPool that waits for us at its end.
pub(crate) fn held(pool: &RunnerPool) -> Vec<String> {
    let mut wanted = foreign(pool);
    wanted.push(names::FINALIZER.to_owned());
    wanted
}

/// Lets the RunnerPool go. Its Pods go with it by their owner reference; those of a forced deletion at once.
pub(crate) async fn finish(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
) -> Result<Action, Error> {
    write(pool, identity, context, foreign(pool)).await?;
    context.subscriptions.unsubscribe(&identity.key);
    context.reports.forget(&identity.key);
    context.metrics.forget(&identity.key);
    context.pods.forget(&identity.key);
    context.backoff.reset(&identity.key);
    tracing::info!(
        namespace = identity.key.namespace,
        pool = identity.key.name,
        "Released the RunnerPool"
    );
    Ok(Action::await_change())
}

/// The finalizers of others.
pub(crate) fn foreign(pool: &RunnerPool) -> Vec<String> {
    pool.finalizers()
        .iter()
        .filter(|finalizer| !finalizer.starts_with(names::FINALIZER_PREFIX))
        .cloned()
        .collect()
}

async fn write(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    wanted: Vec<String>,
) -> Result<(), Error> {
    if pool.finalizers() == wanted {
        return Ok(());
    }
    let pools: Api<RunnerPool> = Api::namespaced(context.client.clone(), &identity.key.namespace);
    // The resource version keeps a finalizer that somebody else put on meanwhile.
    let patch =
        json!({ "metadata": { "finalizers": wanted, "resourceVersion": pool.resource_version() } });
    match pools
        .patch(
            &identity.key.name,
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
    {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop).map_err(Error::Finalizers),
    }
}
