//! A RunnerPool as far as the jobs of its agent pool are concerned: what agents it has and may have.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
};

use crate::{
    Agent, AgentState, Hold, KnownLook, Look, Mode, Pool, Profile, Snapshot, agents::alive,
    learned::Taught, placeholders::Placeholders, queue::Served, retry::Failures, supply::supply,
};

/// What is read once of a RunnerPool and of a look. There is none when Azure DevOps could not be looked at: neither demand
/// nor knowledge is invented.
pub(crate) struct Party<'a> {
    /// Whether the plan is made for it.
    pub(crate) is_own: bool,
    snapshot: &'a Snapshot,
    pub(crate) look: &'a KnownLook,
    pub(crate) agents: &'a BTreeMap<u32, Agent>,
    pub(crate) placeholders: Placeholders<'a>,
    pub(crate) taught: Taught<'a>,
    /// Agents that it may have more.
    pub(crate) room: usize,
    failures: &'a Failures,
    /// Agents that will take a job, by profile.
    supply: HashMap<&'a str, usize>,
    /// Pods that have not ended, by profile.
    alive: HashMap<&'a str, usize>,
}

impl<'a> Party<'a> {
    pub(crate) fn of(
        snapshot: &'a Snapshot,
        agents: &'a BTreeMap<u32, Agent>,
        failures: &'a Failures,
    ) -> Option<Self> {
        let Look::Known(look) = &snapshot.look else {
            return None;
        };
        let pool = &snapshot.pool;
        let room = (pool.max_agents as usize).saturating_sub(alive(snapshot, agents));
        Some(Self {
            is_own: true,
            snapshot,
            look,
            agents,
            placeholders: Placeholders::of(snapshot, look),
            taught: Taught::by(agents),
            room,
            failures,
            supply: supply(snapshot, look, agents, failures),
            alive: snapshot.cluster.alive_by_profile(),
        })
    }

    /// Another RunnerPool, whose plan is made elsewhere: what it will not do is not counted upon.
    pub(crate) fn sibling(
        snapshot: &'a Snapshot,
        agents: &'a BTreeMap<u32, Agent>,
        failures: &'a Failures,
    ) -> Option<Self> {
        let mut party = Self::of(snapshot, agents, failures)?;
        party.is_own = false;
        party.supply = certain(agents);
        if snapshot.pool.ends().is_some() {
            party.supply.clear();
            party.room = 0;
        } else if snapshot.pool.mode == Mode::Paused {
            party.room = 0;
        }
        Some(party)
    }

    pub(crate) fn pool(&self) -> &'a Pool {
        &self.snapshot.pool
    }

    pub(crate) fn profiles(&self) -> &'a [Profile] {
        &self.snapshot.pool.profiles
    }

    /// Agents of the profile that will take a job.
    pub(crate) fn there(&self, profile: &Profile) -> usize {
        self.supply.get(profile.name.as_str()).copied().unwrap_or(0)
    }

    /// Agents of the profile that may be made.
    pub(crate) fn room_of(&self, profile: &Profile) -> usize {
        let alive = self.alive.get(profile.name.as_str()).copied();
        let room = |most: u32| (most as usize).saturating_sub(alive.unwrap_or(0));
        profile
            .max_agents
            .map_or(self.room, |most| room(most).min(self.room))
    }

    pub(crate) fn holds_back(&self, profile: &Profile) -> bool {
        self.failures.hold_back(&profile.name)
    }

    /// The profile that a job without an agent waits for, of those that serve it: the first that is not full.
    pub(crate) fn waits_for(
        &self,
        mut serve: impl Iterator<Item = &'a Profile>,
    ) -> Option<&'a Profile> {
        let first = serve.next()?;
        let mut all = iter::once(first).chain(serve);
        Some(all.find(|profile| !self.is_full(profile)).unwrap_or(first))
    }

    /// Why no agent of the profile is made when there is room for so many more; `None`: one is.
    pub(crate) fn why_none(&self, profile: &Profile, room: usize) -> Option<Served> {
        if self.holds_back(profile) {
            Some(Served::HeldBack)
        } else if self.is_full(profile) {
            Some(Served::ProfileFull)
        } else {
            (room == 0).then_some(Served::NoRoom)
        }
    }

    /// Whether there are as many agents of the profile as there may be of it.
    fn is_full(&self, profile: &Profile) -> bool {
        let alive = self.alive.get(profile.name.as_str()).copied().unwrap_or(0);
        profile
            .max_agents
            .is_some_and(|most| alive >= most as usize)
    }
}

/// Agents of another RunnerPool that will take a job, by profile: not those whose start is in doubt, as only that RunnerPool
/// has a reason to wait for them.
fn certain(agents: &BTreeMap<u32, Agent>) -> HashMap<&str, usize> {
    let mut certain = HashMap::new();
    for agent in agents.values().filter(|agent| !agent.outdated) {
        let Some(pod) = &agent.pod else { continue };
        let comes = match agent.state {
            AgentState::Idle { .. } => true,
            AgentState::Starting => pod
                .waiting
                .is_none_or(|waiting| waiting.hold == Hold::NotStarted),
            _ => false,
        };
        if comes {
            *certain.entry(pod.profile.as_str()).or_default() += 1;
        }
    }
    certain
}
