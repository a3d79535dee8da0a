//! Controls: operators that do what must not be done. The harness has to fail each of them, or it would be worth
//! nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use operator::decide::{Decide, checked};
use planner::{Action, AgentState, Look, Plan, Planned, Pool, Snapshot, Why, plan};

use crate::book::{Breach, Failure};

/// Which operator runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Control {
    /// Deletes the Pod of an agent after one look that says idle. Its Pods have no pre-stop hook, as those of the
    /// original operator.
    OneLook,
    /// Takes a look that failed for one that saw nothing.
    FailedIsEmpty,
    /// Counts its agents along instead of looking which are there.
    Counters,
    /// Gives a name again as soon as no Pod has it.
    ReusedNames,
    /// Compares the whole text of each demand with that of what a profile declares, as KEDA does.
    WholeTexts,
    /// Looks at the first demand of a job only, as the original operator does.
    FirstDemand,
    /// Makes no placeholders.
    NoPlaceholders,
}

impl Control {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OneLook,
        Self::FailedIsEmpty,
        Self::Counters,
        Self::ReusedNames,
        Self::WholeTexts,
        Self::FirstDemand,
        Self::NoPlaceholders,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneLook => "one-look",
            Self::FailedIsEmpty => "failed-is-empty",
            Self::Counters => "counters",
            Self::ReusedNames => "reused-names",
            Self::WholeTexts => "whole-texts",
            Self::FirstDemand => "first-demand",
            Self::NoPlaceholders => "no-placeholders",
        }
    }

    /// What it does wrong, by which it is to be caught. Whatever else goes wrong with it may be a matter of chance.
    pub fn breaches(self) -> &'static [Breach] {
        match self {
            Self::OneLook => &[Breach::JobKilled, Breach::BusyDisturbed],
            Self::FailedIsEmpty => &[Breach::StrangerTouched],
            Self::Counters => &[Breach::AboveMaximum],
            // The claims of the former agent of the name are about to go.
            Self::ReusedNames => &[Breach::IdentityShared, Breach::ClaimInUseDeleted],
            Self::WholeTexts => &[Breach::NotConverged],
            // Agents are kept for jobs that they cannot run.
            Self::FirstDemand => &[Breach::NotConverged, Breach::LeftOver],
            Self::NoPlaceholders => &[Breach::JobRefused],
        }
    }

    /// Whether a run failed by what it does wrong.
    pub fn is_caught(self, failures: &[Failure]) -> bool {
        let own = self.breaches();
        failures.iter().any(|failure| own.contains(&failure.breach))
    }
}

/// What makes the plans of one operator process.
pub(crate) type Maker = Arc<Decide>;

/// The planner of a process that has just started.
pub(crate) fn maker(control: Option<Control>) -> Maker {
    match control {
        None => Arc::new(checked),
        Some(Control::FailedIsEmpty) => unchecked(plan),
        Some(Control::OneLook) => unchecked(one_look),
        Some(Control::ReusedNames) => unchecked(reused_names),
        Some(Control::WholeTexts) => unchecked(|snapshot, now| {
            let texts = declared_texts(&snapshot.pool);
            reading(snapshot, now, |demands| {
                demands.iter().all(|demand| texts.contains(demand))
            })
        }),
        Some(Control::FirstDemand) => unchecked(|snapshot, now| {
            reading(snapshot, now, |demands| {
                demands.truncate(1);
                true
            })
        }),
        Some(Control::NoPlaceholders) => unchecked(|snapshot, now| {
            let mut plan = plan(snapshot, now);
            plan.actions
                .retain(|planned| !matches!(planned.action, Action::AddPlaceholder { .. }));
            plan
        }),
        Some(Control::Counters) => {
            let counters = Mutex::new(HashMap::new());
            unchecked(move |snapshot, now| {
                let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                counted(snapshot, now, &mut counters)
            })
        }
    }
}

/// Plans that nobody looks at once more.
fn unchecked(plan: impl Fn(&Snapshot, Timestamp) -> Plan + Send + Sync + 'static) -> Maker {
    Arc::new(move |snapshot, now| (plan(snapshot, now), Vec::new()))
}

/// Every text that a demand may have which a profile meets by what it declares.
fn declared_texts(pool: &Pool) -> HashSet<String> {
    let declared = pool
        .profiles
        .iter()
        .flat_map(|profile| profile.declared.iter());
    let texts =
        declared.flat_map(|(name, value)| [name.to_owned(), format!("{name} -equals {value}")]);
    texts.collect()
}

