//! One pass over one RunnerPool: observe, resolve, plan, act, report. It starts from the world, never from the event
//! that called for it, and every step may have failed the last time.

pub(crate) mod act;
pub(crate) mod backoff;
pub(crate) mod finalize;
pub(crate) mod observe;
mod release;
mod report;
pub(crate) mod resolve;
mod troubles;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{RunnerPool, conditions::Reason};
use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _, core::DeserializeGuard, runtime::controller::Action};

pub(crate) use backoff::Backoff;
pub(crate) use observe::token_in;
pub(crate) use report::Finding;
pub(crate) use report::Reports;
pub(crate) use resolve::resolve;

use crate::{
    decide::Decide,
    events::Events,
    manifest::{claim::AgentClaim, pod::AgentPod},
    metrics::{self, Metrics},
    mirror::{Mirror, PoolKey},
    outside::Services,
    subscriptions::Subscriptions,
};

/// RunnerPools as they are watched: one that cannot be read is a condition, not a dead watch.
pub(crate) type Guarded = DeserializeGuard<RunnerPool>;

/// Longest time for one pass. The calls of its actions have shorter limits of their own.
const DEADLINE: Duration = Duration::from_secs(180);

/// What all passes share.
pub(crate) struct Context {
    /// Its writes pass the gate of the lease.
    pub(crate) client: kube::Client,
    /// Those to Azure DevOps; their writes do, too.
    pub(crate) connections: azure_devops::Connections,
    pub(crate) decide: &'static Decide,
    /// Uid of the namespace `kube-system`, which names the cluster.
    pub(crate) cluster: String,
    pub(crate) pods: Mirror<AgentPod>,
    pub(crate) claims: Mirror<AgentClaim>,
    pub(crate) subscriptions: Arc<Subscriptions>,
    pub(crate) start_reader: Box<dyn Fn(Arc<crate::reader::Reader>) + Send + Sync>,
    pub(crate) events: Events,
    pub(crate) reports: Reports,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) backoff: Backoff,
}

/// What the operator knows of the cluster and of who looks where. A restart loses it and reads it again.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    /// Uid of the namespace `kube-system`.
    pub(crate) cluster: &'a str,
    pub(crate) pods: &'a Mirror<AgentPod>,
    pub(crate) claims: &'a Mirror<AgentClaim>,
    pub(crate) subscriptions: &'a Subscriptions,
}

impl Context {
    pub(crate) fn known(&self) -> Known<'_> {
        Known {
            cluster: &self.cluster,
            pods: &self.pods,
            claims: &self.claims,
            subscriptions: &self.subscriptions,
        }
    }
}

/// Why a pass failed. Nothing is lost by it: the next pass starts from the world again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to write the status")]
    Status(#[source] kube::Error),
    #[error("failed to write the finalizers")]
    Finalizers(#[source] kube::Error),
    #[error("failed to let go of the claim {name}, which is to be kept")]
    Claim {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("failed to read the Secret {name}")]
    Secret {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("the pass took longer than {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("the RunnerPool has no namespace or uid")]
    Incomplete,
}

impl Error {
    /// What [`Error::category`] gives.
    pub(crate) const CATEGORIES: [&str; 6] = [
        "status",
        "finalizers",
        "claim",
        "secret",
        "deadline",
        "incomplete",
    ];

    /// A static name for logs and metrics.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Finalizers(_) => "finalizers",
            Self::Claim { .. } => "claim",
            Self::Secret { .. } => "secret",
            Self::Deadline => "deadline",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Identity of the RunnerPool that a pass is about.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) key: PoolKey,
    pub(crate) uid: String,
}

impl Identity {
    pub(crate) fn of(pool: &RunnerPool) -> Result<Self, Error> {
        let (Some(namespace), Some(uid)) = (pool.namespace(), pool.uid()) else {
            return Err(Error::Incomplete);
        };
        Ok(Self {
            key: PoolKey {
                namespace,
                name: pool.name_any(),
            },
            uid,
        })
    }
}

pub(crate) async fn reconcile(
    object: Arc<Guarded>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let key = PoolKey::of(&*object);
    let pass = async {
        match &object.0 {
            Ok(pool) => pass(pool, &context).await,
            Err(invalid) => report::unreadable(&context, &key, invalid).await,
        }
    };
    let started = Instant::now();
    let outcome = tokio::time::timeout(DEADLINE, pass).await;
    context.metrics.reconciled(started.elapsed());
    outcome.map_err(|_| Error::Deadline)?
}

/// What to do after a pass that failed.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that kube asks for"
)]
pub(crate) fn error_policy(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let key = PoolKey::of(&*object);
    let wait = context.backoff.next(&key);
    context.metrics.failed(error.category());
    tracing::warn!(
        namespace = key.namespace,
        pool = key.name,
        category = error.category(),
        error = crate::telemetry::chain(error),
        retry_seconds = wait.as_secs_f64(),
        "Failed to reconcile the RunnerPool"
    );
    Action::requeue(wait)
}

