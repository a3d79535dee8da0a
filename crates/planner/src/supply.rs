//! Agents that will take, or have taken, a job which the look shows as queued.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Agent, AgentState, Intake, KnownLook, Look, Pod, PodPhase, Snapshot, retry::Failures,
    whole_second,
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
