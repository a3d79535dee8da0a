//! Removals as they must not be made: an idle agent that nothing needs loses its Pod and its registration after a single
//! look, without having been disabled. Jobs that arrive meanwhile are killed; tests show that they notice.

use std::collections::HashMap;

use jiff::Timestamp;
use planner::{Action, Agent, AgentState, Breach, Plan, Planned, Snapshot};

/// The planner's plan without its patience, and without the check, which would forbid it.
pub(crate) fn unchecked(snapshot: &Snapshot, now: Timestamp) -> (Plan, Vec<Breach>) {
    let mut plan = planner::plan(snapshot, now);
    let agents: HashMap<&str, &Agent> = plan
        .agents
        .iter()
        .map(|agent| (agent.name.as_str(), agent))
        .collect();
    let actions = plan.actions.iter();
    let actions = actions.flat_map(|planned| at_once(planned, &agents));
    plan.actions = actions.collect();
    (plan, Vec::new())
}

/// Instead of disabling an idle agent: both deletions, side by side.
fn at_once(planned: &Planned, agents: &HashMap<&str, &Agent>) -> Vec<Planned> {
    if let Action::Disable { agent_id, name } = &planned.action
        && let Some(agent) = agents.get(name.as_str())
        && let (AgentState::Idle { .. }, Some(pod)) = (agent.state, &agent.pod)
    {
        let (agent_id, name, uid) = (*agent_id, name.clone(), pod.uid.clone());
        let removals = [
            Action::DeletePod {
                name: name.clone(),
                uid: uid.clone(),
            },
            Action::Remove {
                agent_id,
                name,
                pod_uid: Some(uid),
            },
        ];
        let why = &planned.why;
        return removals
            .map(|action| Planned {
                action,
                why: why.clone(),
            })
            .into();
    }
    vec![planned.clone()]
}
