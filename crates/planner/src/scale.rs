//! What is missing: agents for queued jobs, and agents up to the minimum.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
};

use crate::{
    Action, Agent, AgentState, Look, Plan, Shortage, Snapshot, Why,
    agents::{is_ours, room},
    queue::{QueuedJob, Served},
    retry::Failures,
    supply::ended_since,
};

/// Agents that one plan makes at most to reach the minimum. A minimum of millions, however silly, must not take memory
/// and time without end; the next plan goes on.
const WARM_AT_ONCE: u32 = 1000;

pub(crate) fn plan(
    snapshot: &Snapshot,
    agents: &BTreeMap<u32, Agent>,
    queued: &[QueuedJob<'_>],
    failures: &Failures,
    plan: &mut Plan,
) {
    let Some(mut indexes) = FreeIndexes::new(snapshot, agents, plan) else {
        return;
    };
    let mut room = room(snapshot, agents);
    let mut room_of = rooms(snapshot);
    let (mut wanted, mut granted) = (0, 0);
    let mut create = |plan: &mut Plan, profile: &str, min_agent: bool, why: Why| {
        wanted += 1;
        let room_of = room_of.get_mut(profile);
        if room == 0 || room_of.as_ref().is_some_and(|room| **room == 0) {
            return;
        }
        let Some((index, name)) = indexes.next() else {
            return;
        };
        let run_once = !min_agent && snapshot.pool.ttl_idle.is_none();
        plan.act(
            Action::CreateAgent {
                index,
                name,
                profile: profile.to_owned(),
                min_agent,
                run_once,
                attempt: failures.attempt(profile),
            },
            why,
        );
        room -= 1;
        if let Some(room) = room_of {
            *room -= 1;
        }
        granted += 1;
    };

    let mut warm = missing_warm(snapshot, agents, failures);
    let mut limited = 0;
    // Jobs get room before the minimum does, and agents of the minimum serve them.
    for job in queued {
        let warm = warm.get_mut(job.profile).filter(|warm| **warm > 0);
        match (job.place, warm) {
            (Served::There | Served::HeldBack, _) => {}
            (Served::NoRoom | Served::ProfileFull, _) => limited += 1,
            (Served::New, Some(warm)) => {
                *warm -= 1;
                create(plan, job.profile, true, Why::BelowMinimum);
            }
            (Served::New, None) => {
                let request = job.request;
                create(plan, job.profile, false, Why::JobQueued { request });
            }
        }
    }
    for profile in &snapshot.pool.profiles {
        let warm = warm.get(profile.name.as_str()).copied().unwrap_or(0);
        for _ in 0..warm.min(WARM_AT_ONCE) {
            create(plan, &profile.name, true, Why::BelowMinimum);
        }
    }
    wanted += limited;
    plan.shortage = (wanted > granted).then_some(Shortage { wanted, granted });
}

/// How many agents of each profile its own maximum lets be made.
fn rooms(snapshot: &Snapshot) -> HashMap<&str, usize> {
    let alive = snapshot.cluster.alive_by_profile();
    let profiles = snapshot.pool.profiles.iter();
    profiles
        .map(|profile| (profile.name.as_str(), profile.room(&alive)))
        .collect()
}

/// How many agents are missing to each profile's minimum.
pub(crate) fn missing_warm<'a>(
    snapshot: &'a Snapshot,
    agents: &BTreeMap<u32, Agent>,
    failures: &Failures,
) -> HashMap<&'a str, u32> {
    let unknown = matches!(snapshot.look, Look::Unknown { .. });
    let counts = |agent: &Agent| match agent.state {
        AgentState::Starting
        | AgentState::Idle { .. }
        | AgentState::Busy { .. }
        | AgentState::Offline
        | AgentState::Unknown => unknown || !agent.outdated,
        // Nothing is cleaned up while nothing is known, so a Pod that keeps failing is not replaced without end.
        AgentState::Finished if unknown => true,
        // It ended after the look, which is planned upon until there is a later one.
        AgentState::Finished => ended_since(agent, &snapshot.look) || failures.stands(agent),
        _ => false,
    };
    let mut kept: HashMap<&str, u32> = HashMap::new();
    for agent in agents.values().filter(|agent| counts(agent)) {
        if let Some(pod) = agent.pod.as_ref().filter(|pod| pod.min_agent) {
            *kept.entry(pod.profile.as_str()).or_default() += 1;
        }
    }
    let profiles = snapshot.pool.profiles.iter();
    profiles
        .filter(|profile| !failures.hold_back(&profile.name))
        .map(|profile| {
            let kept = kept.get(profile.name.as_str()).copied().unwrap_or(0);
            (
                profile.name.as_str(),
                profile.min_agents.saturating_sub(kept),
            )
        })
        .collect()
}

/// The indexes that no Pod, registration, claim or other RunnerPool holds, lowest first.
struct FreeIndexes<'a> {
    prefix: &'a str,
    used: HashSet<u32>,
    candidates: RangeInclusive<u32>,
}

impl<'a> FreeIndexes<'a> {
    /// `None` when Azure DevOps never told which names are in use: any name might be a stranger's.
    fn new(snapshot: &'a Snapshot, agents: &BTreeMap<u32, Agent>, plan: &mut Plan) -> Option<Self> {
        let pool = &snapshot.pool;
        let Some(seen) = snapshot.look.last_seen() else {
            if let Look::Unknown { reason, .. } = &snapshot.look {
                plan.withhold(
                    &pool.agent_prefix,
                    Why::Unknown {
                        reason: reason.clone(),
                    },
                );
            }
            return None;
        };
        let mut used: HashSet<u32> = agents.keys().copied().collect();
        used.extend(snapshot.cluster.claims.iter().map(|claim| claim.index));
        used.extend(
            snapshot
                .cluster
                .taken
                .iter()
                .filter_map(|name| pool.index_of(name)),
        );
        for registration in &seen.registrations {
            let name = registration.name.to_ascii_lowercase();
            let Some(index) = pool.index_of(&name) else {
                continue;
            };
            used.insert(index);
            let pod = (agents.get(&index)).and_then(|agent| agent.pod.as_deref());
            let known = is_ours(pool, registration, pod) || snapshot.cluster.taken.contains(&name);
            if !known {
                plan.withhold(&registration.name, Why::NameTaken);
            }
        }
        Some(Self {
            prefix: &pool.agent_prefix,
            used,
            candidates: 0..=u32::MAX,
        })
    }

    fn next(&mut self) -> Option<(u32, String)> {
        let index = self.candidates.find(|index| !self.used.contains(index))?;
        Some((index, format!("{}{index}", self.prefix)))
    }
}
