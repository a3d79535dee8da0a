//! What a plan is made from.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use crate::{Capabilities, Demand, ENV_DIGEST, Why};

/// Everything that a plan is made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the user wants.
    pub pool: Arc<Pool>,
    /// What the cluster holds.
    pub cluster: Cluster,
    /// What Azure DevOps said.
    pub look: Look,
    /// Other RunnerPools of the agent pool, with the same look, and without siblings of their own.
    pub siblings: Vec<Snapshot>,
}

/// A RunnerPool's wishes, resolved from its spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its namespace and name.
    pub name: String,
    /// Of RunnerPools that could serve a job, the one with the highest does.
    pub priority: i32,
    /// Agents are named by this prefix and their index, as in `web-agent-0`.
    pub agent_prefix: String,
    /// Placeholders are named by this prefix and their profile, as in `web-placeholder-base`.
    pub placeholder_prefix: String,
    /// What follows when another RunnerPool, or a stranger, holds that name.
    pub placeholder_suffix: String,
    /// What a registration of ours carries as proof.
    pub owner_mark: String,
    /// Most Pods that are not finished.
    pub max_agents: u32,
    /// How long an agent may be idle; `None`: agents above the minimum run one job.
    pub ttl_idle: Option<SignedDuration>,
    /// Kinds of agents. The first is the base, for jobs that demand nothing that another declares.
    pub profiles: Vec<Profile>,
    /// Whether agents come and go.
    pub mode: Mode,
    /// Whether a placeholder stands for each profile.
    pub placeholders: bool,
    /// Pods that ended and stay for inspection.
    pub keep: Keep,
    /// The RunnerPool is being deleted.
    pub deleting: bool,
}

/// How many Pods that ended stay for inspection: the newest of each kind, without their registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Of those that failed.
    pub failed: usize,
    /// Of those that ended well.
    pub succeeded: usize,
}

/// Whether agents come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As jobs need them.
    #[default]
    Active,
    /// Nothing is created or removed.
    Paused,
    /// There are to be none; busy ones finish their job.
    Drained,
}

/// A kind of agent: an image and what it can do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Capabilities that the user says its agents have; an empty value stands for any.
    pub declared: Capabilities,
    /// Capabilities that its agents have for certain, as they come from the environment that they are given.
    pub given: Capabilities,
    /// Its image: what agents of another one can do says nothing of it.
    pub image: String,
    /// Agents that are kept without need.
    pub min_agents: u32,
    /// Most of its Pods that are not finished; `None`: as many as the RunnerPool may have.
    pub max_agents: Option<u32>,
    /// Whether its agents run on Windows.
    pub windows: bool,
    /// Digest of the Pod that is made for it now.
    pub shape: String,
}

/// What the cluster holds, as far as it concerns the RunnerPool.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Pods that the RunnerPool owns, shared with whoever watches them.
    pub pods: Vec<Arc<Pod>>,
    /// Claims that go with their agent. Kept claims are not listed: they are in nobody's way.
    pub claims: Vec<Claim>,
    /// A look that began after this shows what the agents of the Pods did that are gone; `None`: none has gone since the
    /// operator started.
    pub shown_after: Option<Timestamp>,
    /// Names that no new agent may get: in use by other RunnerPools of the same agent pool, or by Pods that are gone, whose
    /// sessions the look need not show yet.
    pub taken: BTreeSet<String>,
}

/// A Pod that the RunnerPool owns.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that is read off the Pod"
)]
pub struct Pod {
    /// Its name, which is its agent's name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Whether its deletion was asked for.
    pub stopping: bool,
    /// When it was created; whole seconds.
    pub created_at: Timestamp,
    /// When the agent's container started; `None` while it has not.
    pub started_at: Option<Timestamp>,
    /// Name of its profile.
    pub profile: String,
    /// Digest of the shape it was made in; `None`: made by somebody who did not note it.
    pub shape: Option<String>,
    /// Whether it counts towards `min_agents`.
    pub min_agent: bool,
    /// Whether its agent ends after one job.
    pub run_once: bool,
    /// Whether its agent carries the owner mark; `false` for Pods of the former operator.
    pub marked: bool,
    /// The job request that it is labelled with.
    pub request: Option<i64>,
    /// Whether it is guarded against eviction.
    pub guarded: bool,
    /// How many Pods in a row failed before it.
    pub attempt: u32,
    /// What its start waits for; `None` when its container has run, or nothing is known of it yet.
    pub waiting: Option<Waiting>,
}

/// What the start of a Pod waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What it waits for.
    pub hold: Hold,
    /// Since when it has a node, or looks for one; whole seconds.
    pub since: Timestamp,
}

