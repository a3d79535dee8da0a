//! What is missing: agents for queued jobs, agents up to the minimum, placeholders.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
};

use jiff::Timestamp;

use crate::{
    Action, Agent, AgentState, Intake, KnownLook, Look, Plan, Pod, PodPhase, Profile, Shortage,
    Snapshot, Why,
    agents::{alive, is_ours},
    retry::Failures,
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
    if let Look::Known(look) = &snapshot.look
        && snapshot.pool.placeholders
    {
        placeholders(snapshot, look, plan);
    }
    if snapshot.pool.ends().is_some() {
        return;
    }
    let Some(mut indexes) = FreeIndexes::new(snapshot, agents, plan) else {
        return;
    };
    let mut room = (snapshot.pool.max_agents as usize).saturating_sub(alive(snapshot, agents));
    let (mut wanted, mut granted) = (0, 0);
    let mut create = |plan: &mut Plan, profile: &str, min_agent: bool, why: Why| {
        wanted += 1;
        if room == 0 {
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
        granted += 1;
    };

    let base = snapshot
        .pool
        .profiles
        .first()
        .map_or("", |profile| &profile.name);
    let mut warm = missing_warm(snapshot, agents, failures);
    if let Look::Known(look) = &snapshot.look {
        let mut supply = supply(snapshot, look, agents, failures);
        // Jobs get room before the minimum does, and agents of the minimum serve them.
        for QueuedJob { request, profile } in queued {
            let free = supply.entry(profile).or_default();
            if *free > 0 {
                *free -= 1;
            } else if *profile == base && warm > 0 {
                warm -= 1;
                create(plan, base, true, Why::BelowMinimum);
            } else if !failures.hold_back(profile) {
                let request = *request;
                create(plan, profile, false, Why::JobQueued { request });
            }
        }
    }
    for _ in 0..warm.min(WARM_AT_ONCE) {
        create(plan, base, true, Why::BelowMinimum);
    }
    plan.shortage = (wanted > granted).then_some(Shortage { wanted, granted });
}

/// A job request that no agent is reserved for.
pub(crate) struct QueuedJob<'a> {
    request: i64,
    /// Name of the profile whose agents serve it.
    pub(crate) profile: &'a str,
}

/// Every queued job, oldest first; none when Azure DevOps could not be looked at: demand is not invented.
pub(crate) fn queued(snapshot: &Snapshot) -> Vec<QueuedJob<'_>> {
    let Look::Known(look) = &snapshot.look else {
        return Vec::new();
    };
    // Thousands of jobs share a few lists of demands.
    let mut profiles: HashMap<&[String], Option<&Profile>> = HashMap::new();
    let mut queued: Vec<_> = look
        .agent_pool
        .requests
        .iter()
        .filter(|request| request.reserved_agent.is_none())
        .filter_map(|job| {
            let profile = profiles.entry(&job.demands);
            let profile = profile.or_insert_with(|| snapshot.pool.profile_of(job));
            profile.map(|profile| QueuedJob {
                request: job.id,
                profile: &profile.name,
            })
        })
        .collect();
    queued.sort_by_key(|job| job.request);
    queued
}

/// Agents by profile that will take, or have taken, a job which the look shows as queued.
///
/// A look grows old while Pods change. So that it can be planned upon again and again, an agent that could take one of
/// its jobs counts as long as its Pod is there, even when the Pod has ended or is being deleted since: Pods that ended
/// are removed by a later look only.
fn supply<'a>(
    snapshot: &'a Snapshot,
    look: &KnownLook,
    agents: &'a BTreeMap<u32, Agent>,
    failures: &Failures,
) -> HashMap<&'a str, u32> {
    let mut supply = HashMap::new();
    for agent in agents.values() {
        let Some(pod) = &agent.pod else { continue };
        let counts = match agent.state {
            AgentState::Starting | AgentState::Idle { .. } => !agent.outdated,
            AgentState::Finished => {
                (ended_since(agent, &snapshot.look) && agent.request().is_none())
                    || failures.stands(agent)
            }
            AgentState::Stopping => !agent.outdated && may_have_begun(agent, pod, look),
            _ => false,
        };
        if counts {
            *supply.entry(pod.profile.as_str()).or_default() += 1;
        }
    }
    supply
}

/// Whether the agent's Pod ended after the look.
fn ended_since(agent: &Agent, look: &Look) -> bool {
    let ended_at = agent.pod.as_ref().and_then(|pod| pod.phase.finished_at());
    match look {
        Look::Known(look) => ended_at.is_some_and(|at| at >= whole_second(look.taken_at)),
        Look::Unknown { .. } => false,
    }
}

/// Kubernetes tells times in whole seconds; a time in the same second may be after the look.
pub(crate) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Whether an agent whose Pod is being deleted may have got a job after the look. The next look tells: the agent is
/// disabled as soon as its Pod is seen to go.
fn may_have_begun(agent: &Agent, pod: &Pod, look: &KnownLook) -> bool {
    match &agent.registration {
        Some(registration) => {
            let spent = pod.run_once && registration.last_finished.is_some();
            let open = registration.online && registration.intake != Intake::Disabled;
            open && !spent && registration.assigned.is_none()
        }
        None => pod.phase == PodPhase::Running && pod.created_at >= whole_second(look.taken_at),
    }
}

/// How many agents are missing to the minimum.
pub(crate) fn missing_warm(
    snapshot: &Snapshot,
    agents: &BTreeMap<u32, Agent>,
    failures: &Failures,
) -> u32 {
    let unknown = matches!(snapshot.look, Look::Unknown { .. });
    let mut kept = 0;
    for agent in agents
        .values()
        .filter(|agent| agent.pod.as_ref().is_some_and(|pod| pod.min_agent))
    {
        let counts = match agent.state {
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
        kept += u32::from(counts);
    }
    let first = snapshot.pool.profiles.first();
    if first.is_some_and(|profile| failures.hold_back(&profile.name)) {
        return 0;
    }
    snapshot.pool.min_agents.saturating_sub(kept)
}

/// One placeholder for each profile.
fn placeholders(snapshot: &Snapshot, look: &KnownLook, plan: &mut Plan) {
    for profile in &snapshot.pool.profiles {
        let name = format!("{}{}", snapshot.pool.placeholder_prefix, profile.name);
        match look
            .agent_pool
            .registrations
            .iter()
            .find(|registration| same_name(&registration.name, &name))
        {
            None => {
                let profile = profile.name.clone();
                plan.act(
                    Action::AddPlaceholder { name, profile },
                    Why::PlaceholderMissing,
                );
            }
            // Another RunnerPool's placeholder serves the same jobs.
            Some(registration) if !is_ours(&snapshot.pool, registration, None) => {
                if !snapshot.cluster.taken.contains(&name) {
                    plan.withhold(&name, Why::NameTaken);
                }
            }
            Some(_) => {}
        }
    }
}

/// Azure DevOps compares agent names without regard to case.
fn same_name(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
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
            let pod = agents.get(&index).and_then(|agent| agent.pod.as_ref());
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
