//! Pods that do not start or fail before their agent ran a job: how long they are waited for, when another is made in
//! their place, and how often that was tried.
//!
//! Nothing is counted: a Pod carries the number of its attempt, and one that failed stays as what tells of it. A failure
//! is that of a profile in its present shape; another shape begins anew. See ADR 15.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use crate::{
    Agent, AgentState, ERROR_PATIENCE, Hold, LONGEST_RETRY_DELAY, LONGEST_START_PATIENCE,
    NODE_PATIENCE, Pod, PodPhase, Pool, RETRY_DELAY, START_PATIENCE, Why, later,
};

/// How long a Pod of this attempt, once it failed, stands for the job that it was made for.
pub(crate) fn delay(attempt: u32) -> SignedDuration {
    doubled(RETRY_DELAY, attempt).min(LONGEST_RETRY_DELAY)
}

/// The duration, doubled so many times; 16 times at the most, which is beyond every limit.
fn doubled(duration: SignedDuration, times: u32) -> SignedDuration {
    duration.saturating_mul(1 << times.min(16))
}

/// What became of a Pod that failed before its agent ran a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It stands for the job that it was made for until then.
    Stands {
        /// When another may be made.
        until: Timestamp,
    },
    /// Another may be made, which is to carry the next attempt; so long it stays as what tells of the last one.
    Remembered {
        /// When it is forgotten; `None`: not while the next attempt is on its way.
        until: Option<Timestamp>,
    },
}

/// All failures in the present shapes.
pub(crate) struct Failures {
    by_index: BTreeMap<u32, Failure>,
    attempts: BTreeMap<String, u32>,
    held_back: BTreeSet<String>,
}

impl Failures {
    pub(crate) fn of(pool: &Pool, agents: &BTreeMap<u32, Agent>, now: Timestamp) -> Self {
        let mut failures = Self {
            by_index: BTreeMap::new(),
            attempts: BTreeMap::new(),
            held_back: BTreeSet::new(),
        };
        // Another shape may be the remedy, and the end of a RunnerPool does not wait.
        if pool.ends().is_some() {
            return failures;
        }
        let current = agents.values().filter(|agent| !agent.outdated);
        let mut by_profile: HashMap<&str, Vec<(&Agent, &Pod)>> = HashMap::new();
        for (agent, pod) in current.filter_map(|agent| Some((agent, agent.pod.as_ref()?))) {
            by_profile
                .entry(&pod.profile)
                .or_default()
                .push((agent, pod));
        }
        for profile in &pool.profiles {
            let agents = by_profile.get(profile.name.as_str());
            let of_profile = || agents.into_iter().flatten().copied();
            let recovered_at = of_profile()
                .filter(|(agent, pod)| came_online(agent, pod))
                .map(|(_, pod)| pod.created_at)
                .max();
            // Pods that were made within the shortest delay are of one attempt, and one of them is as good as the others.
            let recovered = |pod: &Pod| {
                recovered_at.is_some_and(|recovered| later(recovered, RETRY_DELAY) > pod.created_at)
            };
            let starting =
                of_profile().filter(|(agent, pod)| is_on_its_way(agent) && !recovered(pod));
            let on_its_way = starting.map(|(_, pod)| pod.attempt).max().unwrap_or(0);
            let forgotten = |pod: &Pod, at: Timestamp| {
                on_its_way <= pod.attempt && now >= later(at, delay(pod.attempt) * 2)
            };
            let failed: Vec<_> = of_profile()
                .filter_map(|(agent, pod)| Some((agent.index, pod, failed_at(agent, pod)?)))
                .filter(|(_, pod, at)| !recovered(pod) && !forgotten(pod, *at))
                .collect();
            let last = failed
                .iter()
                .max_by_key(|(index, pod, at)| (pod.attempt, *at, *index));
            let next = last.map_or(0, |(_, pod, _)| pod.attempt.saturating_add(1));
            failures
                .attempts
                .insert(profile.name.clone(), next.max(on_its_way));
            for (index, pod, at) in &failed {
                let retry_at = later(*at, delay(pod.attempt));
                let failure = if now < retry_at {
                    if pod.attempt > 0 {
                        failures.held_back.insert(profile.name.clone());
                    }
                    Failure::Stands { until: retry_at }
                } else if last.is_none_or(|(last, _, _)| last != index) {
                    continue;
                } else {
                    let until = later(retry_at, delay(pod.attempt));
                    let until = (on_its_way <= pod.attempt).then_some(until);
                    Failure::Remembered { until }
                };
                failures.by_index.insert(*index, failure);
            }
        }
        failures
    }

