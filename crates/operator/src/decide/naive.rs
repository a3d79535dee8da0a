//! Removals as they must not be made: an idle agent that nothing needs loses its Pod and its registration after a single
//! look, without having been disabled. Jobs that arrive meanwhile are killed; tests show that they notice.

use std::collections::HashMap;

use jiff::Timestamp;
use planner::{Action, Agent, AgentState, Breach, Plan, Planned, Snapshot};

/// The planner's plan without its patience, and without the check, which would forbid it.
pub(crate) fn unchecked(snapshot: &Snapshot, now: Timestamp) -> (Plan, Vec<Breach>) {
    let mut plan = planner::plan(snapshot, now);
    let agents = plan.agents.iter();
    let agents: HashMap<&str, &Agent> = agents.map(|agent| (agent.name.as_str(), agent)).collect();
    let mut actions = Vec::new();
    for planned in &plan.actions {
        match at_once(planned, &agents) {
            Some(removals) => {
                // A Pod that is marked at the same time would not be the one that was seen, and stay.
                let name = planned.action.subject();
                actions.retain(|other: &Planned| other.action.subject() != name);
                actions.extend(removals);
            }
            None => actions.push(planned.clone()),
        }
    }
    plan.actions = actions;
    (plan, Vec::new())
}

/// Instead of disabling an idle agent: both deletions, side by side.
fn at_once(planned: &Planned, agents: &HashMap<&str, &Agent>) -> Option<[Planned; 2]> {
    let Action::Disable { agent_id, name } = &planned.action else {
        return None;
    };
    let agent = agents.get(name.as_str())?;
    let (AgentState::Idle { .. }, Some(pod)) = (agent.state, &agent.pod) else {
        return None;
    };
    let planned = |action| Planned {
        action,
        why: planned.why.clone(),
    };
    let (name, uid) = (name.clone(), pod.uid.clone());
    Some([
        planned(Action::DeletePod {
            name: name.clone(),
            uid: uid.clone(),
        }),
        planned(Action::Remove {
            agent_id: *agent_id,
            name,
            pod_uid: Some(uid),
        }),
    ])
}
