//! The `PersistentVolumeClaim` of an agent.

use std::collections::BTreeMap;

use api::{ClaimTemplate, RunnerPool, names};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use planner::Claim;

use crate::mirror::{Mirrored, PoolKey};

/// Name of the claim that an agent mounts for an entry of `spec.pvcs`: its own, or the one that exists already.
pub(crate) fn name(pool: &RunnerPool, template: &ClaimTemplate, index: u32) -> String {
    if template.create_pvc {
        names::claim(&pool.name_any(), index, &template.name)
    } else {
        template.name.clone()
    }
}

/// The claim to create. A kept one has no owner, as it outlives the RunnerPool.
pub(crate) fn build(
    pool: &RunnerPool,
    template: &ClaimTemplate,
    index: u32,
) -> PersistentVolumeClaim {
    let labels = [
        (names::LABEL_APP, names::APP.to_owned()),
        (names::LABEL_RUNNER_POOL, pool.name_any()),
        (names::LABEL_MANAGED_BY, names::OPERATOR.to_owned()),
        (names::LABEL_AGENT_INDEX, index.to_string()),
        (names::LABEL_PVC_NAME, template.name.clone()),
    ];
    let mark = (
        names::ANNOTATION_DELETE_WITH_AGENT.to_owned(),
        template.delete_with_agent.to_string(),
    );
    let owner = pool
        .controller_owner_ref(&())
        .filter(|_| template.delete_with_agent);
    let storage = template
        .storage
        .clone()
        .map(|size| BTreeMap::from([("storage".to_owned(), Quantity(size))]));
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name(pool, template, index)),
            namespace: pool.namespace(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            annotations: Some([mark].into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: storage,
                limits: None,
            }),
            storage_class_name: template.storage_class.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// Whether a claim that has our name was made for this RunnerPool, by this operator or the former one.
pub(crate) fn is_ours(pool: &RunnerPool, claim: &PersistentVolumeClaim) -> bool {
    let labels = claim.labels();
    labels.get(names::LABEL_RUNNER_POOL) == Some(&pool.name_any())
        && labels
            .get(names::LABEL_MANAGED_BY)
            .is_some_and(|by| by == names::OPERATOR)
}

impl Mirrored for Claim {
    type Object = PersistentVolumeClaim;

    /// Claims that go with their agent; kept ones are in nobody's way.
    fn read(claim: &PersistentVolumeClaim) -> Option<(PoolKey, Self)> {
        let goes = claim
            .annotations()
            .get(names::ANNOTATION_DELETE_WITH_AGENT)
            .is_some_and(|goes| goes == "true");
        let pool = claim
            .labels()
            .get(names::LABEL_RUNNER_POOL)
            .filter(|_| goes)?;
        let index = claim.labels().get(names::LABEL_AGENT_INDEX)?.parse().ok()?;
        let key = PoolKey {
            namespace: claim.namespace()?,
            name: pool.clone(),
        };
        let stopping = claim.meta().deletion_timestamp.is_some();
        Some((
            key,
            Self {
                name: claim.name_any(),
                uid: claim.uid()?,
                index,
                stopping,
            },
        ))
    }

    fn uid(&self) -> &str {
        &self.uid
    }
}
