//! Which agents nothing needs any more: idle for too long, more than the maximum, or in the way of a job that only
//! another kind of agent can serve. Says what is surplus and never how it goes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use jiff::Timestamp;

use crate::{
    Agent, AgentState, Hold, KnownLook, Plan, Pod, Pool, SURPLUS_GRACE, Snapshot, Why,
    agents::room,
    later,
    queue::QueuedJob,
    retry::{Failures, Patience, patience},
    scale::missing_warm,
    whole_second,
};

/// Agents that nothing needs any more, by index. Per profile, the longest idle go first; agents of the minimum stay as
/// long as they are not more than the minimum, unless they are all that keeps a job from its room.
pub(crate) fn surplus(
    snapshot: &Snapshot,
    look: &KnownLook,
    agents: &BTreeMap<u32, Agent>,
    queued: &[QueuedJob<'_>],
    failures: &Failures,
    now: Timestamp,
    plan: &mut Plan,
) -> HashMap<u32, Why> {
    let pool = &snapshot.pool;
    let mut needed: HashMap<&str, usize> = HashMap::new();
    for job in queued.iter().filter(|job| job.place.needs_agent()) {
        *needed.entry(job.profile).or_default() += 1;
    }
    let mut surplus = HashMap::new();
    let profiles = pool.profiles.iter();
    let mut warm_left: HashMap<&str, usize> = profiles
        .map(|profile| (profile.name.as_str(), profile.min_agents as usize))
        .collect();
    let mut staying: HashMap<&str, usize> = HashMap::new();
    let (mut idle, mut idle_warm) = (Vec::new(), Vec::new());
    let (mut starting, mut unplaced) = (Vec::new(), Vec::new());
    for agent in agents.values() {
        let Some(pod) = agent.pod.as_deref().filter(|_| !agent.outdated) else {
            continue;
        };
        if !stays(agent.state) {
            continue;
        }
        *staying.entry(&pod.profile).or_default() += 1;
        let warm = pod.min_agent && take(&mut warm_left, &pod.profile);
        match agent.state {
            // Agents of the minimum stay, and serve a queued job as any other does.
            AgentState::Idle { .. } | AgentState::Starting
                if warm && take(&mut needed, &pod.profile) => {}
            AgentState::Idle { since } if warm => idle_warm.push((since, agent, pod)),
            AgentState::Starting if warm => {}
            AgentState::Idle { since } => idle.push((since, agent, pod)),
            AgentState::Starting => starting.push((agent, pod)),
            _ => {}
        }
        if pod
            .waiting
            .is_some_and(|waiting| waiting.hold == Hold::NoNode)
        {
            unplaced.push((agent, pod));
        }
    }
    // The longest idle first: they go first when there are too many.
    idle.sort_by_key(|(since, agent, _)| (*since, Reverse(agent.index)));
    idle_warm.sort_by_key(|(since, agent, _)| (*since, agent.index));
    // Pods whose agent may already run serve before those that never ran, which can be taken back at once.
    starting.sort_by_key(|(agent, _)| (agent.never_ran(), agent.index));
    // Those of the minimum only when there are no other idle ones: a minimum of profiles may be above the maximum for a
    // while.
    let never_ran = starting.iter().filter(|(agent, _)| agent.never_ran());
    let may_go = idle.iter().chain(&idle_warm);
    let may_go = may_go.map(|(_, agent, pod)| (*agent, *pod));
    for index in above_maximum(pool, &staying, may_go.chain(never_ran.copied())) {
        surplus.insert(index, Why::AboveMaximum);
    }
    let stays_on = |agent: &Agent| !surplus.contains_key(&agent.index);
    idle.retain(|(_, agent, _)| stays_on(agent));
    idle_warm.retain(|(_, agent, _)| stays_on(agent));
    starting.retain(|(agent, _)| stays_on(agent));
    // The one that worked last serves first: the others stay idle and become old enough to go.
    idle.reverse();
    idle.retain(|(_, _, pod)| !take(&mut needed, &pod.profile));
    for (agent, pod) in starting {
        // A Pod made after the look was made for a job of it, which an agent that became idle since does not change.
        let made_before = pod.created_at < whole_second(look.taken_at);
        if !take(&mut needed, &pod.profile) && agent.never_ran() && made_before {
            surplus.insert(agent.index, Why::NotNeeded);
        }
    }
    // Jobs that wait for the next attempt of a profile that fails need no room meanwhile.
    for (agent, pod) in agents
        .values()
        .filter_map(|agent| Some((agent, agent.pod.as_ref()?)))
    {
        if failures.stands(agent) {
            take(&mut needed, &pod.profile);
        }
    }
    needed.retain(|profile, _| !failures.hold_back(profile));
    // A job that finds no room gets that of agents of other profiles, the longest idle first.
    let room = room(snapshot, agents);
    let going = agents.values().filter(|agent| is_going(agent)).count() + surplus.len();
    let mut give_way = needed.values().sum::<usize>().saturating_sub(room + going);
    for (since, agent, pod) in idle.into_iter().rev() {
        let (due, why) = due(since, pod, pool);
        if now >= due {
            surplus.insert(agent.index, why);
            give_way = give_way.saturating_sub(1);
        } else if give_way > 0 {
            surplus.insert(agent.index, Why::NotNeeded);
            give_way -= 1;
        } else {
            plan.again_at(due);
        }
    }
    // Those of the minimum last, or a minimum that fills the maximum would keep jobs of other profiles waiting for ever.
    let last = idle_warm.into_iter().take(give_way);
    surplus.extend(last.map(|(_, agent, _)| (agent.index, Why::NotNeeded)));
    for (profile, warm) in missing_warm(snapshot, agents, failures) {
        *needed.entry(profile).or_default() += warm as usize;
    }
    unplaced.retain(|(agent, _)| !surplus.contains_key(&agent.index));
    let going = agents.values().filter(|agent| is_going(agent)).count() + surplus.len();
    let homeless = needed.values().sum::<usize>().saturating_sub(room + going);
    for agent in give_way_unplaced(unplaced, &needed, homeless, now, plan) {
        surplus.insert(agent, Why::NoNode);
    }
    surplus
}

/// Agents that are more than there may be, of their profile or at all, after a maximum was lowered: the first of those that
/// may go. Gives their indexes.
fn above_maximum<'a>(
    pool: &Pool,
    staying: &HashMap<&str, usize>,
    may_go: impl Iterator<Item = (&'a Agent, &'a Pod)>,
) -> Vec<u32> {
    let profiles = pool.profiles.iter().filter_map(|profile| {
        let name = profile.name.as_str();
        let there = staying.get(name).copied().unwrap_or(0);
        Some((name, there.saturating_sub(profile.max_agents? as usize)))
    });
    let mut above: HashMap<&str, usize> = profiles.collect();
    let (mut going, others): (Vec<_>, Vec<_>) =
        may_go.partition(|(_, pod)| take(&mut above, &pod.profile));
    let there: usize = staying.values().sum();
    let above = there.saturating_sub(pool.max_agents as usize + going.len());
    going.extend(others.into_iter().take(above));
    going.iter().map(|(agent, _)| agent.index).collect()
}

