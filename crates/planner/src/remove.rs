//! What is to go: agents that are not needed, outdated, ended or orphaned, and their claims. A removal takes two looks: the first disables the agent, the second sees that it is disabled and free.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use crate::{
    Action, Agent, AgentState, CLAIM_GRACE, Intake, KnownLook, Look, Plan, Pod, PodPhase, Pool,
    Registration, Snapshot, Why, later,
    placeholders::Placeholders,
    queue::QueuedJob,
    retry::{Failure, Failures, Patience, patience},
    surplus::surplus,
    whole_second,
};

pub(crate) fn plan(
    snapshot: &Snapshot,
    agents: &BTreeMap<u32, Agent>,
    queued: &[QueuedJob<'_>],
    failures: &Failures,
    now: Timestamp,
    plan: &mut Plan,
) {
    let look = match &snapshot.look {
        Look::Known(look) => look,
        Look::Unknown { reason, .. } => {
            for agent in agents
                .values()
                .filter(|agent| agent.state == AgentState::Finished)
            {
                plan.withhold(
                    &agent.name,
                    Why::Unknown {
                        reason: reason.clone(),
                    },
                );
            }
            return;
        }
    };
    let kept = kept(&snapshot.pool, agents);
    let surplus = surplus(snapshot, look, agents, queued, failures, now, plan);
    for (index, agent) in agents {
        let unwanted = if let Some(why) = snapshot.pool.ends() {
            Some(why)
        } else if agent.outdated {
            Some(Why::Outdated)
        } else if agent.state == AgentState::Offline {
            Some(Why::NotOnline)
        } else {
            let surplus = surplus.get(index).cloned();
            surplus.or_else(|| given_up(agent, now, plan))
        };
        let kept = kept.contains(index);
        one(agent, unwanted, kept, failures, look, now, plan);
    }
    claims(snapshot, agents, now, plan);
}

/// Pods that ended and stay: the newest of each kind, by index. None where there are to be no agents.
fn kept(pool: &Pool, agents: &BTreeMap<u32, Agent>) -> HashSet<u32> {
    let newest = |most: usize, failed: bool| {
        let ended = agents.values().filter_map(|agent| {
            let (at, of_kind) = match agent.pod.as_ref()?.phase {
                PodPhase::Failed { at } => (at, failed),
                PodPhase::Succeeded { at } => (at, !failed),
                PodPhase::Pending | PodPhase::Running => return None,
            };
            of_kind.then_some((at, agent.index))
        });
        let mut ended: Vec<_> = ended.collect();
        ended.sort_unstable();
        ended.into_iter().rev().take(most)
    };
    if pool.ends().is_some() {
        return HashSet::new();
    }
    newest(pool.keep.failed, true)
        .chain(newest(pool.keep.succeeded, false))
        .map(|(_, index)| index)
        .collect()
}

/// Why a Pod that has a node is given up.
fn given_up(agent: &Agent, now: Timestamp, plan: &mut Plan) -> Option<Why> {
    match patience(agent, false, now)? {
        Patience::Over(why) => Some(why),
        Patience::Until(time) => {
            plan.again_at(time);
            None
        }
    }
}

/// What is to be done about one agent.
fn one(
    agent: &Agent,
    unwanted: Option<Why>,
    kept: bool,
    failures: &Failures,
    look: &KnownLook,
    now: Timestamp,
    plan: &mut Plan,
) {
    match (agent.state, &agent.pod, &agent.registration) {
        (AgentState::Busy { request }, Some(pod), Some(registration)) => {
            mark(pod, Some(request), true, plan);
            if let Some(why) = unwanted {
                // It keeps its job and gets no other.
                disable(registration, why, plan);
                plan.withhold(&agent.name, Why::Busy { request });
            }
        }
        (AgentState::Idle { .. }, Some(pod), Some(registration)) => {
            mark(pod, None, false, plan);
            if let Some(why) = unwanted {
                disable(registration, why, plan);
            }
        }
        (AgentState::Drained, Some(pod), Some(registration)) => {
            act_if_fresh(
                removal(registration, Some(pod)),
                Why::Drained,
                look,
                now,
                plan,
            );
        }
        (AgentState::Starting | AgentState::Offline, Some(pod), None) => {
            let Some(why) = unwanted else { return };
            // Without any registration of its name, not even one that cannot be proven ours, it cannot have a job.
            let unheard_of = || {
                let mut registrations = look.agent_pool.registrations.iter();
                registrations
                    .all(|registration| !registration.name.eq_ignore_ascii_case(&agent.name))
            };
            let ends = matches!(why, Why::Deleting | Why::ModeDrained);
            let silent = agent.state == AgentState::Offline && ends && unheard_of();
            if agent.never_ran() && matches!(why, Why::NotStarting | Why::NoNode) {
                let (name, uid) = (pod.name.clone(), pod.uid.clone());
                act_if_fresh(Action::GiveUpPod { name, uid }, why, look, now, plan);
            } else if agent.never_ran() || silent {
                delete_pod(pod, why, look, now, plan);
            } else {
                plan.withhold(&agent.name, Why::Starting);
            }
        }
        (
            AgentState::Starting | AgentState::Offline | AgentState::Exiting,
            Some(_),
            Some(registration),
        ) => {
            if let Some(why) = unwanted {
                disable(registration, why, plan);
            }
        }
        (AgentState::Stopping, Some(pod), Some(registration)) => {
            if registration.assigned.is_none() && registration.intake == Intake::Disabled {
                // It ends with its registration, even if nothing in its container minds being stopped.
                let removal = removal(registration, Some(pod));
                act_if_fresh(removal, Why::PodStopping, look, now, plan);
            } else {
                disable(registration, Why::PodStopping, plan);
            }
        }
        (AgentState::Draining, ..) => plan.withhold(&agent.name, Why::AwaitingLook),
        (AgentState::Finished, Some(pod), registration) => {
            let failure = failures.get(agent);
            finished(pod, registration.as_deref(), kept, failure, look, now, plan);
        }
        (AgentState::Orphaned, _, Some(registration)) => {
            let removal = removal(registration, None);
            gone(registration, removal, Why::PodGone, look, now, plan);
        }
        _ => {}
    }
}

/// A Pod that has ended: its registration goes, then the Pod. One that failed before it ran a job stays for a while,
/// registration and all, as what tells that it was tried.
fn finished(
    pod: &Pod,
    registration: Option<&Registration>,
    kept: bool,
    failure: Option<Failure>,
    look: &KnownLook,
    now: Timestamp,
    plan: &mut Plan,
) {
    let ended_before = pod
        .phase
        .finished_at()
        .is_some_and(|at| at < whole_second(look.taken_at));
    if !ended_before {
        plan.withhold(&pod.name, Why::AwaitingLook);
    } else if let Some(failure) = failure {
        if let Some(registration) = registration.filter(|registration| registration.online) {
            disable(registration, Why::PodFinished, plan);
        }
        plan.withhold(&pod.name, Why::RetryLater);
        match failure {
            Failure::Stands { until } | Failure::Remembered { until: Some(until) } => {
                plan.again_at(until);
            }
            Failure::Remembered { until: None } => {}
        }
    } else if let Some(registration) = registration {
        let removal = if kept {
            let (agent_id, name) = (registration.id, registration.name.clone());
            Action::RemoveRegistration { agent_id, name }
        } else {
            removal(registration, Some(pod))
        };
        gone(registration, removal, Why::PodFinished, look, now, plan);
    } else if kept {
        plan.withhold(&pod.name, Why::Kept);
    } else if !pod.stopping {
        delete_pod(pod, Why::PodFinished, look, now, plan);
    }
}

/// A registration whose agent cannot be running any more. Without a session nothing can be assigned to it; with one,
/// the server may still believe in the agent, so it is disabled first.
fn gone(
    registration: &Registration,
    removal: Action,
    why: Why,
    look: &KnownLook,
    now: Timestamp,
    plan: &mut Plan,
) {
    match registration {
        Registration {
            assigned: Some(request),
            ..
        } => {
            disable(registration, why, plan);
            plan.withhold(&registration.name, Why::JobLost { request: *request });
        }
        Registration {
            online: true,
            intake: Intake::Enabled,
            ..
        } => disable(registration, why, plan),
        Registration {
            intake: Intake::DisableSent,
            ..
        } => plan.withhold(&registration.name, Why::AwaitingLook),
        _ => act_if_fresh(removal, why, look, now, plan),
    }
}

pub(crate) fn disable(registration: &Registration, why: Why, plan: &mut Plan) {
    if registration.intake == Intake::Enabled {
        plan.act(
            Action::Disable {
                agent_id: registration.id,
                name: registration.name.clone(),
            },
            why,
        );
    }
}

fn removal(registration: &Registration, pod: Option<&Pod>) -> Action {
    Action::Remove {
        agent_id: registration.id,
        name: registration.name.clone(),
        pod_uid: pod.map(|pod| pod.uid.clone()),
    }
}

fn delete_pod(pod: &Pod, why: Why, look: &KnownLook, now: Timestamp, plan: &mut Plan) {
    let (name, uid) = (pod.name.clone(), pod.uid.clone());
    act_if_fresh(Action::DeletePod { name, uid }, why, look, now, plan);
}

/// A removal relies on what the look saw, so an old look does not do.
pub(crate) fn act_if_fresh(
    removal: Action,
    why: Why,
    look: &KnownLook,
    now: Timestamp,
    plan: &mut Plan,
) {
    if now > look.fresh_until {
        plan.withhold(removal.subject(), Why::AwaitingLook);
    } else {
        plan.act(removal, why);
    }
}

fn mark(pod: &Pod, request: Option<i64>, guarded: bool, plan: &mut Plan) {
    if (pod.request, pod.guarded) != (request, guarded) {
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        plan.act(
            Action::MarkPod {
                name,
                uid,
                request,
                guarded,
            },
            Why::StateChanged,
        );
    }
}

/// Claims that went with an agent whose Pod is gone.
fn claims(snapshot: &Snapshot, agents: &BTreeMap<u32, Agent>, now: Timestamp, plan: &mut Plan) {
    for claim in &snapshot.cluster.claims {
        let has_pod = agents
            .get(&claim.index)
            .is_some_and(|agent| agent.pod.is_some());
        if has_pod || claim.stopping {
            continue;
        }
        let due = later(claim.created_at, CLAIM_GRACE);
        if now < due {
            plan.again_at(due);
        } else {
            plan.act(
                Action::DeleteClaim {
                    name: claim.name.clone(),
                    uid: claim.uid.clone(),
                },
                Why::AgentGone,
            );
        }
    }
}

/// Whether nothing of a RunnerPool is left that its deletion has to wait for, as a look tells that is not old.
pub(crate) fn nothing_left(
    snapshot: &Snapshot,
    agents: &BTreeMap<u32, Agent>,
    now: Timestamp,
) -> bool {
    let Look::Known(look) = &snapshot.look else {
        return false;
    };
    let last_pod_shows = (snapshot.cluster.shown_after).is_none_or(|after| after < look.taken_at);
    now <= look.fresh_until
        && last_pod_shows
        && agents.is_empty()
        && snapshot.cluster.claims.is_empty()
        && Placeholders::of(snapshot, look).is_empty()
}