    /// Why the ended Pod of an agent stays; `None`: it may go.
    pub(crate) fn get(&self, agent: &Agent) -> Option<Failure> {
        self.by_index.get(&agent.index).copied()
    }

    /// Whether the ended Pod of an agent stands for the job that it was made for.
    pub(crate) fn stands(&self, agent: &Agent) -> bool {
        matches!(self.get(agent), Some(Failure::Stands { .. }))
    }

    /// Whether no Pod of the profile is made for now: one failed that was made because another had failed. Without that, a
    /// profile of many jobs would hold every place all the time, with one failing Pod after the other.
    pub(crate) fn hold_back(&self, profile: &str) -> bool {
        self.held_back.contains(profile)
    }

    /// How many Pods of the profile failed in a row before the one that is made now.
    pub(crate) fn attempt(&self, profile: &str) -> u32 {
        self.attempts.get(profile).copied().unwrap_or(0)
    }
}

/// Whether an agent may still come online.
fn is_on_its_way(agent: &Agent) -> bool {
    matches!(agent.state, AgentState::Starting | AgentState::Offline)
}

/// When a Pod failed whose agent never ran a job.
fn failed_at(agent: &Agent, pod: &Pod) -> Option<Timestamp> {
    let PodPhase::Failed { at } = pod.phase else {
        return None;
    };
    let registration = agent.registration.as_ref();
    let worked = registration.is_some_and(|registration| {
        registration.assigned.is_some() || registration.last_finished.is_some()
    });
    (pod.request.is_none() && !worked).then_some(at)
}

/// Whether a Pod's agent had a session, as far as can be told: it was seen with one, or with a job.
fn came_online(agent: &Agent, pod: &Pod) -> bool {
    let registration = agent.registration.as_ref();
    let seen = registration.is_some_and(|registration| {
        registration.online
            || registration.assigned.is_some()
            || registration.last_finished.is_some()
    });
    pod.request.is_some() || (seen && failed_at(agent, pod).is_none())
}

/// Whether a Pod that waits is to be given up, or when.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Patience {
    /// It is to be given up.
    Over(Why),
    /// It may wait until then.
    Until(Timestamp),
}

/// How long the agent's Pod, which has never run, may still wait; `None`: it waits for nothing, or nobody else could use
/// its place.
///
/// A Pod that no node takes is left in the scheduler's queue, and an autoscaler may be making a node for it: another
/// Pod of its shape would only be last in the queue. It gives its place up to `others` only, jobs of other profiles that
/// find none. The kubelet tries again and again as well, but only on its own node; so a Pod that has one is given up.
pub(crate) fn patience(agent: &Agent, others: bool, now: Timestamp) -> Option<Patience> {
    let pod = agent.pod.as_ref()?;
    if agent.state != AgentState::Starting || !agent.never_ran() {
        return None;
    }
    let waiting = pod.waiting?;
    let (patience, why) = match waiting.hold {
        // Its turn comes, however long that takes.
        Hold::Queued => return None,
        Hold::NoNode if !others => return None,
        Hold::NoNode => (NODE_PATIENCE, Why::NoNode),
        Hold::Failing => (ERROR_PATIENCE, Why::NotStarting),
        // A large image may take its time, so each attempt gets more.
        Hold::NotStarted => {
            let patience = doubled(START_PATIENCE, pod.attempt).min(LONGEST_START_PATIENCE);
            (patience, Why::NotStarting)
        }
    };
    let until = later(waiting.since, patience);
    Some(if now < until {
        Patience::Until(until)
    } else {
        Patience::Over(why)
    })
}
