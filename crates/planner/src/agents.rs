//! Joins Pods and registrations to agents, and says of each what it is doing. Every rule consults this one view.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{Intake, KnownLook, Look, Pod, PodPhase, Pool, Registration, STARTUP_WINDOW, Snapshot};

/// An index that is in use, by a Pod, by a registration of ours, or by both.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Pod.
    pub pod: Option<Arc<Pod>>,
    /// Its registration, when it is provably ours.
    pub registration: Option<Arc<Registration>>,
    /// What it is doing.
    pub state: AgentState,
    /// Whether its Pod was made in another shape than its profile has now.
    pub outdated: bool,
}

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Its Pod is on its way to a session.
    Starting,
    /// Online, enabled, free.
    Idle {
        /// Since when.
        since: Timestamp,
    },
    /// A job is assigned to it.
    Busy {
        /// The request.
        request: i64,
    },
    /// Disabled and free, as seen by a look.
    Drained,
    /// The operator disabled it after the look.
    Draining,
    /// It ended its one job and is about to exit.
    Exiting,
    /// Its container runs but has had no session for longer than a start takes.
    Offline,
    /// Its Pod is being deleted.
    Stopping,
    /// Its Pod has ended.
    Finished,
    /// It has a registration but no Pod.
    Orphaned,
    /// Its Pod is there, and Azure DevOps could not be looked at.
    Unknown,
}

impl Agent {
    /// Whether its Pod counts against `maxAgents`.
    pub fn is_alive(&self) -> bool {
        match &self.pod {
            Some(pod) => pod.phase.finished_at().is_none(),
            // A session without a Pod: the view of the cluster may lag behind a Pod that was just made.
            None => self
                .registration
                .as_ref()
                .is_some_and(|registration| registration.online),
        }
    }

    /// The request that is assigned to it, whatever the state of its Pod.
    pub fn request(&self) -> Option<i64> {
        self.registration
            .as_ref()
            .and_then(|registration| registration.assigned)
    }

    /// Whether its Pod exists and its container has never run: it cannot have a job, nor get one before it has run.
    pub(crate) fn never_ran(&self) -> bool {
        self.registration.is_none()
            && self
                .pod
                .as_ref()
                .is_some_and(|pod| pod.phase == PodPhase::Pending)
    }
}

/// Every index in use, with its agent.
pub(crate) fn join(snapshot: &Snapshot, now: Timestamp) -> BTreeMap<u32, Agent> {
    let pool = &snapshot.pool;
    let mut pods: HashMap<u32, &Arc<Pod>> = snapshot
        .cluster
        .pods
        .iter()
        .filter_map(|pod| Some((pool.index_of(&pod.name)?, pod)))
        .collect();
    let mut agents = BTreeMap::new();
    if let Look::Known(look) = &snapshot.look {
        let reserved = reservations(look);
        for registration in &look.agent_pool.registrations {
            let Some(index) = pool.index_of(&registration.name) else {
                continue;
            };
            if !is_ours(
                pool,
                registration,
                pods.get(&index).copied().map(Arc::as_ref),
            ) {
                continue;
            }
            let pod = pods.remove(&index);
            let mut registration = Arc::clone(registration);
            if registration.assigned.is_none()
                && let Some(request) = reserved.get(&registration.id)
            {
                Arc::make_mut(&mut registration).assigned = Some(*request);
            }
            agents.insert(index, agent(index, pod, Some(registration), now));
        }
        agents.extend(
            pods.drain()
                .map(|(index, pod)| (index, agent(index, Some(pod), None, now))),
        );
    } else {
        agents.extend(pods.drain().map(|(index, pod)| (index, unseen(index, pod))));
    }
    mark_outdated(pool, &mut agents);
    agents
}

fn mark_outdated(pool: &Pool, agents: &mut BTreeMap<u32, Agent>) {
    let shapes = pool.profiles.iter();
    let shapes: HashSet<(&str, &str)> = shapes
        .map(|profile| (profile.name.as_str(), profile.shape.as_str()))
        .collect();
    for agent in agents.values_mut() {
        agent.outdated = agent.pod.as_ref().is_some_and(|pod| {
            let shape = pod.shape.as_deref();
            !shape.is_some_and(|shape| shapes.contains(&(pod.profile.as_str(), shape)))
        });
    }
}

