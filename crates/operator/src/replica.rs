//! One operator without sockets, tasks and clock, for tests that drive it by an event at a time: what it remembers
//! ([`Replica`]), what it has seen of an agent pool ([`Sight`]), and one pass over one RunnerPool ([`Replica::pass`]).
//!
//! All that decides is the code that the program runs: mirrors, readers, subscriptions, resolve, observe, plan, check
//! and act. Left out are the watches and HTTP clients that feed it, the release of the former operator's claims, the status
//! with its conditions and events, and the lease. The program itself uses none of this.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::RunnerPool;
use azure_devops::{TaskAgent, TaskAgentJobRequest};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Resource as _, ResourceExt as _};
use planner::{AgentPool, Breach, Look, Plan, Snapshot};
use secrecy::SecretString;

pub use crate::mirror::PoolKey;
use crate::{
    decide::Decide,
    manifest::{claim::AgentClaim, pod::AgentPod},
    mirror::Mirror,
    outside::{Failure, Outside},
    reader::{self, Outcome, Reader},
    reconcile::{
        Identity, Known, act, backoff, finalize, observe,
        resolve::{self, Resolved},
    },
    subscriptions::Subscriptions,
};

/// Everything that one operator remembers. Dropping it is a crash.
#[derive(Debug)]
pub struct Replica {
    cluster: String,
    connections: azure_devops::Connections,
    pods: Mirror<AgentPod>,
    claims: Mirror<AgentClaim>,
    subscriptions: Subscriptions,
    /// Resolving builds a Pod for each profile. It is pure, so equal RunnerPools need it once for each schedule.
    resolved: Mutex<HashMap<String, Remembered>>,
}

/// A RunnerPool, and what it was resolved to at a time. It holds until another schedule comes into force.
#[derive(Debug)]
struct Remembered {
    pool: Arc<RunnerPool>,
    resolved: Arc<Resolved>,
    at: Timestamp,
}

/// The requests of a pass that are not about its actions.
pub trait Finalizers: Outside {
    /// Replaces the finalizers of the RunnerPool that the pass is about, if it is still of this version.
    fn write_finalizers(
        &self,
        version: Option<String>,
        finalizers: Vec<String>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What a pass came to.
#[derive(Debug)]
pub enum Passed {
    /// There is nothing to do for a RunnerPool that is gone, or whose spec breaks a rule.
    Nothing,
    /// There is no token to ask with; to be tried again after so long.
    NoToken(Duration),
    /// The finalizers could not be written; to be tried again.
    Failed,
    /// The RunnerPool was let go.
    Released,
    /// A plan was made and, unless it breaks an invariant, carried out.
    Planned(Box<Made>),
}

/// A plan that was made in a pass.
#[derive(Debug)]
pub struct Made {
    /// What it was made from.
    pub snapshot: Snapshot,
    /// The plan.
    pub plan: Plan,
    /// When the next pass is due, if nothing happens before.
    pub next: Option<Timestamp>,
    /// Invariants that it breaks; then it was not carried out.
    pub breaches: Vec<Breach>,
    /// Something failed or was put off, and is to be tried again.
    pub unfinished: bool,
    /// Through what the RunnerPool sees its agent pool.
    pub sight: Sight,
}

impl Replica {
    /// An operator that has just started.
    pub fn new(cluster: &str, connections: azure_devops::Connections) -> Self {
        Self {
            cluster: cluster.to_owned(),
            connections,
            pods: Mirror::default(),
            claims: Mirror::default(),
            subscriptions: Subscriptions::default(),
            resolved: Mutex::default(),
        }
    }

    /// A watch told of a Pod; gives the RunnerPool that it belongs to.
    pub fn pod_applied(&self, pod: &Pod) -> Option<PoolKey> {
        self.pods.apply(pod)
    }

    /// A watch told of the end of a Pod.
    pub fn pod_deleted(&self, pod: &Pod, now: Timestamp) -> Option<PoolKey> {
        self.pods.delete(pod, now)
    }

    /// A watch began with these Pods, and no others are there.
    pub fn pods_listed<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a Pod>,
        now: Timestamp,
    ) -> Vec<PoolKey> {
        listed(&self.pods, pods, now)
    }

    /// A watch told of a claim.
    pub fn claim_applied(&self, claim: &PersistentVolumeClaim) {
        self.claims.apply(claim);
    }

    /// A watch told of the end of a claim.
    pub fn claim_deleted(&self, claim: &PersistentVolumeClaim, now: Timestamp) {
        self.claims.delete(claim, now);
    }

    /// A watch began with these claims, and no others are there.
    pub fn claims_listed<'a>(
        &self,
        claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>,
        now: Timestamp,
    ) {
        listed(&self.claims, claims, now);
    }

    /// Whether time alone gives names of a RunnerPool free: those of Pods that are gone, as soon as a look shows all that
    /// their agents did, and those of Pods whose creation had no answer, as soon as they are found or not.
    pub fn keeps_names(&self, pool: &PoolKey, look: &Look) -> bool {
        let gone = match look {
            Look::Known(look) => self.pods.gone_from(pool, look.taken_at),
            Look::Unknown { .. } => Vec::new(),
        };
        !gone.is_empty() || !self.pods.doubted(pool).is_empty()
    }

    /// Takes leave of a reader that has no subscribers; `false`: it has one again.
    pub fn forget(&self, sight: &Sight) -> bool {
        self.subscriptions.forget(&sight.0)
    }

