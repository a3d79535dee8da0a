//! The invariants of any plan, stated apart from the rules that make one. They run in tests, and once more before a
//! plan is carried out: a plan that breaks one is reported, not carried out.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use jiff::Timestamp;

use crate::{
    Action, Intake, Look, Mode, Plan, Pod, PodPhase, Registration, STARTUP_WINDOW, Snapshot,
};

/// An invariant that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breach {
    /// More agents than `maxAgents`.
    AboveMaximum {
        /// Agents there would be.
        agents: usize,
    },
    /// A removal although Azure DevOps could not be looked at, or not recently.
    RemovalWithoutLook {
        /// What would be removed.
        name: String,
    },
    /// A removal of an agent that a job is assigned to.
    BusyRemoved {
        /// The agent.
        name: String,
    },
    /// A removal of a live agent that a look has not seen disabled.
    NotDisabled {
        /// The agent.
        name: String,
    },
    /// An action on a registration that is not provably ours.
    NotOurs {
        /// The registration.
        name: String,
    },
    /// A new agent with a name that is in use.
    NameInUse {
        /// The name.
        name: String,
    },
    /// A new agent for a RunnerPool that is to have none, or a placeholder for one that is being deleted.
    CreatedWhileEnding {
        /// Its name.
        name: String,
    },
    /// A change while the RunnerPool is paused.
    ChangedWhilePaused {
        /// What would be changed.
        name: String,
    },
    /// A change of what a live agent reported, or of a registration that is no placeholder.
    AgentOverwritten {
        /// The registration.
        name: String,
    },
    /// More agents of a profile than its `maxAgents`.
    AboveProfileMaximum {
        /// The profile.
        profile: String,
        /// Agents there would be.
        agents: usize,
    },
    /// A deletion of the Pod of an agent that may be working, or its end declared.
    LivePodDeleted {
        /// The Pod.
        name: String,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AboveMaximum { agents } => {
                write!(f, "there would be {agents} agents, more than maxAgents")
            }
            Self::RemovalWithoutLook { name } => {
                write!(f, "{name} would be removed without a recent look")
            }
            Self::BusyRemoved { name } => {
                write!(f, "{name} would be removed while a job is assigned to it")
            }
            Self::NotDisabled { name } => {
                write!(f, "{name} would be removed before a look saw it disabled")
            }
            Self::NotOurs { name } => write!(f, "{name} is not provably ours"),
            Self::NameInUse { name } => {
                write!(f, "{name} would be created although the name is in use")
            }
            Self::CreatedWhileEnding { name } => {
                write!(
                    f,
                    "{name} would be created although the RunnerPool is being deleted or drained"
                )
            }
            Self::ChangedWhilePaused { name } => {
                write!(
                    f,
                    "{name} would be changed although the RunnerPool is paused"
                )
            }
            Self::AgentOverwritten { name } => {
                write!(f, "what {name} reported would be overwritten")
            }
            Self::AboveProfileMaximum { profile, agents } => write!(
                f,
                "there would be {agents} agents of profile {profile}, more than its maxAgents"
            ),
            Self::LivePodDeleted { name } => write!(
                f,
                "the Pod {name} would be deleted although its agent may work"
            ),
        }
    }
}

/// Every invariant that carrying out the plan would break.
pub fn check(snapshot: &Snapshot, plan: &Plan, now: Timestamp) -> Vec<Breach> {
    if plan.actions.is_empty() {
        return Vec::new();
    }
    let facts = Facts::new(snapshot, now);
    let mut breaches: Vec<Breach> = plan
        .actions
        .iter()
        .filter_map(|planned| facts.breach(&planned.action))
        .collect();
    let mut created = HashSet::new();
    for planned in &plan.actions {
        if let Action::CreateAgent { name, .. } = &planned.action
            && !created.insert(name)
        {
            breaches.push(Breach::NameInUse { name: name.clone() });
        }
    }
    breaches.extend(above_maximum(snapshot, plan));
    let agents = facts.alive + created.len();
    if !created.is_empty() && agents > snapshot.pool.max_agents as usize {
        breaches.push(Breach::AboveMaximum { agents });
    }
    breaches
}