/// Pods that no node takes give their places to agents of other profiles that find none, those that wait the longest
/// first. Gives their indexes.
fn give_way_unplaced(
    mut unplaced: Vec<(&Agent, &Pod)>,
    needed: &HashMap<&str, usize>,
    homeless: usize,
    now: Timestamp,
    plan: &mut Plan,
) -> Vec<u32> {
    unplaced.sort_by_key(|(agent, pod)| (pod.waiting.map(|waiting| waiting.since), agent.index));
    let all: usize = needed.values().sum();
    let mut giving = Vec::new();
    for (agent, pod) in unplaced {
        let own = needed.get(pod.profile.as_str()).copied().unwrap_or(0);
        let wanted = giving.len() < homeless.min(all - own);
        match patience(agent, wanted, now) {
            Some(Patience::Over(_)) => giving.push(agent.index),
            Some(Patience::Until(time)) => plan.again_at(time),
            None => {}
        }
    }
    giving
}

/// Whether an agent in this state works on, or will.
fn stays(state: AgentState) -> bool {
    match state {
        AgentState::Starting
        | AgentState::Idle { .. }
        | AgentState::Busy { .. }
        | AgentState::Offline => true,
        AgentState::Drained
        | AgentState::Draining
        | AgentState::Exiting
        | AgentState::Stopping
        | AgentState::Finished
        | AgentState::Orphaned
        | AgentState::Unknown => false,
    }
}

/// Until when an idle agent that no queued job needs is kept.
fn due(since: Timestamp, pod: &Pod, pool: &Pool) -> (Timestamp, Why) {
    match pool.ttl_idle {
        Some(ttl) if !pod.min_agent => (later(since, ttl), Why::IdleTooLong),
        _ => (later(since, SURPLUS_GRACE), Why::NotNeeded),
    }
}

/// Whether an agent that counts against `maxAgents` is about to make room without more ado.
fn is_going(agent: &Agent) -> bool {
    match agent.state {
        AgentState::Drained | AgentState::Draining | AgentState::Exiting => true,
        AgentState::Stopping => agent.request().is_none(),
        AgentState::Idle { .. } | AgentState::Starting => agent.outdated,
        AgentState::Busy { .. }
        | AgentState::Offline
        | AgentState::Finished
        | AgentState::Orphaned
        | AgentState::Unknown => false,
    }
}

/// Takes one of what the profile has, if there is one left.
fn take(left: &mut HashMap<&str, usize>, profile: &str) -> bool {
    match left.get_mut(profile) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}
