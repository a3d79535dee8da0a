//! A model of the API server and of garbage collection: Pods, claims and RunnerPools with uids, versions,
//! preconditions, finalizers and owners. What changes is noted, for the watches.
//!
//! It stores the objects that the operator sends, and knows nothing of agents, nodes or time-outs.

use std::{collections::BTreeMap, sync::Arc};

use api::{RunnerPool, names};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Preconditions},
    core::Status,
};
use operator::{outside::Failure, replica::PoolKey};
use serde_json::Value;

use crate::clock::{Millis, SECOND, second};

/// Something that watches tell.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Pod(Arc<Pod>),
    PodGone(Arc<Pod>),
    Claim(Arc<PersistentVolumeClaim>),
    ClaimGone(Arc<PersistentVolumeClaim>),
    Pool(Arc<RunnerPool>),
    PoolGone(PoolKey),
}

/// Namespace and name.
pub(crate) type Name = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    version: u64,
    uids: u64,
    pub(crate) pods: BTreeMap<Name, Arc<Pod>>,
    pub(crate) claims: BTreeMap<Name, Arc<PersistentVolumeClaim>>,
    pub(crate) pools: BTreeMap<PoolKey, Arc<RunnerPool>>,
    pub(crate) changes: Vec<Change>,
}

/// What became of a Pod whose deletion was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// It is marked; its node has to end it.
    Asked,
    /// It was marked before.
    Before,
}

pub(crate) fn refusal(code: u16, reason: &str, message: &str) -> Failure {
    Failure::Api(Box::new(Status::failure(message, reason).with_code(code)))
}

fn not_found() -> Failure {
    refusal(404, "NotFound", "not found")
}