    /// One pass, in the order of the program's own. `token` is what the Secret holds.
    pub async fn pass<O: Finalizers>(
        &self,
        pool: &Arc<RunnerPool>,
        token: Option<&str>,
        now: Timestamp,
        decide: &Decide,
        outside: &O,
    ) -> Passed {
        let Ok(identity) = Identity::of(pool) else {
            return Passed::Nothing;
        };
        let deleting = pool.meta().deletion_timestamp.is_some();
        if deleting && !finalize::holds(pool) {
            self.subscriptions.unsubscribe(&identity.key);
            return Passed::Nothing;
        }
        let Some(resolved) = self.resolve(pool, &identity.uid, now) else {
            return Passed::Nothing;
        };
        let current = observe::current(pool, &identity, &resolved, &self.subscriptions);
        let subscription = match (current, token) {
            (Some(current), _) => current,
            (None, None) => {
                self.subscriptions.unsubscribe(&identity.key);
                return Passed::NoToken(resolved.interval);
            }
            (None, Some(token)) => {
                let wanted = observe::wanted(pool, &resolved, SecretString::from(token));
                self.subscriptions
                    .subscribe(&identity.key, wanted, &self.connections)
                    .0
            }
        };
        let known = self.known();
        let observed = observe::gather(pool, &identity, &resolved, subscription, known);
        let (plan, breaches) = decide(&observed.snapshot, now);
        let done = if breaches.is_empty() {
            if !plan.actions.is_empty() && !deleting {
                let held = finalize::held(pool);
                if pool.finalizers() != held
                    && outside
                        .write_finalizers(pool.resource_version(), held)
                        .await
                        .is_err()
                {
                    return Passed::Failed;
                }
            }
            act::act(pool, &identity, known, &observed, &plan, outside).await
        } else {
            act::Done::refused(&breaches)
        };
        if deleting && plan.finished {
            let released = finalize::foreign(pool);
            return match outside
                .write_finalizers(pool.resource_version(), released)
                .await
            {
                Ok(()) => {
                    self.subscriptions.unsubscribe(&identity.key);
                    self.pods.forget(&identity.key);
                    Passed::Released
                }
                Err(_) => Passed::Failed,
            };
        }
        Passed::Planned(Box::new(Made {
            next: resolved.due(&plan),
            plan,
            breaches,
            unfinished: done.unfinished,
            sight: Sight(observed.subscription.reader),
            snapshot: observed.snapshot,
        }))
    }

    fn known(&self) -> Known<'_> {
        Known {
            cluster: &self.cluster,
            pods: &self.pods,
            claims: &self.claims,
            subscriptions: &self.subscriptions,
        }
    }

    fn resolve(&self, pool: &Arc<RunnerPool>, uid: &str, now: Timestamp) -> Option<Arc<Resolved>> {
        let mut all = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(uid)
            && Arc::ptr_eq(&known.pool, pool)
            && known.at <= now
            && known
                .resolved
                .in_force
                .until
                .is_none_or(|until| now < until)
        {
            return Some(known.resolved.clone());
        }
        let resolved = Arc::new(resolve::resolve(pool, &self.cluster, now).ok()?);
        let known = Remembered {
            pool: pool.clone(),
            resolved: resolved.clone(),
            at: now,
        };
        all.insert(uid.to_owned(), known);
        Some(resolved)
    }
}

fn listed<'a, V: crate::mirror::Mirrored>(
    mirror: &Mirror<V>,
    objects: impl IntoIterator<Item = &'a V::Object>,
    now: Timestamp,
) -> Vec<PoolKey> {
    let mut uids = HashSet::new();
    let mut changed = Vec::new();
    for object in objects {
        uids.extend(object.uid());
        changed.extend(mirror.apply(object));
    }
    changed.extend(mirror.retain(None, &uids, now));
    changed.sort();
    changed.dedup();
    changed
}

/// Longest wait before a pass that failed is tried again, and the shorter ones before it: `failures` in a row, and a
/// share between 0 and 1 that spreads RunnerPools.
pub fn wait_after(failures: u32, share: f64) -> Duration {
    backoff::wait(failures, share)
}

/// An agent pool as the operator sees it through one token.
#[derive(Clone, Debug)]
pub struct Sight(Arc<Reader>);

impl PartialEq for Sight {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Sight {
    /// How often it is to be looked, after forgetting the RunnerPools that do not exist; `None`: nobody asks for it.
    pub fn interval(&self, exists: impl Fn(&PoolKey) -> bool) -> Option<Duration> {
        self.0.interval(exists)
    }

    /// The RunnerPools that see through it.
    pub fn subscribers(&self) -> Vec<PoolKey> {
        self.0.subscribers()
    }

    /// A look begins.
    pub fn looks(&self) {
        self.0.looks();
    }

    /// Takes over what a look that began and ended at these times came to, at a pool of this id that has agents or not.
    pub fn looked(
        &self,
        (pool_id, inhabited): (i64, bool),
        (taken_at, ended_at): (Timestamp, Timestamp),
        interval: Duration,
        result: Result<Arc<AgentPool>, &azure_devops::Error>,
    ) {
        self.0.found(pool_id, inhabited);
        let result = result.map_err(reader::failure);
        self.0.looked(taken_at, ended_at, interval, result);
    }

    /// What the planner gets of it.
    pub fn look(&self) -> Look {
        self.0.outcome().1.look()
    }

    /// Whether the last look succeeded.
    pub fn is_seen(&self) -> bool {
        matches!(self.0.outcome().1, Outcome::Seen(_))
    }
}

/// What the planner needs of the two lists of a look.
pub fn agent_pool(agents: Vec<TaskAgent>, requests: Vec<TaskAgentJobRequest>) -> AgentPool {
    reader::agent_pool(agents, requests)
}