/// Profiles that would have more agents than they may.
fn above_maximum(snapshot: &Snapshot, plan: &Plan) -> Vec<Breach> {
    let mut agents: HashMap<&str, usize> = HashMap::new();
    for planned in &plan.actions {
        if let Action::CreateAgent { profile, .. } = &planned.action {
            *agents.entry(profile).or_default() += 1;
        }
    }
    for pod in &snapshot.cluster.pods {
        if let Some(agents) = agents.get_mut(pod.profile.as_str())
            && pod.phase.finished_at().is_none()
        {
            *agents += 1;
        }
    }
    let profiles = snapshot.pool.profiles.iter();
    let above = profiles.filter_map(|profile| {
        let agents = *agents.get(profile.name.as_str())?;
        let most = profile.max_agents? as usize;
        (agents > most).then(|| Breach::AboveProfileMaximum {
            profile: profile.name.clone(),
            agents,
        })
    });
    above.collect()
}

struct Facts<'a> {
    snapshot: &'a Snapshot,
    now: Timestamp,
    registrations: HashMap<i64, &'a Registration>,
    reserved: HashSet<i64>,
    /// Names of registrations that are provably ours.
    registered: HashSet<&'a str>,
    pods: HashMap<&'a str, &'a Pod>,
    names: HashSet<String>,
    alive: usize,
}

impl<'a> Facts<'a> {
    fn new(snapshot: &'a Snapshot, now: Timestamp) -> Self {
        let (registrations, reserved) = match &snapshot.look {
            Look::Known(look) => (
                look.agent_pool
                    .registrations
                    .iter()
                    .map(|registration| (registration.id, registration.as_ref()))
                    .collect(),
                look.agent_pool
                    .requests
                    .iter()
                    .filter_map(|request| request.reserved_agent)
                    .collect(),
            ),
            Look::Unknown { .. } => (HashMap::new(), HashSet::new()),
        };
        let mut names: HashSet<String> = snapshot
            .cluster
            .pods
            .iter()
            .map(|pod| pod.name.to_ascii_lowercase())
            .collect();
        let seen = match &snapshot.look {
            Look::Known(look) => Some(&look.agent_pool),
            Look::Unknown { last, .. } => last.as_ref(),
        };
        let seen = seen.iter().flat_map(|agent_pool| &agent_pool.registrations);
        names.extend(seen.map(|registration| registration.name.to_ascii_lowercase()));
        names.extend(
            snapshot
                .cluster
                .taken
                .iter()
                .map(|name| name.to_ascii_lowercase()),
        );
        let alive = snapshot
            .cluster
            .pods
            .iter()
            .filter(|pod| pod.phase.finished_at().is_none())
            .count();
        let pods = snapshot.cluster.pods.iter();
        let mut facts = Self {
            snapshot,
            now,
            registrations,
            reserved,
            registered: HashSet::new(),
            pods: pods.map(|pod| (pod.name.as_str(), pod.as_ref())).collect(),
            names,
            alive,
        };
        let registrations = facts.registrations.values();
        facts.registered = registrations
            .filter(|registration| facts.is_ours(registration))
            .map(|registration| registration.name.as_str())
            .collect();
        facts
    }

    fn breach(&self, action: &Action) -> Option<Breach> {
        let pool = &self.snapshot.pool;
        let drained = pool.mode == Mode::Drained;
        match action {
            Action::MarkPod { .. } | Action::Remember { .. } => None,
            _ if pool.mode == Mode::Paused && !pool.deleting => Some(Breach::ChangedWhilePaused {
                name: action.subject().to_owned(),
            }),
            Action::CreateAgent { name, .. } if pool.deleting || drained => {
                Some(Breach::CreatedWhileEnding { name: name.clone() })
            }
            Action::CreateAgent { name, .. } => self
                .names
                .contains(&name.to_ascii_lowercase())
                .then(|| Breach::NameInUse { name: name.clone() }),
            Action::AddPlaceholder { name, .. } => self
                .snapshot
                .pool
                .deleting
                .then(|| Breach::CreatedWhileEnding { name: name.clone() }),
            Action::Disable { agent_id, name } => self.foreign(*agent_id, name),
            Action::UpdatePlaceholder { agent_id, name, .. } => self
                .foreign(*agent_id, name)
                .or_else(|| self.busy(*agent_id, name))
                .or_else(|| self.agent_changed(*agent_id, name)),
            Action::RemoveRegistration { agent_id, name }
            | Action::Remove { agent_id, name, .. } => self
                .without_look(name)
                .or_else(|| self.foreign(*agent_id, name))
                .or_else(|| self.busy(*agent_id, name))
                .or_else(|| self.not_disabled(*agent_id, name)),
            Action::DeletePod { name, uid } => self.live_pod(name, uid),
            Action::GiveUpPod { name, uid } => self.started_pod(name, uid),
            Action::DeleteClaim { .. } => None,
        }
    }

