//! What becomes of a snapshot when a plan is carried out and Azure DevOps is looked at again.

use std::sync::Arc;

use jiff::Timestamp;
use planner::{
    Action, AgentPool, Intake, Lesson, Look, Plan, Pod, PodPhase, Registration, Snapshot,
};

use crate::world::{known, registration};

/// The snapshot after every action of the plan succeeded, before a new look.
pub(crate) fn carry_out(snapshot: &Snapshot, plan: &Plan, now: Timestamp) -> Snapshot {
    let mut next = snapshot.clone();
    let mut agent_pool = match &next.look {
        Look::Known(look) => AgentPool::clone(&look.agent_pool),
        Look::Unknown { .. } => AgentPool::default(),
    };
    let registrations = &mut agent_pool.registrations;
    let mut id = 10_000 + registrations.iter().map(|r| r.id).max().unwrap_or(0);
    for planned in &plan.actions {
        match planned.action.clone() {
            Action::CreateAgent { .. } => {
                next.cluster
                    .pods
                    .extend(pod(&planned.action, snapshot, now));
            }
            Action::Disable { agent_id, .. } => {
                for registration in registrations.iter_mut().filter(|r| r.id == agent_id) {
                    Arc::make_mut(registration).intake = Intake::DisableSent;
                }
            }
            Action::Remove {
                agent_id, pod_uid, ..
            } => {
                registrations.retain(|registration| registration.id != agent_id);
                next.cluster
                    .pods
                    .retain(|pod| Some(&pod.uid) != pod_uid.as_ref());
            }
            Action::DeletePod { uid, .. } => next.cluster.pods.retain(|pod| pod.uid != uid),
            Action::GiveUpPod { uid, .. } => {
                for pod in next.cluster.pods.iter_mut().filter(|pod| pod.uid == uid) {
                    let pod = Arc::make_mut(pod);
                    pod.phase = PodPhase::Failed { at: now };
                    pod.waiting = None;
                }
            }
            Action::DeleteClaim { uid, .. } => next.cluster.claims.retain(|c| c.uid != uid),
            Action::MarkPod {
                uid,
                request,
                guarded,
                ..
            } => {
                for pod in next.cluster.pods.iter_mut().filter(|pod| pod.uid == uid) {
                    let pod = Arc::make_mut(pod);
                    (pod.request, pod.guarded) = (request, guarded);
                }
            }
            Action::AddPlaceholder { name, capabilities } => {
                id += 1;
                let placeholder = Registration {
                    capabilities,
                    ..registration(id, &name)
                };
                registrations.push(placeholder.into());
            }
            Action::UpdatePlaceholder {
                agent_id,
                capabilities,
                ..
            } => {
                for registration in registrations.iter_mut().filter(|r| r.id == agent_id) {
                    Arc::make_mut(registration).capabilities = capabilities.clone();
                }
            }
            Action::Remember { name, lesson } => remember(&mut next.look, name, lesson),
            Action::RemoveRegistration { agent_id, .. } => {
                registrations.retain(|registration| registration.id != agent_id);
            }
        }
    }
    if let Look::Known(look) = &mut next.look {
        look.agent_pool = Arc::new(agent_pool);
    }
    next
}

/// The Pod that an agent's creation makes.
fn pod(action: &Action, snapshot: &Snapshot, now: Timestamp) -> Option<Arc<Pod>> {
    let Action::CreateAgent {
        name,
        profile,
        min_agent,
        run_once,
        attempt,
        ..
    } = action.clone()
    else {
        return None;
    };
    let mut profiles = snapshot.pool.profiles.iter();
    let shape = profiles
        .find(|known| known.name == profile)
        .map(|profile| profile.shape.clone());
    let pod = Pod {
        uid: format!("pod-of-{name}-{now}"),
        name,
        phase: PodPhase::Pending,
        stopping: false,
        created_at: now,
        started_at: None,
        profile,
        shape,
        min_agent,
        run_once,
        marked: true,
        request: None,
        guarded: true,
        attempt,
        waiting: None,
    };
    Some(pod.into())
}

fn remember(look: &mut Look, name: String, lesson: Lesson) {
    if let Look::Known(look) = look {
        Arc::make_mut(&mut look.memory).lessons.insert(name, lesson);
    }
}

/// The snapshot with a look that begins now: what was disabled shows as disabled, and Pods and claims that were being
/// deleted are gone.
pub(crate) fn look_again(snapshot: &Snapshot, now: Timestamp) -> Snapshot {
    let mut next = snapshot.clone();
    let mut agent_pool = match &next.look {
        Look::Known(look) => AgentPool::clone(&look.agent_pool),
        Look::Unknown { last, .. } => last.as_deref().cloned().unwrap_or_default(),
    };
    for registration in &mut agent_pool.registrations {
        if registration.intake == Intake::DisableSent {
            Arc::make_mut(registration).intake = Intake::Disabled;
        }
    }
    next.look = known(Arc::new(agent_pool), now);
    next.cluster.pods.retain(|pod| !pod.stopping);
    next.cluster.claims.retain(|claim| !claim.stopping);
    next
}