/// What keeps a Pod from starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It waits for its turn in a queue, as that of Kueue, before it is given a node.
    Queued,
    /// No node has taken it.
    NoNode,
    /// A node has it and has not started it yet, and tells of no error.
    NotStarted,
    /// A node has it and tells of an error, as that its image cannot be pulled.
    Failing,
}

/// Where a Pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// The agent's container has never run.
    Pending,
    /// The agent's container runs.
    Running,
    /// It ended well.
    Succeeded {
        /// When; whole seconds.
        at: Timestamp,
    },
    /// It ended badly.
    Failed {
        /// When; whole seconds.
        at: Timestamp,
    },
}

impl PodPhase {
    /// When the Pod ended; `None` while it has not.
    pub fn finished_at(self) -> Option<Timestamp> {
        match self {
            Self::Pending | Self::Running => None,
            Self::Succeeded { at } | Self::Failed { at } => Some(at),
        }
    }
}

/// A claim that goes with its agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Index of its agent.
    pub index: u32,
    /// When it was created; whole seconds.
    pub created_at: Timestamp,
    /// Whether its deletion was asked for.
    pub stopping: bool,
}

/// What Azure DevOps said of the agent pool.
#[derive(Clone, Debug)]
pub enum Look {
    /// It answered.
    Known(KnownLook),
    /// It did not, or not in a way that can be relied on.
    Unknown {
        /// Why not.
        reason: String,
        /// What the last answer said, for names only; `None` when there never was one.
        last: Option<Arc<AgentPool>>,
    },
}

/// A look that succeeded.
#[derive(Clone, Debug)]
pub struct KnownLook {
    /// When it began. What happened before shows in it, as far as Azure DevOps's lists do not lag behind.
    pub taken_at: Timestamp,
    /// Until when it may be relied on for a removal.
    pub fresh_until: Timestamp,
    /// What it saw, and what the operator itself changed since.
    pub agent_pool: Arc<AgentPool>,
    /// What is remembered of the looks before.
    pub memory: Arc<Memory>,
}

/// What is remembered of former looks. A restart loses it: jobs count as new then, a placeholder that is deleted at that
/// very time comes back without what it had learned, and what placeholders do not carry is found out anew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// When each unfinished request was seen for the first time.
    pub first_seen: HashMap<i64, Timestamp>,
    /// What placeholders carried when they were seen last, by name in lower case.
    pub placeholders: HashMap<String, Reported>,
    /// What agents taught last, by [`Pool::lesson_name`].
    pub lessons: HashMap<String, Lesson>,
}

/// What an agent of a profile was seen to report.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// Id of its registration.
    pub agent_id: i64,
    /// Its image.
    pub image: String,
    /// Its system capabilities.
    pub reported: Arc<Capabilities>,
}

impl Memory {
    /// Takes over what a look saw that began at this time.
    pub fn take(memory: &mut Arc<Self>, seen: &AgentPool, taken_at: Timestamp) {
        let requests = &seen.requests;
        let known = |request: &JobRequest| memory.first_seen.contains_key(&request.id);
        if memory.first_seen.len() != requests.len() || !requests.iter().all(known) {
            let former = Arc::clone(memory);
            let first_seen = requests.iter().map(|request| {
                let former = former.first_seen.get(&request.id).copied();
                (request.id, former.unwrap_or(taken_at))
            });
            Arc::make_mut(memory).first_seen = first_seen.collect();
        }
        for registration in &seen.registrations {
            let carried = &registration.capabilities;
            let Some(digest) = carried.user.get(ENV_DIGEST) else {
                continue;
            };
            let known = memory.placeholders.get(&registration.name.to_lowercase());
            if known.and_then(|known| known.user.get(ENV_DIGEST)) != Some(digest) {
                let placeholders = &mut Arc::make_mut(memory).placeholders;
                placeholders.insert(registration.name.to_lowercase(), carried.clone());
            }
        }
    }
}

/// An agent pool in Azure DevOps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentPool {
    /// Every registered agent, whoever registered it. One that changes is another one: earlier looks stay as they were.
    pub registrations: Vec<Arc<Registration>>,
    /// Every job request without a result.
    pub requests: Vec<JobRequest>,
}

/// A registered agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The owner mark among its capabilities.
    pub owner_mark: Option<String>,
    /// What it can do.
    pub capabilities: Reported,
    /// Whether it has a session.
    pub online: bool,
    /// Whether it may get jobs.
    pub intake: Intake,
    /// The request that is assigned to it.
    pub assigned: Option<i64>,
    /// When it was registered.
    pub created_on: Option<Timestamp>,
    /// When the last request that it completed ended; `None`: it never completed one.
    pub last_finished: Option<Timestamp>,
    /// The last request that it had, if Azure DevOps gave it up as it heard no more of the agent.
    pub abandoned: Option<i64>,
}

