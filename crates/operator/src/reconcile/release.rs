//! Kept claims have no owner, so that no deletion of a RunnerPool takes them along. The former operator's have one: it is
//! taken away as soon as they are met.

use api::RunnerPool;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api,
    api::{Patch, PatchParams},
};

use super::{Context, Error, Identity};
use crate::manifest;

/// Lets go of the kept claims that the RunnerPool owns.
pub(crate) async fn kept_claims(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
) -> Result<(), Error> {
    let known = context.claims.of(&identity.key).into_iter();
    let bound: Vec<_> = known.filter_map(|claim| claim.bound(pool)).collect();
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &identity.key.namespace);
    for (name, uid) in bound {
        let patch = Patch::Strategic(manifest::claim::without_owner(&uid, &identity.uid));
        match claims.patch(&name, &PatchParams::default(), &patch).await {
            Ok(released) => {
                context.claims.wrote(&released);
                tracing::info!(
                    namespace = identity.key.namespace,
                    pool = identity.key.name,
                    claim = name,
                    "Released a kept claim from its owner"
                );
            }
            // Gone, or another one of that name: the watch will tell.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(source) => return Err(Error::Claim { name, source }),
        }
    }
    Ok(())
}
