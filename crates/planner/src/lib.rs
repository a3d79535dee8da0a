//! Decides what to do about the agents of one RunnerPool: [`plan`] turns a [`Snapshot`] and a time into a [`Plan`].
//!
//! Pure: no I/O, no clock, no state between two calls. The crate knows neither Kubernetes nor HTTP; what it is told
//! stands in the snapshot, and what could not be looked at stands there as unknown, never as empty.

mod agents;
pub mod assignment;
mod capabilities;
mod check;
mod demand;
mod judge;
mod learned;
mod party;
mod placeholders;
mod plan;
mod queue;
mod remove;
mod retry;
mod scale;
mod snapshot;
mod supply;
mod surplus;

pub use agents::{Agent, AgentState};
pub use capabilities::Capabilities;
pub use check::{Breach, check};
pub use demand::Demand;
pub use placeholders::{
    ENV_DIGEST, ENV_IMAGE, Learned, PLACEHOLDER_VERSION, placeholder_capabilities,
};
pub use plan::{Action, Lacking, Plan, Planned, Shortage, Unserved, Why, Withheld};
pub use snapshot::{
    AgentPool, Claim, Cluster, Hold, Intake, JobRequest, Keep, KnownLook, Lesson, Look, Memory,
    Mode, Pod, PodPhase, Pool, Profile, Registration, Reported, Snapshot, Waiting,
};

use std::iter;

use jiff::{SignedDuration, Timestamp};
use party::{Known, Party};
use queue::Queue;

/// How long an idle agent that no queued job needs is kept before it is taken back, when it is not `ttlIdleSeconds`
/// that says so. Long enough that a job which is queued at that moment finds it, short beside the start of a Pod.
pub const SURPLUS_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// How long the first Pod that failed before it ran a job stands for the job that it was made for, so that a Pod which
/// cannot work is not made again at once and without end. It doubles with each failure in a row.
pub const RETRY_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// Longest such delay: when the cause is gone, work goes on after so long at the latest.
pub const LONGEST_RETRY_DELAY: SignedDuration = SignedDuration::from_mins(10);

/// How long a Pod on a node may fail to start before it is given up, as when its image cannot be pulled. The kubelet has
/// tried three or four times by then.
pub const ERROR_PATIENCE: SignedDuration = SignedDuration::from_mins(1);

/// How long a Pod on a node may take to start without saying why, as when a volume cannot be mounted or a large image
/// takes its time. It doubles with each failure in a row.
pub const START_PATIENCE: SignedDuration = SignedDuration::from_mins(15);

/// Longest such patience.
pub const LONGEST_START_PATIENCE: SignedDuration = SignedDuration::from_hours(1);

/// How long a Pod may wait for a node before its place goes to a job of another profile: as long as the cluster autoscaler
/// waits for a node of its own (`--max-node-provision-time`).
pub const NODE_PATIENCE: SignedDuration = SignedDuration::from_mins(15);

/// How long a claim is left alone after its creation. An agent's Pod is created after its claims, so a claim without a
/// Pod may be one whose Pod is on its way, sent by an operator that has ended since.
pub const CLAIM_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// How long an agent whose container runs may take to come online before it no longer counts as one that is starting.
pub const STARTUP_WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// How long a job is left to an idle agent of somebody else that has what it demands. One that has not taken it by then
/// will not: it may be kept from it by something that no list tells.
pub const STRANGER_PATIENCE: SignedDuration = SignedDuration::from_secs(30);

/// What to do now, why, and why not more. Equal input gives an equal plan, and the plan after a carried-out plan is
/// empty as soon as the snapshot shows its effects.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let agents = agents::join(snapshot, now);
    let failures = retry::Failures::of(&snapshot.pool, &agents, now);
    let mut plan = Plan::default();
    let known = Known::of(snapshot, &agents);
    let asked = known.as_ref().filter(|_| snapshot.look.has_queued_jobs());
    let siblings = snapshot.siblings.iter().filter(|_| asked.is_some());
    let siblings: Vec<_> = siblings
        .map(|sibling| {
            let agents = agents::join(sibling, now);
            let failures = retry::Failures::of(&sibling.pool, &agents, now);
            (sibling, agents, failures)
        })
        .collect();
    let known_of_siblings: Vec<_> = siblings
        .iter()
        .map(|(sibling, agents, _)| Known::of(sibling, agents))
        .collect();
    let queue = asked.map_or_else(Queue::default, |known| {
        let own = Party::of(snapshot, &agents, &failures, known);
        let siblings = siblings.iter().zip(&known_of_siblings);
        let siblings = siblings.filter_map(|((sibling, agents, failures), known)| {
            Some(Party::sibling(
                sibling,
                agents,
                failures,
                known.as_ref()?,
                now,
            ))
        });
        queue::queue(iter::once(own).chain(siblings).collect(), now, &mut plan)
    });
    remove::plan(snapshot, &agents, &queue.jobs, &failures, now, &mut plan);
    if let Some(known) = &known {
        let (placeholders, taught) = (&known.placeholders, &known.taught);
        placeholders.plan(snapshot, known.look, taught, now, &mut plan);
    }
    if snapshot.pool.ends().is_none() {
        scale::plan(snapshot, &agents, &queue.jobs, &failures, &mut plan);
        plan.unserved = queue.unserved;
        plan.disputed = queue.disputed;
    }
    if snapshot.pool.is_paused() {
        plan.pause();
    }
    plan.finished = snapshot.pool.deleting && remove::nothing_left(snapshot, &agents, now);
    plan.agents = agents.into_values().collect();
    plan
}

/// Kubernetes tells times in whole seconds; a time in the same second may be after the look.
pub(crate) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A time so much later, or the end of time: times come from outside, and may be any.
pub(crate) fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}