/// The plan of who reads demands in his own way; a job whose demands he does not take for met gets no agent.
fn reading(snapshot: &Snapshot, now: Timestamp, read: impl Fn(&mut Vec<String>) -> bool) -> Plan {
    let mut snapshot = snapshot.clone();
    if let Look::Known(look) = &mut snapshot.look {
        Arc::make_mut(&mut look.agent_pool)
            .requests
            .retain_mut(|request| {
                // All of them leave out what every agent meets.
                request.demands.retain(|demand| {
                    let demand = demand.trim_start().to_lowercase();
                    !demand.starts_with("agent.version ")
                });
                request.reserved_agent.is_some() || read(&mut request.demands)
            });
    }
    plan(&snapshot, now)
}

fn one_look(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut plan = plan(snapshot, now);
    let idle: HashMap<&str, &str> = plan
        .agents
        .iter()
        .filter(|agent| matches!(agent.state, AgentState::Idle { .. }))
        .filter_map(|agent| Some((agent.name.as_str(), agent.pod.as_ref()?.uid.as_str())))
        .collect();
    let mut actions = plan.actions.clone();
    for planned in &mut actions {
        if let Action::Disable { name, .. } = &planned.action
            && let Some(uid) = idle.get(name.as_str())
        {
            planned.action = Action::DeletePod {
                name: name.clone(),
                uid: (*uid).to_owned(),
            };
        }
    }
    plan.actions = actions;
    plan
}

fn reused_names(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut plan = plan(snapshot, now);
    let pods = snapshot.cluster.pods.iter();
    let mut used: HashSet<String> = pods.map(|pod| pod.name.clone()).collect();
    for planned in &mut plan.actions {
        if let Action::CreateAgent { index, name, .. } = &mut planned.action {
            let names =
                (0..).map(|index| (index, format!("{}{index}", snapshot.pool.agent_prefix)));
            if let Some((free, free_name)) =
                names.into_iter().find(|(_, name)| !used.contains(name))
            {
                used.insert(free_name.clone());
                (*index, *name) = (free, free_name);
            }
        }
    }
    plan
}

/// Agents as counted, and the Pods that were there the last time.
#[derive(Default)]
struct Counter {
    agents: u32,
    pods: HashSet<String>,
}

fn counted(snapshot: &Snapshot, now: Timestamp, counters: &mut HashMap<String, Counter>) -> Plan {
    let mut plan = plan(snapshot, now);
    let pool = &snapshot.pool;
    let counter = counters.entry(pool.owner_mark.clone()).or_default();
    let pods = snapshot.cluster.pods.iter();
    let there: HashSet<String> = pods
        .filter(|pod| pod.phase.finished_at().is_none())
        .map(|pod| pod.uid.clone())
        .collect();
    let gone = counter.pods.difference(&there).count();
    counter.agents = counter
        .agents
        .saturating_sub(u32::try_from(gone).unwrap_or_default());
    counter.pods = there;
    plan.actions
        .retain(|planned| !matches!(planned.action, Action::CreateAgent { .. }));
    let Look::Known(look) = &snapshot.look else {
        return plan;
    };
    if pool.deleting {
        return plan;
    }
    let queued = look.agent_pool.requests.iter();
    let queued = queued.filter(|job| job.reserved_agent.is_none()).count();
    let busy = look.agent_pool.requests.len() - queued;
    let wanted = u32::try_from(queued + busy).unwrap_or(u32::MAX);
    let min_agents = pool.profiles.iter().map(|profile| profile.min_agents).sum();
    let wanted = wanted.max(min_agents).min(pool.max_agents);
    let names: HashSet<&str> = snapshot
        .cluster
        .pods
        .iter()
        .map(|pod| pod.name.as_str())
        .chain(
            look.agent_pool
                .registrations
                .iter()
                .map(|agent| agent.name.as_str()),
        )
        .collect();
    let free = (0..)
        .map(|index| (index, format!("{}{index}", pool.agent_prefix)))
        .filter(|(_, name)| !names.contains(name.as_str()));
    let missing = wanted.saturating_sub(counter.agents);
    let profile = pool.profiles.first().map(|profile| profile.name.clone());
    for (index, name) in free.take(usize::try_from(missing).unwrap_or_default()) {
        let min_agent = counter.agents < min_agents;
        plan.actions.push(Planned {
            action: Action::CreateAgent {
                index,
                name,
                profile: profile.clone().unwrap_or_default(),
                min_agent,
                run_once: !min_agent && pool.ttl_idle.is_none(),
                attempt: 0,
            },
            why: Why::BelowMinimum,
        });
        counter.agents += 1;
    }
    plan
}
