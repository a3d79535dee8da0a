//! The `PersistentVolumeClaim` of an agent.

use std::collections::BTreeMap;

use api::{ClaimTemplate, RunnerPool, names};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use planner::Claim;
use serde_json::{Value, json};

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

/// What the operator keeps of a claim.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AgentClaim {
    /// For the planner.
    claim: Claim,
    /// Its `name` in `spec.pvcs`.
    template: String,
    /// Whether it goes with its agent; `None` on claims of the former operator, which did not note it.
    goes: Option<bool>,
    /// Uids of what it would go with.
    owners: Vec<String>,
    version: Option<u64>,
}

impl AgentClaim {
    /// The claim, if it goes with its agent: a kept one is in nobody's way.
    pub(crate) fn going(self, pool: &RunnerPool) -> Option<Claim> {
        self.goes(pool).then_some(self.claim)
    }

    /// Name and uid of a kept claim that would go with this RunnerPool, as the former operator's do.
    pub(crate) fn bound(self, pool: &RunnerPool) -> Option<(String, String)> {
        let owned = self
            .owners
            .iter()
            .any(|owner| pool.uid().as_ref() == Some(owner));
        (owned && !self.goes(pool)).then_some((self.claim.name, self.claim.uid))
    }

    fn goes(&self, pool: &RunnerPool) -> bool {
        let described = || {
            let mut templates = pool.spec.pvcs.iter();
            templates.any(|template| {
                template.name == self.template && template.create_pvc && template.delete_with_agent
            })
        };
        self.goes.unwrap_or_else(described)
    }
}

/// A strategic merge patch that takes an owner away from exactly this claim.
pub(crate) fn without_owner(claim: &str, owner: &str) -> Value {
    json!({ "metadata": { "uid": claim, "ownerReferences": [{ "$patch": "delete", "uid": owner }] } })
}

impl Mirrored for AgentClaim {
    type Object = PersistentVolumeClaim;

    fn read(object: &PersistentVolumeClaim) -> Option<(PoolKey, Self)> {
        let label = |name: &str| object.labels().get(name);
        let pool = label(names::LABEL_RUNNER_POOL)
            .filter(|_| label(names::LABEL_MANAGED_BY).is_some_and(|by| by == names::OPERATOR))?;
        let key = PoolKey {
            namespace: object.namespace()?,
            name: pool.clone(),
        };
        let claim = Claim {
            name: object.name_any(),
            uid: object.uid()?,
            index: label(names::LABEL_AGENT_INDEX)?.parse().ok()?,
            created_at: object
                .creation_timestamp()
                .map(|time| time.0)
                .unwrap_or_default(),
            stopping: object.meta().deletion_timestamp.is_some(),
        };
        let goes = object
            .annotations()
            .get(names::ANNOTATION_DELETE_WITH_AGENT)
            .map(|goes| goes == "true");
        let template = label(names::LABEL_PVC_NAME).cloned().unwrap_or_default();
        let owners = object.owner_references().iter();
        let owners = owners.map(|owner| owner.uid.clone()).collect();
        let version = object
            .resource_version()
            .and_then(|version| version.parse().ok());
        Some((
            key,
            Self {
                claim,
                template,
                goes,
                owners,
                version,
            },
        ))
    }

    fn uid(&self) -> &str {
        &self.claim.uid
    }

    fn version(&self) -> Option<u64> {
        self.version
    }
}
