//! Strangers in the cluster: Pods and claims that look like ours, under names that ours would have, and that have to stay as
//! they are. While one is in the way, an agent cannot have its name: the operator says so, and waits for somebody to take
//! it away.

use std::collections::BTreeMap;

use api::names;
use k8s_openapi::{
    api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{ResourceExt as _, api::ObjectMeta, api::Preconditions};

use super::{Event, Simulation};
use crate::{
    book::Breach,
    clock::{HOUR, MINUTE},
    cluster::Name,
};

/// No agent gets an index as high as that.
const OUT_OF_REACH: i64 = 1000;

impl Simulation {
    /// Somebody makes a Pod, or a claim, as ours are made, but for what tells ours from others'.
    pub(crate) fn stranger_creates(&mut self) -> bool {
        let pool = self.random.index(self.scenario.pools.len());
        let in_the_way = self.random.permille(500);
        let index = self.random.between(0, 5) + if in_the_way { 0 } else { OUT_OF_REACH };
        let index = u32::try_from(index).unwrap_or_default();
        let name = if self.random.permille(500) {
            self.strangers_pod(pool, index)
        } else {
            self.strangers_claim(pool, index)
        };
        let Some(name) = name else { return false };
        self.effect_of("stranger creates", &name.1);
        self.book.tell(self.now, "stranger", || {
            format!("creates {} in {}", name.1, name.0)
        });
        if in_the_way {
            let wait = self.random.between(MINUTE, 4 * HOUR);
            self.after(wait, Event::StrangerLeaves(name.clone()));
            self.in_the_way.insert(name);
        }
        true
    }

    /// A Pod whose labels say that it is ours, and whose owner says that it is not.
    fn strangers_pod(&mut self, pool: usize, index: u32) -> Option<Name> {
        let of = &self.scenario.pools[pool];
        let (namespace, pool) = (of.namespace().unwrap_or_default(), of.name_any());
        let name = names::agent(of.agent_base(), index);
        let labels = [
            (names::LABEL_APP, names::APP),
            (names::LABEL_RUNNER_POOL, &pool),
            (names::LABEL_MANAGED_BY, names::OPERATOR),
            (names::LABEL_MIN_AGENT, "false"),
            (names::LABEL_CAPABILITY, names::BASE),
        ];
        let owner = match self.random.below(3) {
            0 => None,
            1 => Some(controller("apps/v1", "ReplicaSet", &pool)),
            _ => Some(controller("ci.example.com/v1", "RunnerPool", &pool)),
        };
        let phase = *self
            .random
            .pick(&["Pending", "Running", "Failed", "Succeeded"]);
        let pod = Pod {
            metadata: metadata(&namespace, &name, labels, owner),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: names::AGENT_CONTAINER.into(),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: None,
        };
        let made = self.cluster.create_pod(pod, self.now).ok()?;
        let name = (namespace, name);
        let uid = made.uid().unwrap_or_default();
        let made = self.cluster.change_pod(&name, &uid, |pod| {
            pod.status.get_or_insert_default().phase = Some(phase.into());
        })?;
        self.strangers_pods.insert(name.clone(), made);
        Some(name)
    }

    /// A claim that belongs to one of our agents as far as its name and most labels tell, and that somebody else manages.
    fn strangers_claim(&mut self, pool: usize, index: u32) -> Option<Name> {
        let of = &self.scenario.pools[pool];
        let (namespace, pool) = (of.namespace().unwrap_or_default(), of.name_any());
        let template = *self.random.pick(&["work", "cache"]);
        let name = names::claim(&pool, index, template);
        let index = index.to_string();
        let labels = [
            (names::LABEL_APP, names::APP),
            (names::LABEL_RUNNER_POOL, &pool),
            (names::LABEL_MANAGED_BY, "somebody"),
            (names::LABEL_AGENT_INDEX, &index),
            (names::LABEL_PVC_NAME, template),
        ];
        let mut metadata = metadata(&namespace, &name, labels, None);
        let goes = (names::ANNOTATION_DELETE_WITH_AGENT, "true");
        metadata.annotations = Some(owned([goes]));
        let claim = PersistentVolumeClaim {
            metadata,
            ..PersistentVolumeClaim::default()
        };
        let made = self.cluster.create_claim(claim, self.now).ok()?;
        let name = (namespace, name);
        self.strangers_claims.insert(name.clone(), made);
        Some(name)
    }

    /// A stranger takes away what it made.
    pub(crate) fn stranger_leaves(&mut self, name: &Name) {
        if !self.in_the_way.remove(name) {
            return;
        }
        let touched = self.touched_of_strangers(name);
        self.fail_if(touched.map(|what| (Breach::StrangerTouched, what)));
        self.effect_of("stranger leaves", &name.1);
        self.book.tell(self.now, "stranger", || {
            format!("takes {} in {} away", name.1, name.0)
        });
        if let Some(pod) = self.strangers_pods.remove(name) {
            let uid = pod.uid().unwrap_or_default();
            self.cluster.remove_pod(name, &uid);
        }
        if let Some(claim) = self.strangers_claims.remove(name) {
            let preconditions = Preconditions {
                uid: claim.uid(),
                resource_version: None,
            };
            // One that somebody took away was told of.
            let _ = self.cluster.delete_claim(name, &preconditions, self.now);
        }
    }

    /// What strangers made in the cluster and somebody touched.
    pub(crate) fn touched_strangers(&self) -> Vec<String> {
        let pods = self.strangers_pods.keys();
        let names = pods.chain(self.strangers_claims.keys());
        names
            .filter_map(|name| self.touched_of_strangers(name))
            .collect()
    }

    fn touched_of_strangers(&self, name: &Name) -> Option<String> {
        let pod = self.strangers_pods.get(name);
        let claim = self.strangers_claims.get(name);
        let whole = pod.is_none_or(|pod| self.cluster.pods.get(name) == Some(pod))
            && claim.is_none_or(|claim| self.cluster.claims.get(name) == Some(claim));
        (!whole).then(|| format!("{} is not as it was made", name.1))
    }
}

fn metadata<const N: usize>(
    namespace: &str,
    name: &str,
    labels: [(&str, &str); N],
    owner: Option<OwnerReference>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(owned(labels)),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn controller(api_version: &str, kind: &str, name: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: "uid-of-a-stranger".to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    }
}