    fn without_look(&self, name: &str) -> Option<Breach> {
        let recent =
            matches!(&self.snapshot.look, Look::Known(look) if self.now <= look.fresh_until);
        (!recent).then(|| Breach::RemovalWithoutLook {
            name: name.to_owned(),
        })
    }

    fn foreign(&self, agent_id: i64, name: &str) -> Option<Breach> {
        let registration = self.registrations.get(&agent_id);
        let ours = registration.is_some_and(|registration| self.is_ours(registration));
        (!ours).then(|| Breach::NotOurs {
            name: name.to_owned(),
        })
    }

    fn is_ours(&self, registration: &Registration) -> bool {
        match &registration.owner_mark {
            Some(mark) => *mark == self.snapshot.pool.owner_mark,
            None => self
                .pods
                .get(registration.name.as_str())
                .is_some_and(|pod| !pod.marked),
        }
    }

    fn busy(&self, agent_id: i64, name: &str) -> Option<Breach> {
        let assigned = self
            .registrations
            .get(&agent_id)
            .is_some_and(|registration| registration.assigned.is_some());
        (assigned || self.reserved.contains(&agent_id)).then(|| Breach::BusyRemoved {
            name: name.to_owned(),
        })
    }

    /// A live agent must have been seen disabled; one without a session whose Pod is gone or has ended need not.
    fn not_disabled(&self, agent_id: i64, name: &str) -> Option<Breach> {
        let registration = self.registrations.get(&agent_id)?;
        let pod = self.pods.get(registration.name.as_str());
        let dead = pod.is_none_or(|pod| pod.phase.finished_at().is_some()) && !registration.online;
        let seen_disabled = registration.intake == Intake::Disabled;
        (!seen_disabled && !dead).then(|| Breach::NotDisabled {
            name: name.to_owned(),
        })
    }

    /// What an agent itself reported must not be overwritten.
    fn agent_changed(&self, agent_id: i64, name: &str) -> Option<Breach> {
        let registration = self.registrations.get(&agent_id);
        let online = registration.is_some_and(|registration| registration.online);
        let named = registration.is_some_and(|registration| registration.name == name);
        let runs = self
            .pods
            .get(name)
            .is_some_and(|pod| pod.phase.finished_at().is_none());
        let placeholder = self.snapshot.pool.placeholder_of(name).is_some() && named && !runs;
        (online || !placeholder).then(|| Breach::AgentOverwritten {
            name: name.to_owned(),
        })
    }

    fn is_registered_by_anybody(&self, name: &str) -> bool {
        let mut registrations = self.registrations.values();
        registrations.any(|registration| registration.name.eq_ignore_ascii_case(name))
    }

    /// A Pod that is given up must never have run.
    fn started_pod(&self, name: &str, uid: &str) -> Option<Breach> {
        let pod = self.pods.get(name).filter(|pod| pod.uid == uid);
        if pod.is_some_and(|pod| pod.phase == PodPhase::Pending) {
            self.live_pod(name, uid)
        } else {
            Some(Breach::LivePodDeleted {
                name: name.to_owned(),
            })
        }
    }

    fn live_pod(&self, name: &str, uid: &str) -> Option<Breach> {
        let breach = || {
            Some(Breach::LivePodDeleted {
                name: name.to_owned(),
            })
        };
        let Some(pod) = self.pods.get(name).filter(|pod| pod.uid == uid) else {
            return breach();
        };
        if self.registered.contains(name) {
            return breach();
        }
        let pool = &self.snapshot.pool;
        let silent = (pool.deleting || pool.mode == Mode::Drained)
            && self
                .now
                .duration_since(pod.started_at.unwrap_or(pod.created_at))
                > STARTUP_WINDOW;
        match pod.phase {
            PodPhase::Running if silent && !self.is_registered_by_anybody(name) => {
                self.without_look(name)
            }
            PodPhase::Running => breach(),
            PodPhase::Pending | PodPhase::Succeeded { .. } | PodPhase::Failed { .. } => {
                self.without_look(name)
            }
        }
    }
}
