//! The end: the RunnerPools are deleted, what stays is counted, and everything is stopped.

use std::time::Instant;

use anyhow::Result;
use api::RunnerPool;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::Serialize;
use tokio::time;

use super::{LOOK_AGAIN, TIMEOUT, World};
use crate::{
    demo::examples::Example,
    output::{self, step},
};

/// What was still there after the RunnerPools had been deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Leftovers {
    pub(crate) leftover_runner_pools: usize,
    pub(crate) leftover_registrations: usize,
    pub(crate) leftover_pods: usize,
    /// Claims that should have gone with their agent.
    pub(crate) leftover_claims: usize,
    /// Claims that are meant to stay: `deleteWithAgent: false`.
    pub(crate) kept_claims: usize,
}

impl World {
    /// Deletes the RunnerPools and waits until all that should go with them is gone, but not for ever.
    pub(crate) async fn delete_runner_pools(&self) -> Result<Leftovers> {
        output::line("\nEnding");
        step("delete the RunnerPools", async {
            let pools = self.namespaced::<RunnerPool>();
            for example in &self.examples {
                let deleted = pools
                    .delete(example.name(), &DeleteParams::background())
                    .await;
                match deleted {
                    // Somebody with kubectl was faster.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    result => drop(result?),
                }
            }
            let deadline = Instant::now() + TIMEOUT;
            loop {
                let leftovers = self.leftovers().await?;
                let gone = Leftovers {
                    kept_claims: leftovers.kept_claims,
                    ..Leftovers::default()
                };
                if leftovers == gone || Instant::now() > deadline {
                    return Ok((leftovers, String::new()));
                }
                time::sleep(LOOK_AGAIN).await;
            }
        })
        .await
    }

    /// Stops everything and removes it.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self {
            operator,
            node,
            simulator,
            control_plane,
            follower,
            pods,
            ..
        } = self;
        let stopped = operator.stop().await;
        follower.abort();
        drop(pods);
        node.stop().await?;
        simulator.shutdown().await;
        control_plane.stop()?;
        stopped
    }

    async fn leftovers(&self) -> Result<Leftovers> {
        let labelled = ListParams::default().labels(api::names::LABEL_RUNNER_POOL);
        let claims = self
            .namespaced::<PersistentVolumeClaim>()
            .list(&labelled)
            .await?
            .items;
        let (kept_claims, leftover_claims) = claims
            .iter()
            .partition::<Vec<_>, _>(|claim| self.is_to_stay(claim));
        let registrations = |example: &Example| {
            let agents = self
                .simulator
                .with_world(|world| world.agents(example.organization(), &example.spec().pool));
            agents.map_or(0, |agents| agents.len())
        };
        Ok(Leftovers {
            leftover_runner_pools: self
                .namespaced::<RunnerPool>()
                .list(&ListParams::default())
                .await?
                .items
                .len(),
            leftover_registrations: self.examples.iter().map(registrations).sum(),
            leftover_pods: self.namespaced::<Pod>().list(&labelled).await?.items.len(),
            leftover_claims: leftover_claims.len(),
            kept_claims: kept_claims.len(),
        })
    }

    fn is_to_stay(&self, claim: &PersistentVolumeClaim) -> bool {
        let label = |name: &str| claim.labels().get(name).map(String::as_str);
        let example = self
            .examples
            .iter()
            .find(|example| label(api::names::LABEL_RUNNER_POOL) == Some(example.name()));
        let mut templates = example.into_iter().flat_map(|example| &example.spec().pvcs);
        templates.any(|template| {
            label(api::names::LABEL_PVC_NAME) == Some(template.name.as_str())
                && !template.delete_with_agent
        })
    }
}
