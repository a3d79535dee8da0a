//! Whether a RunnerPool ever had more agents than it may have: judged at every creation of a Pod, by resource versions,
//! which order all changes in the cluster. A look between two changes could not tell.
//!
//! A lower `maxAgents` counts from when the operator has said that it saw it (`status.observedGeneration`): until then a
//! Pod that was planned before may still be created. Pods that exist already may be more than a lower maximum; only a
//! creation can be too much.

use std::collections::{BTreeMap, BTreeSet};

use api::RunnerPool;
use kube::ResourceExt as _;

use crate::pods::PodLife;

/// What is known of each RunnerPool that ever was, by uid.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits(BTreeMap<String, Limit>);

/// The maxima that one RunnerPool had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Limit {
    title: String,
    /// `maxAgents` by generation, with the resource version at which it was first seen.
    maxima: BTreeMap<i64, (u64, usize)>,
    /// What the operator had seen, and at which resource version it said so.
    observed: BTreeSet<(u64, i64)>,
}

/// How many agents a RunnerPool had at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Height {
    /// Namespace and name.
    pub(crate) title: String,
    /// The most agents at any time.
    pub(crate) most: usize,
    /// The greatest maximum that it ever had.
    pub(crate) allowed: usize,
    /// Creations that were too much, for people.
    pub(crate) violations: Vec<String>,
}

impl Limits {
    /// Notes a state of a RunnerPool, in any order.
    pub(crate) fn note(&mut self, pool: &RunnerPool) {
        let (Some(uid), Some(version)) = (pool.uid(), pool.resource_version()) else {
            return;
        };
        let version: u64 = version.parse().unwrap_or_default();
        let limit = self.0.entry(uid).or_default();
        limit.title = format!(
            "{}/{}",
            pool.namespace().unwrap_or_default(),
            pool.name_any()
        );
        let generation = pool.metadata.generation.unwrap_or_default();
        let first = limit
            .maxima
            .entry(generation)
            .or_insert((version, pool.spec.max_agents as usize));
        first.0 = first.0.min(version);
        let observed = pool
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        limit
            .observed
            .extend(observed.map(|observed| (version, observed)));
    }

    /// Judges all creations.
    pub(crate) fn judge(&self, pods: &[PodLife]) -> Vec<Height> {
        let judge = |(uid, limit): (&String, &Limit)| {
            let mut pods: Vec<&PodLife> = pods.iter().filter(|pod| pod.owner == *uid).collect();
            pods.sort_by_key(|pod| pod.first_version);
            let mut height = Height {
                title: limit.title.clone(),
                most: 0,
                allowed: limit
                    .maxima
                    .values()
                    .map(|(_, most)| *most)
                    .max()
                    .unwrap_or(0),
                violations: Vec::new(),
            };
            for (number, pod) in pods.iter().enumerate() {
                let version = pod.first_version;
                let unfinished = |pod: &&&PodLife| pod.end_version.is_none_or(|end| end > version);
                let agents = pods[..=number].iter().filter(unfinished).count();
                height.most = height.most.max(agents);
                let allowed = limit.at(version);
                if agents > allowed {
                    height.violations.push(format!(
                        "{}: Pod {} was created as agent {agents} of at most {allowed} (resource version {version})",
                        limit.title, pod.name
                    ));
                }
            }
            height
        };
        self.0.iter().map(judge).collect()
    }
}

impl Limit {
    /// How many agents a creation at that version may make it. A watch that was cut shows a RunnerPool later than it was made:
    /// before that, what it shows first counts.
    fn at(&self, version: u64) -> usize {
        let observed = self
            .observed
            .iter()
            .filter(|(at, _)| *at <= version)
            .map(|(_, generation)| *generation)
            .max();
        let known = self.maxima.iter().filter(|(generation, (at, _))| {
            *at <= version && observed.is_none_or(|observed| **generation >= observed)
        });
        let first = || self.maxima.values().next().map(|(_, most)| *most);
        known
            .map(|(_, (_, most))| *most)
            .max()
            .or_else(first)
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn state(version: u64, generation: i64, max: u32, observed: Option<i64>) -> RunnerPool {
        serde_json::from_value(json!({
            "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool",
            "metadata": {
                "namespace": "red", "name": "once", "uid": "u",
                "resourceVersion": version.to_string(), "generation": generation,
            },
            "spec": { "azDoUrl": "http://a/b", "pool": "p", "patSecretName": "s", "image": "i", "maxAgents": max },
            "status": { "observedGeneration": observed },
        }))
        .unwrap()
    }

    fn pod(name: &str, first_version: u64, end_version: Option<u64>) -> PodLife {
        PodLife {
            name: name.into(),
            owner: "u".into(),
            first_version,
            end_version,
            ..PodLife::default()
        }
    }

    #[test]
    fn a_creation_above_the_maximum_is_seen_however_short_it_was() {
        let mut limits = Limits::default();
        limits.note(&state(1, 1, 2, None));
        let fine = [
            pod("0", 10, Some(20)),
            pod("1", 11, None),
            pod("2", 21, None),
        ];
        assert_eq!(limits.judge(&fine)[0].violations, [""; 0]);
        assert_eq!(limits.judge(&fine)[0].most, 2);
        let mut too_many = fine.to_vec();
        too_many[0].end_version = Some(22); // a moment later than the creation of the third
        assert_eq!(limits.judge(&too_many)[0].violations.len(), 1);
        assert_eq!(limits.judge(&too_many)[0].most, 3);
    }

    #[test]
    fn a_lower_maximum_counts_once_the_operator_has_seen_it() {
        let mut limits = Limits::default();
        limits.note(&state(1, 1, 3, None));
        limits.note(&state(2, 1, 3, Some(1)));
        limits.note(&state(10, 2, 1, Some(1)));
        limits.note(&state(20, 2, 1, Some(2)));
        let creations = |version| [pod("0", 5, None), pod("1", version, None)];
        assert_eq!(limits.judge(&creations(9))[0].violations, [""; 0]);
        assert_eq!(limits.judge(&creations(15))[0].violations, [""; 0]);
        assert_eq!(limits.judge(&creations(25))[0].violations.len(), 1);
        // Seen later than it was made, as by a watch that was cut.
        let early = [pod("0", 0, None), pod("1", 0, None)];
        assert_eq!(limits.judge(&early)[0].violations, [""; 0]);
        // What exists already is no creation.
        assert_eq!(limits.judge(&creations(9))[0].allowed, 3);
    }
}