/// Requests by the agent that they are reserved for. Azure DevOps tells an assignment twice, in the list of agents and
/// in the list of requests; the two are read one after the other, so either may know more.
fn reservations(look: &KnownLook) -> HashMap<i64, i64> {
    let mut reserved = HashMap::new();
    for request in &look.agent_pool.requests {
        if let Some(agent) = request.reserved_agent {
            let first = reserved.entry(agent).or_insert(request.id);
            *first = request.id.min(*first);
        }
    }
    reserved
}

/// How many agents count against `maxAgents`: every Pod that has not ended, whatever its name, and every session
/// without a Pod.
fn alive(snapshot: &Snapshot, agents: &BTreeMap<u32, Agent>) -> usize {
    let pods = snapshot.cluster.pods.iter();
    let pods = pods.filter(|pod| pod.phase.finished_at().is_none()).count();
    let orphans = agents
        .values()
        .filter(|agent| agent.pod.is_none() && agent.is_alive());
    pods + orphans.count()
}

/// How many agents `maxAgents` lets be made.
pub(crate) fn room(snapshot: &Snapshot, agents: &BTreeMap<u32, Agent>) -> usize {
    (snapshot.pool.max_agents as usize).saturating_sub(alive(snapshot, agents))
}

/// Proof that a registration is ours: its mark or, for agents made before the mark existed, a live Pod of that name.
pub(crate) fn is_ours(pool: &Pool, registration: &Registration, pod: Option<&Pod>) -> bool {
    match &registration.owner_mark {
        Some(mark) => *mark == pool.owner_mark,
        None => pod.is_some_and(|pod| !pod.marked),
    }
}

fn agent(
    index: u32,
    pod: Option<&Arc<Pod>>,
    registration: Option<Arc<Registration>>,
    now: Timestamp,
) -> Agent {
    let state = state(pod.map(Arc::as_ref), registration.as_deref(), now);
    let name = pod
        .map(|pod| &pod.name)
        .or(registration.as_ref().map(|registration| &registration.name));
    Agent {
        index,
        name: name.cloned().unwrap_or_default(),
        pod: pod.cloned(),
        registration,
        state,
        outdated: false,
    }
}

fn unseen(index: u32, pod: &Arc<Pod>) -> Agent {
    let state = match pod.as_ref() {
        pod if pod.phase.finished_at().is_some() => AgentState::Finished,
        Pod { stopping: true, .. } => AgentState::Stopping,
        Pod {
            phase: PodPhase::Pending,
            ..
        } => AgentState::Starting,
        _ => AgentState::Unknown,
    };
    Agent {
        index,
        name: pod.name.clone(),
        pod: Some(Arc::clone(pod)),
        registration: None,
        state,
        outdated: false,
    }
}

/// Whether the agent's container has been running for longer than a start takes.
pub(crate) fn is_late(pod: &Pod, now: Timestamp) -> bool {
    let started_at = pod.started_at.unwrap_or(pod.created_at);
    pod.phase == PodPhase::Running && now.duration_since(started_at) > STARTUP_WINDOW
}

fn state(pod: Option<&Pod>, registration: Option<&Registration>, now: Timestamp) -> AgentState {
    let Some(pod) = pod else {
        return AgentState::Orphaned;
    };
    if pod.phase.finished_at().is_some() {
        return AgentState::Finished;
    }
    if pod.stopping {
        return AgentState::Stopping;
    }
    let starting = || {
        if is_late(pod, now) {
            AgentState::Offline
        } else {
            AgentState::Starting
        }
    };
    let Some(registration) = registration else {
        return starting();
    };
    if let Some(request) = registration.assigned {
        return AgentState::Busy { request };
    }
    match registration.intake {
        Intake::Disabled => return AgentState::Drained,
        Intake::DisableSent => return AgentState::Draining,
        Intake::Enabled => {}
    }
    if pod.run_once && registration.last_finished.is_some() {
        return AgentState::Exiting;
    }
    if !registration.online {
        return starting();
    }
    let since = registration
        .last_finished
        .or(registration.created_on)
        .unwrap_or(pod.created_at);
    AgentState::Idle { since }
}
