//! Agents that will take, or have taken, a job which the look shows as queued.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::{
    Agent, AgentState, Hold, Intake, KnownLook, Look, NODE_PATIENCE, Pod, PodPhase, Snapshot,
    Waiting, later, retry::Failures, snapshot::by_profile, whole_second,
};

/// How many there are of each profile.
///
/// A look grows old while Pods change. So that it can be planned upon again and again, an agent that could take one of
/// its jobs counts as long as its Pod is there, even when the Pod has ended or is being deleted since: Pods that ended
/// are removed by a later look only.
pub(crate) fn supply<'a>(
    snapshot: &Snapshot,
    look: &KnownLook,
    agents: &'a BTreeMap<u32, Agent>,
    failures: &Failures,
) -> HashMap<&'a str, usize> {
    count(agents, |agent, pod| match agent.state {
        AgentState::Starting | AgentState::Idle { .. } => !agent.outdated,
        AgentState::Finished => {
            (ended_since(agent, &snapshot.look) && agent.request().is_none())
                || failures.stands(agent)
        }
        AgentState::Stopping => !agent.outdated && may_have_begun(agent, pod, look),
        _ => false,
    })
}

/// How many there are of each profile of another RunnerPool: not those whose start is in doubt, as only that RunnerPool has
/// a reason to wait for them. One without a node may be waiting for an autoscaler.
pub(crate) fn certain(agents: &BTreeMap<u32, Agent>, now: Timestamp) -> HashMap<&str, usize> {
    let in_doubt = |waiting: Waiting| match waiting.hold {
        Hold::NotStarted => false,
        Hold::Queued | Hold::Failing => true,
        Hold::NoNode => now >= later(waiting.since, NODE_PATIENCE),
    };
    count(agents, |agent, pod| match agent.state {
        AgentState::Idle { .. } => !agent.outdated,
        AgentState::Starting => !agent.outdated && !pod.waiting.is_some_and(in_doubt),
        _ => false,
    })
}

fn count(
    agents: &BTreeMap<u32, Agent>,
    counts: impl Fn(&Agent, &Pod) -> bool,
) -> HashMap<&str, usize> {
    by_profile(agents.values().filter_map(|agent| {
        let pod = agent.pod.as_deref()?;
        counts(agent, pod).then_some(pod)
    }))
}

/// Whether the agent's Pod ended after the look.
pub(crate) fn ended_since(agent: &Agent, look: &Look) -> bool {
    let ended_at = agent.pod.as_ref().and_then(|pod| pod.phase.finished_at());
    match look {
        Look::Known(look) => ended_at.is_some_and(|at| at >= whole_second(look.taken_at)),
        Look::Unknown { .. } => false,
    }
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
