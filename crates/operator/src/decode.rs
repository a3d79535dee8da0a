//! What passes and webhooks read from outside. Pure, and made for whatever may come: all of it was written by somebody
//! else.
//!
//! Passes and webhooks use the functions behind these; here they can be called without a cluster.

use std::{collections::BTreeMap, sync::Arc};

use api::RunnerPool;
use azure_devops::{TaskAgent, TaskAgentJobRequest};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{PersistentVolumeClaim, Pod},
};
use planner::AgentPool;
use secrecy::SecretString;

use crate::{
    manifest::{
        self,
        claim::AgentClaim,
        pod::{AgentPod, Blueprint},
    },
    mirror::Mirrored as _,
    reader, reconcile,
    webhook::certificate::{Certificates, Useless},
};

/// What the two lists of a look say.
pub fn agent_pool(agents: Vec<TaskAgent>, requests: Vec<TaskAgentJobRequest>) -> AgentPool {
    reader::agent_pool(agents, requests)
}

/// A Pod; `None`: it belongs to no RunnerPool.
pub fn pod(pod: &Pod) -> Option<Arc<planner::Pod>> {
    AgentPod::read(pod).map(|(_, read)| read.pod)
}

/// A claim that goes with its agent; `None` for any other.
pub fn claim(claim: &PersistentVolumeClaim, pool: &RunnerPool) -> Option<planner::Claim> {
    AgentClaim::read(claim).and_then(|(_, read)| read.going(pool))
}

/// A RunnerPool's wishes at this time; or all that is wrong with its spec, as one text.
pub fn wishes(
    pool: &RunnerPool,
    cluster: &str,
    now: Timestamp,
) -> Result<Arc<planner::Pool>, String> {
    reconcile::resolve(pool, cluster, now).map(|resolved| resolved.wishes)
}

/// The token in a Secret; `None`: it is empty or holds characters that no token has.
pub fn token(bytes: &[u8]) -> Option<SecretString> {
    reconcile::token_in(bytes)
}

/// The operator's own certificates in a Secret, as they would be written there.
pub fn certificates(
    data: &BTreeMap<String, ByteString>,
) -> Result<BTreeMap<String, ByteString>, Useless> {
    Certificates::read(data).map(|certificates| certificates.data())
}

/// The Pod of an agent as it is created, to be read back: profile and shape as in the RunnerPool's wishes.
pub fn built_pod(pool: &RunnerPool, cluster: &str, index: u32, profile: &planner::Profile) -> Pod {
    manifest::pod::build(&Blueprint {
        pool,
        cluster,
        index,
        profile: &pool.spec.profile(&profile.name),
        shape: &profile.shape,
        min_agent: false,
        run_once: true,
        attempt: 0,
        without: &[],
    })
}