impl Cluster {
    /// Stores a new object's metadata.
    fn stamp(&mut self, meta: &mut ObjectMeta, now: Millis) {
        self.uids += 1;
        meta.uid = Some(format!("uid-{}", self.uids));
        meta.creation_timestamp = Some(Time(second(now)));
        meta.resource_version = Some(self.next_version());
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    pub(crate) fn create_pod(&mut self, mut pod: Pod, now: Millis) -> Result<Arc<Pod>, Failure> {
        let name = (pod.namespace().unwrap_or_default(), pod.name_any());
        if self.pods.contains_key(&name) {
            return Err(refusal(409, "AlreadyExists", "a Pod of that name exists"));
        }
        self.stamp(&mut pod.metadata, now);
        pod.status = Some(PodStatus {
            phase: Some("Pending".into()),
            ..PodStatus::default()
        });
        let pod = Arc::new(pod);
        self.pods.insert(name, pod.clone());
        self.changes.push(Change::Pod(pod.clone()));
        Ok(pod)
    }

    /// Changes a Pod that exists with this uid; gives it back as it is then.
    pub(crate) fn change_pod(
        &mut self,
        name: &Name,
        uid: &str,
        change: impl FnOnce(&mut Pod),
    ) -> Option<Arc<Pod>> {
        let version = self.next_version();
        let known = self.pods.get_mut(name)?;
        if known.metadata.uid.as_deref() != Some(uid) {
            return None;
        }
        let pod = Arc::make_mut(known);
        change(pod);
        pod.metadata.resource_version = Some(version);
        let pod = known.clone();
        self.changes.push(Change::Pod(pod.clone()));
        Some(pod)
    }

    /// A JSON merge patch of labels and annotations, which is all that the operator patches.
    pub(crate) fn patch_pod(&mut self, name: &Name, patch: &Value) -> Result<Arc<Pod>, Failure> {
        let known = self.pods.get(name).ok_or_else(not_found)?;
        let uid = known.uid().unwrap_or_default();
        let meta = &patch["metadata"];
        if meta["uid"].as_str().is_some_and(|wanted| wanted != uid) {
            return Err(refusal(409, "Conflict", "another uid"));
        }
        self.change_pod(name, &uid, |pod| {
            merge(pod.metadata.labels.get_or_insert_default(), &meta["labels"]);
            merge(
                pod.metadata.annotations.get_or_insert_default(),
                &meta["annotations"],
            );
        })
        .ok_or_else(not_found)
    }

    /// A strategic merge patch of a Pod's status that declares it failed, which is the only one that the operator sends.
    pub(crate) fn end_pod(&mut self, name: &Name, patch: &Value) -> Result<Arc<Pod>, Failure> {
        let known = self.pods.get(name).ok_or_else(not_found)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let meta = &patch["metadata"];
        let preconditions = Preconditions {
            uid: text(&meta["uid"]),
            resource_version: text(&meta["resourceVersion"]),
        };
        check(&known.metadata, &preconditions)?;
        let uid = known.uid().unwrap_or_default();
        let told = &patch["status"];
        let conditions: Vec<PodCondition> = serde_json::from_value(told["conditions"].clone())
            .map_err(|error| refusal(400, "BadRequest", &error.to_string()))?;
        self.change_pod(name, &uid, |pod| {
            let status = pod.status.get_or_insert_default();
            status.phase = text(&told["phase"]);
            status.conditions.get_or_insert_default().extend(conditions);
        })
        .ok_or_else(not_found)
    }

    /// Asks for the end of a Pod.
    pub(crate) fn delete_pod(
        &mut self,
        name: &Name,
        params: &DeleteParams,
        now: Millis,
    ) -> Result<Deletion, Failure> {
        let known = self.pods.get(name).ok_or_else(not_found)?;
        if let Some(preconditions) = &params.preconditions {
            check(&known.metadata, preconditions)?;
        }
        // A deletion by force is told of in any case.
        let force = params.grace_period_seconds == Some(0);
        if known.metadata.deletion_timestamp.is_some() && !force {
            return Ok(Deletion::Before);
        }
        let uid = known.uid().unwrap_or_default();
        self.change_pod(name, &uid, |pod| {
            let spec = pod.spec.as_ref();
            let asked = spec.and_then(|spec| spec.termination_grace_period_seconds);
            let grace = params.grace_period_seconds.map(i64::from).or(asked);
            pod.metadata.deletion_grace_period_seconds = grace;
            let end = now + grace.unwrap_or_default() * SECOND;
            pod.metadata.deletion_timestamp = Some(Time(second(end)));
        });
        Ok(Deletion::Asked)
    }

    /// A Pod is gone: its node confirmed its end, or somebody forced it.
    pub(crate) fn remove_pod(&mut self, name: &Name, uid: &str) -> bool {
        let known = self.pods.get(name);
        if known.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid)) {
            return false;
        }
        let version = self.next_version();
        if let Some(mut pod) = self.pods.remove(name) {
            Arc::make_mut(&mut pod).metadata.resource_version = Some(version);
            self.changes.push(Change::PodGone(pod));
        }
        // Claims that waited for it to go.
        let waiting: Vec<Name> = self
            .claims
            .iter()
            .filter(|((namespace, _), claim)| {
                *namespace == name.0 && claim.metadata.deletion_timestamp.is_some()
            })
            .map(|(name, _)| name.clone())
            .collect();
        for claim in waiting {
            self.remove_claim_unless_used(&claim);
        }
        true
    }

    pub(crate) fn create_claim(
        &mut self,
        mut claim: PersistentVolumeClaim,
        now: Millis,
    ) -> Result<Arc<PersistentVolumeClaim>, Failure> {
        let name = (claim.namespace().unwrap_or_default(), claim.name_any());
        if self.claims.contains_key(&name) {
            return Err(refusal(409, "AlreadyExists", "a claim of that name exists"));
        }
        self.stamp(&mut claim.metadata, now);
        let claim = Arc::new(claim);
        self.claims.insert(name, claim.clone());
        self.changes.push(Change::Claim(claim.clone()));
        Ok(claim)
    }

    /// Asks for the end of a claim. While a Pod mounts it, it stays.
    pub(crate) fn delete_claim(
        &mut self,
        name: &Name,
        preconditions: &Preconditions,
        now: Millis,
    ) -> Result<(), Failure> {
        let version = self.next_version();
        let known = self.claims.get_mut(name).ok_or_else(not_found)?;
        check(&known.metadata, preconditions)?;
        if known.metadata.deletion_timestamp.is_none() {
            let claim = Arc::make_mut(known);
            claim.metadata.deletion_timestamp = Some(Time(second(now)));
            claim.metadata.resource_version = Some(version);
            self.changes.push(Change::Claim(known.clone()));
        }
        self.remove_claim_unless_used(name);
        Ok(())
    }

    fn remove_claim_unless_used(&mut self, name: &Name) {
        if self.is_mounted(name) {
            return;
        }
        let version = self.next_version();
        if let Some(mut claim) = self.claims.remove(name) {
            Arc::make_mut(&mut claim).metadata.resource_version = Some(version);
            self.changes.push(Change::ClaimGone(claim));
        }
    }

    /// Whether a Pod that has not ended mounts the claim.
    pub(crate) fn is_mounted(&self, (namespace, claim): &Name) -> bool {
        let first = (namespace.clone(), String::new());
        let pods = self.pods.range(first..);
        pods.take_while(|((of, _), _)| of == namespace)
            .any(|(_, pod)| !has_ended(pod) && mounts(pod).any(|name| name == claim))
    }

    /// Creates or replaces a RunnerPool as a user does.
    pub(crate) fn put_pool(&mut self, mut pool: RunnerPool, now: Millis) -> Arc<RunnerPool> {
        let key = key(&pool);
        match self.pools.get(&key) {
            None => {
                self.stamp(&mut pool.metadata, now);
                pool.metadata.generation = Some(1);
            }
            Some(known) => {
                let spec = std::mem::take(&mut pool.spec);
                pool = (**known).clone();
                pool.spec = spec;
                pool.metadata.generation = pool.metadata.generation.map(|number| number + 1);
                pool.metadata.resource_version = Some(self.next_version());
            }
        }
        self.store_pool(key, pool)
    }

    /// Asks for the end of a RunnerPool; gives its uid if it is gone at once.
    pub(crate) fn delete_pool(&mut self, key: &PoolKey, now: Millis) -> Option<String> {
        let mut pool = (**self.pools.get(key)?).clone();
        if pool.finalizers().is_empty() {
            self.pools.remove(key);
            self.changes.push(Change::PoolGone(key.clone()));
            return pool.metadata.uid;
        }
        if pool.metadata.deletion_timestamp.is_none() {
            pool.metadata.deletion_timestamp = Some(Time(second(now)));
            pool.metadata.generation = pool.metadata.generation.map(|number| number + 1);
            pool.metadata.resource_version = Some(self.next_version());
            self.store_pool(key.clone(), pool);
        }
        None
    }

    /// Replaces the finalizers; gives the uid of a RunnerPool that is gone by that.
    pub(crate) fn write_finalizers(
        &mut self,
        key: &PoolKey,
        version: Option<&str>,
        finalizers: Vec<String>,
    ) -> Result<Option<String>, Failure> {
        // The operator takes a RunnerPool that is gone for one that needs no finalizer.
        let Some(known) = self.pools.get(key) else {
            return Ok(None);
        };
        if known.metadata.resource_version.as_deref() != version {
            return Err(refusal(409, "Conflict", "the object has been modified"));
        }
        let mut pool = (**known).clone();
        if finalizers.is_empty() && pool.metadata.deletion_timestamp.is_some() {
            self.pools.remove(key);
            self.changes.push(Change::PoolGone(key.clone()));
            return Ok(pool.metadata.uid);
        }
        pool.metadata.finalizers = Some(finalizers);
        pool.metadata.resource_version = Some(self.next_version());
        self.store_pool(key.clone(), pool);
        Ok(None)
    }

    fn store_pool(&mut self, key: PoolKey, pool: RunnerPool) -> Arc<RunnerPool> {
        let pool = Arc::new(pool);
        self.pools.insert(key, pool.clone());
        self.changes.push(Change::Pool(pool.clone()));
        pool
    }

    /// Pods and claims that a RunnerPool of this uid owned, which garbage collection takes.
    pub(crate) fn owned_by(&self, uid: &str) -> (Vec<Name>, Vec<Name>) {
        let owned = |meta: &ObjectMeta| {
            let mut owners = meta.owner_references.iter().flatten();
            owners.any(|owner| owner.uid == uid)
        };
        let pods = self.pods.iter().filter(|(_, pod)| owned(&pod.metadata));
        let claims = self
            .claims
            .iter()
            .filter(|(_, claim)| owned(&claim.metadata));
        (
            pods.map(|(name, _)| name.clone()).collect(),
            claims.map(|(name, _)| name.clone()).collect(),
        )
    }
}

