//! Who serves a job, in worlds where a profile declares its own name and no agent has taught anything: said once more,
//! in another way than the planner does.

use std::collections::BTreeSet;

use planner::{AgentState, JobRequest, Look, Plan, Snapshot};

/// Who serves a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wants {
    /// Any agent.
    Any,
    /// One of this profile.
    Profile(String),
    /// Nobody knows.
    Unknown,
}

fn wants(snapshot: &Snapshot, request: &JobRequest) -> Wants {
    let words = request.demands.iter().map(|demand| {
        let name = demand.split(' ').next().unwrap_or_default();
        name.to_lowercase()
    });
    let names: BTreeSet<String> = words.filter(|name| name != "agent.version").collect();
    let mut profiles = snapshot.pool.profiles.iter();
    let declared = |name: &String| profiles.any(|p| p.name == *name && *name != "base");
    match names.len() {
        0 => Wants::Any,
        1 if names.iter().all(declared) => Wants::Profile(names.into_iter().collect()),
        _ => Wants::Unknown,
    }
}

/// What each queued job wants.
pub(crate) fn queued(snapshot: &Snapshot) -> Vec<Wants> {
    let Look::Known(look) = &snapshot.look else {
        return Vec::new();
    };
    let requests = look.agent_pool.requests.iter();
    let queued = requests.filter(|request| request.reserved_agent.is_none());
    queued.map(|request| wants(snapshot, request)).collect()
}

/// Queued jobs for which no agent is there or on its way.
pub(crate) fn starving(snapshot: &Snapshot, plan: &Plan) -> usize {
    let supply = |name: &str| {
        let agents = plan.agents.iter();
        agents
            .filter(|agent| agent.pod.as_ref().is_some_and(|pod| pod.profile == name))
            .filter(|agent| matches!(agent.state, AgentState::Starting | AgentState::Idle { .. }))
            .count()
    };
    let queued = queued(snapshot);
    let count = |wanted: &Wants| queued.iter().filter(|wants| *wants == wanted).count();
    let (mut starving, mut spare, mut agents) = (0, 0, 0);
    for profile in &snapshot.pool.profiles {
        let (jobs, supply) = (
            count(&Wants::Profile(profile.name.clone())),
            supply(&profile.name),
        );
        starving += jobs.saturating_sub(supply);
        spare += supply.saturating_sub(jobs);
        agents += supply;
    }
    starving += count(&Wants::Any).saturating_sub(spare);
    // One agent finds out for all of them.
    starving + usize::from(count(&Wants::Unknown) > 0 && agents == 0)
}
