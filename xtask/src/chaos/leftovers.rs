//! What is still there after all RunnerPools have been deleted and should not be.

use std::fmt;

use anyhow::Result;
use api::RunnerPool;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::Serialize;

use super::{
    leases,
    pools::{KEPT_CLAIM, NAMESPACES},
    world::{STRANGERS_AGENT, STRANGERS_AGENT_POOL, World},
};

/// Counts of what was left over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Leftovers {
    /// Held by a finalizer that nobody took off.
    pub(crate) runner_pools: usize,
    pub(crate) registrations: usize,
    pub(crate) pods: usize,
    /// Claims that should have gone with their agent.
    pub(crate) claims: usize,
    /// Leases other than the operator's one.
    pub(crate) leases: usize,
    /// Agents of strangers that are gone.
    pub(crate) missing_strangers: usize,
}

impl Leftovers {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runner_pools,
            registrations,
            pods,
            claims,
            leases,
            missing_strangers,
        } = self;
        write!(
            formatter,
            "{registrations} registrations, {pods} Pods, {claims} claims, {leases} leases, {runner_pools} RunnerPools with \
             finalizers; {missing_strangers} strangers' agents gone"
        )
    }
}

/// Asks for the deletion of all RunnerPools. One that is gone already is fine.
pub(crate) async fn delete_runner_pools(world: &World) -> Result<()> {
    for pool in &world.pools {
        let deleted = world
            .runner_pools(pool)
            .delete(pool.name, &DeleteParams::background())
            .await;
        match deleted {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => drop(result?),
        }
    }
    Ok(())
}

/// Counts what is there.
pub(crate) async fn count(world: &World) -> Result<Leftovers> {
    let mut leftovers = Leftovers::default();
    let labelled = ListParams::default().labels(api::names::LABEL_RUNNER_POOL);
    for namespace in NAMESPACES {
        let client = || world.client.clone();
        let pools: Api<RunnerPool> = Api::namespaced(client(), namespace);
        let pods: Api<Pod> = Api::namespaced(client(), namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client(), namespace);
        leftovers.runner_pools += pools.list(&ListParams::default()).await?.items.len();
        leftovers.pods += pods.list(&labelled).await?.items.len();
        let claims = claims.list(&labelled).await?.items;
        let kept = |claim: &&PersistentVolumeClaim| {
            claim
                .labels()
                .get(api::names::LABEL_PVC_NAME)
                .is_some_and(|name| name == KEPT_CLAIM)
        };
        leftovers.claims += claims.iter().filter(|claim| !kept(claim)).count();
    }
    for namespace in NAMESPACES.iter().chain([&leases::NAMESPACE]) {
        let all: Api<Lease> = Api::namespaced(world.client.clone(), namespace);
        let all = all.list(&ListParams::default()).await?.items;
        let foreign =
            |lease: &&Lease| lease.name_any() != leases::NAME || *namespace != leases::NAMESPACE;
        leftovers.leases += all.iter().filter(foreign).count();
    }
    for agent_pool in world.agent_pools() {
        let agents = world.agents(agent_pool)?;
        let stranger = agents
            .iter()
            .filter(|agent| agent_pool == STRANGERS_AGENT_POOL && agent.name == STRANGERS_AGENT)
            .count();
        leftovers.registrations += agents.len() - stranger;
        if agent_pool == STRANGERS_AGENT_POOL {
            leftovers.missing_strangers += 1 - stranger.min(1);
        }
    }
    Ok(leftovers)
}