pub(crate) fn key(pool: &RunnerPool) -> PoolKey {
    PoolKey::of(pool)
}

/// Whether a claim is one that goes with its agent.
pub(crate) fn goes(claim: &PersistentVolumeClaim) -> bool {
    let mark = claim.annotations().get(names::ANNOTATION_DELETE_WITH_AGENT);
    mark.is_some_and(|mark| mark == "true")
}

pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

/// Whether a Pod has never run, as far as its node has told.
pub(crate) fn is_waiting(pod: &Pod) -> bool {
    phase(pod) == Some("Pending")
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Names of the claims that a Pod mounts.
pub(crate) fn mounts(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Uid of the RunnerPool that owns a Pod.
pub(crate) fn owner(pod: &Pod) -> Option<&str> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners
        .find(|owner| owner.kind == "RunnerPool" && owner.controller == Some(true))
        .map(|owner| owner.uid.as_str())
}

fn check(meta: &ObjectMeta, preconditions: &Preconditions) -> Result<(), Failure> {
    let differs = |wanted: &Option<String>, is: &Option<String>| wanted.is_some() && wanted != is;
    if differs(&preconditions.uid, &meta.uid)
        || differs(&preconditions.resource_version, &meta.resource_version)
    {
        return Err(refusal(409, "Conflict", "the preconditions do not hold"));
    }
    Ok(())
}

fn merge(into: &mut BTreeMap<String, String>, patch: &Value) {
    for (key, value) in patch.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(text) => into.insert(key.clone(), text.to_owned()),
            None => into.remove(key),
        };
    }
}