async fn pass(pool: &RunnerPool, context: &Context) -> Result<Action, Error> {
    let identity = Identity::of(pool)?;
    let released = release::kept_claims(pool, &identity, context).await;
    if pool.meta().deletion_timestamp.is_some() {
        released?; // or they would go with it
        return pass_of(pool, &identity, context).await;
    }
    let action = pass_of(pool, &identity, context).await?;
    released.map(|()| action)
}

async fn pass_of(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
) -> Result<Action, Error> {
    let forced = pool
        .annotations()
        .get(api::names::ANNOTATION_FORCE_DELETE)
        .is_some_and(|value| value == "true");
    let deleting = pool.meta().deletion_timestamp.is_some();
    if deleting && !finalize::holds(pool) {
        context.subscriptions.unsubscribe(&identity.key);
        return Ok(Action::await_change());
    }

    let resolved = match resolve(pool, &context.cluster, Timestamp::now()) {
        Ok(resolved) => resolved,
        Err(violations) => {
            context.subscriptions.describe(&identity.key, None);
            if deleting && forced {
                return finalize::finish(pool, identity, context).await;
            }
            let finding = Finding::new(Reason::InvalidSpec, violations);
            return report::blocked(pool, identity, context, finding).await;
        }
    };
    let observed = match observe::observe(pool, identity, &resolved, context).await? {
        Ok(observed) => observed,
        Err(finding) => {
            if deleting && forced {
                return finalize::finish(pool, identity, context).await;
            }
            report::blocked(pool, identity, context, finding).await?;
            // A Secret is not watched, so it is looked for again.
            return Ok(Action::requeue(resolved.interval));
        }
    };

    let skips = deleting && forced;
    if !skips && report::settle(pool, identity, context, &observed).await? {
        return Ok(Action::await_change());
    }

    let now = Timestamp::now();
    let (plan, breaches) = (context.decide)(&observed.snapshot, now);
    context
        .metrics
        .planned(&identity.key, &observed.snapshot, &plan);
    // First of all: what it tells of may be gone when the actions are done, or this process.
    report::tell_lost_jobs(pool, identity, context, &observed, &plan);
    let done = if breaches.is_empty() {
        if !plan.actions.is_empty() && !deleting {
            finalize::hold(pool, identity, context).await?;
        }
        let services = Services::new(pool, &identity.key, context, &observed);
        act::act(pool, identity, context.known(), &observed, &plan, &services).await
    } else {
        act::Done::refused(&breaches)
    };
    if deleting && (plan.finished || forced) {
        return finalize::finish(pool, identity, context).await;
    }
    let report = report::report(pool, identity, context, &observed, &plan, &done).await;
    let due = resolved
        .due(&plan)
        .map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
    let report = report?;
    let retry = if done.unfinished {
        let [action, refused] = metrics::UNFINISHED;
        let reason = if breaches.is_empty() { action } else { refused };
        context.metrics.failed(reason);
        Some(context.backoff.next(&identity.key))
    } else {
        context.backoff.reset(&identity.key);
        None
    };
    let requeue = [due, retry, report].into_iter().flatten().min();
    Ok(requeue.map_or_else(Action::await_change, Action::requeue))
}