/// What an agent can do. Agents that can do the same share what they report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// What it reported itself.
    pub system: Arc<Capabilities>,
    /// What was given to it in Azure DevOps.
    pub user: Arc<Capabilities>,
}

impl Reported {
    /// Whether an agent that reports this meets a demand: it does not matter who says so.
    pub(crate) fn meets(&self, demand: Demand<'_>) -> bool {
        demand.is_met_by(&self.system) || demand.is_met_by(&self.user)
    }
}

/// Whether an agent may get jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// It may.
    Enabled,
    /// It may not, and the look says so: what the look shows as free stays free.
    Disabled,
    /// The operator disabled it after the look: the next one tells whether it had a job by then.
    DisableSent,
}

/// A job request without a result.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRequest {
    /// Its id; later requests have higher ones.
    pub id: i64,
    /// Its demands as Azure DevOps writes them.
    pub demands: Vec<String>,
    /// Ids of the registrations without a session that meet its demands, as the service sees it; `None`: it does not say.
    pub matched: Option<Vec<i64>>,
    /// The agent that it is reserved for; `None`: it is queued.
    pub reserved_agent: Option<i64>,
}

impl Cluster {
    /// How many Pods of each profile are not finished.
    pub(crate) fn alive_by_profile(&self) -> HashMap<&str, usize> {
        let pods = self.pods.iter().map(Arc::as_ref);
        by_profile(pods.filter(|pod| pod.phase.finished_at().is_none()))
    }
}

/// How many Pods there are of each profile.
pub(crate) fn by_profile<'a>(pods: impl Iterator<Item = &'a Pod>) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for pod in pods {
        *counts.entry(pod.profile.as_str()).or_default() += 1;
    }
    counts
}

impl Profile {
    /// How many agents of it its own maximum lets be made, where so many of each profile are alive.
    pub(crate) fn room(&self, alive: &HashMap<&str, usize>) -> usize {
        let alive = alive.get(self.name.as_str()).copied().unwrap_or(0);
        self.max_agents
            .map_or(usize::MAX, |most| (most as usize).saturating_sub(alive))
    }
}

impl Pool {
    /// Why there are to be no agents at all; `None`: there may be some.
    pub(crate) fn ends(&self) -> Option<Why> {
        match self.mode {
            _ if self.deleting => Some(Why::Deleting),
            Mode::Drained => Some(Why::ModeDrained),
            Mode::Active | Mode::Paused => None,
        }
    }

    /// Whether everything is to stay as it is.
    pub(crate) fn is_paused(&self) -> bool {
        self.mode == Mode::Paused && !self.deleting
    }

    /// The highest priority first, then by name.
    pub(crate) fn rank(&self) -> (Reverse<i32>, &str) {
        (Reverse(self.priority), &self.name)
    }

    /// The index in an agent's name; `None` for a name that we do not give.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(&self.agent_prefix)?;
        let canonical = digits == "0" || !digits.starts_with(['0', '+']);
        digits.parse().ok().filter(|_| canonical)
    }

    /// Names that a profile's placeholder may have: the second one, which is nobody else's, is for when somebody holds the
    /// first.
    pub fn placeholder_names(&self, profile: &str) -> [String; 2] {
        let prefix = &self.placeholder_prefix;
        [
            format!("{prefix}{profile}"),
            format!("{prefix}{profile}{}", self.placeholder_suffix),
        ]
    }

    /// What a profile of this RunnerPool, and no other, goes by in [`Memory::lessons`].
    pub fn lesson_name(&self, profile: &str) -> String {
        let [_, own] = self.placeholder_names(profile);
        own.to_lowercase()
    }

    /// The profile in a placeholder's name, in either of its forms and in any case; `None` for a name that we do not give.
    pub fn placeholder_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (prefix, suffix) = (&self.placeholder_prefix, &self.placeholder_suffix);
        let (start, profile) = name.split_at_checked(prefix.len())?;
        if !start.eq_ignore_ascii_case(prefix) {
            return None;
        }
        let plain = profile
            .len()
            .checked_sub(suffix.len())
            .and_then(|end| profile.split_at_checked(end))
            .filter(|(_, end)| end.eq_ignore_ascii_case(suffix));
        Some(plain.map_or(profile, |(plain, _)| plain))
    }
}

impl Look {
    /// Whether it shows jobs that no agent is reserved for.
    pub fn has_queued_jobs(&self) -> bool {
        let Self::Known(look) = self else {
            return false;
        };
        let mut requests = look.agent_pool.requests.iter();
        requests.any(|request| request.reserved_agent.is_none())
    }

    /// The registrations that were last seen, however long ago; `None` when there never was an answer.
    pub(crate) fn last_seen(&self) -> Option<&AgentPool> {
        match self {
            Self::Known(look) => Some(&look.agent_pool),
            Self::Unknown { last, .. } => last.as_deref(),
        }
    }
}
