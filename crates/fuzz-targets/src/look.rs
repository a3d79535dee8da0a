//! A whole pass up to the plan, from bytes: a RunnerPool, both lists of a look, and the objects of the cluster.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use api::RunnerPool;
use azure_devops::{TaskAgent, TaskAgentJobRequest};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use operator::decode;
use planner::{AgentPool, Cluster, KnownLook, Look, Snapshot, check, plan};
use serde::Deserialize;

use crate::settings::CLUSTER;

/// When all of this happens, in seconds since 1970.
const NOW: i64 = 1_795_500_000;

/// What there is to be seen.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct World {
    runner_pool: Option<RunnerPool>,
    agents: Vec<TaskAgent>,
    requests: Vec<TaskAgentJobRequest>,
    pods: Vec<Pod>,
    claims: Vec<PersistentVolumeClaim>,
    /// Seconds since the look began.
    age: u16,
    /// Whether the look failed; then it is only the last one that is known.
    failed: bool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            runner_pool: None,
            agents: Vec::new(),
            requests: Vec::new(),
            pods: Vec::new(),
            claims: Vec::new(),
            age: 2,
            failed: false,
        }
    }
}

/// Whatever is seen, there is a plan, and it breaks no invariant.
pub(crate) fn looks(data: &[u8]) {
    let Ok(world) = serde_json::from_slice::<World>(data) else {
        return;
    };
    let Some(pool) = &world.runner_pool else {
        return;
    };
    if !is_object_name(&pool.name_any()) {
        return;
    }
    let now = Timestamp::from_second(NOW).expect("a time in this century");
    let Ok(wishes) = decode::wishes(pool, CLUSTER, now) else {
        return;
    };
    let claims = world.claims.iter();
    // The mirrors hold each name once.
    let pods: BTreeMap<String, Arc<planner::Pod>> = world
        .pods
        .iter()
        .filter_map(decode::pod)
        .filter(|pod| is_object_name(&pod.name))
        .map(|pod| (pod.name.clone(), pod))
        .collect();
    let cluster = Cluster {
        pods: pods.into_values().collect(),
        claims: claims
            .filter_map(|claim| decode::claim(claim, pool))
            .collect(),
        ..Cluster::default()
    };
    let agent_pool = Arc::new(unique(decode::agent_pool(world.agents, world.requests)));
    let taken_at = now - SignedDuration::from_secs(world.age.into());
    let look = if world.failed {
        Look::Unknown {
            reason: "it is down".to_owned(),
            last: Some(agent_pool),
        }
    } else {
        Look::Known(KnownLook {
            taken_at,
            fresh_until: taken_at + SignedDuration::from_secs(50),
            agent_pool,
            memory: Arc::default(),
        })
    };
    let snapshot = Snapshot {
        pool: wishes,
        cluster,
        look,
        siblings: Vec::new(),
    };
    assert_lawful(&snapshot, now);
}

/// Whether Kubernetes gives an object this name: one with capitals would clash with another agent's name.
fn is_object_name(name: &str) -> bool {
    !name.contains(|c: char| c.is_ascii_uppercase())
}

/// The agent pool without doubles: Azure DevOps has each id and, without regard to case, each name once.
fn unique(mut agent_pool: AgentPool) -> AgentPool {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    agent_pool.registrations.retain(|registration| {
        let name = registration.name.to_lowercase();
        ids.insert(registration.id) && names.insert(name)
    });
    agent_pool
}

/// A plan is made, breaks no invariant, prints, and is the same when made again.
pub(crate) fn assert_lawful(snapshot: &Snapshot, now: Timestamp) {
    let planned = plan(snapshot, now);
    assert_eq!(
        check(snapshot, &planned, now),
        [],
        "{planned}\n{snapshot:#?}"
    );
    assert_eq!(planned, plan(snapshot, now));
}
