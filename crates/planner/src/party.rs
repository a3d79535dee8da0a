//! A RunnerPool as far as the jobs of its agent pool are concerned: what agents it has and may have.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
};

use jiff::Timestamp;

use crate::{
    Agent, KnownLook, Look, Pool, Profile, Snapshot,
    agents::room,
    learned::Taught,
    placeholders::Placeholders,
    queue::Served,
    retry::Failures,
    supply::{certain, supply},
};

/// What is read once out of a look for all rules of a RunnerPool. There is none when Azure DevOps could not be looked at:
/// neither demand nor knowledge is invented.
pub(crate) struct Known<'a> {
    pub(crate) look: &'a KnownLook,
    pub(crate) placeholders: Placeholders<'a>,
    pub(crate) taught: Taught<'a>,
}

impl<'a> Known<'a> {
    pub(crate) fn of(snapshot: &'a Snapshot, agents: &'a BTreeMap<u32, Agent>) -> Option<Self> {
        match &snapshot.look {
            Look::Known(look) => Some(Self {
                look,
                placeholders: Placeholders::of(snapshot, look),
                taught: Taught::by(agents),
            }),
            Look::Unknown { .. } => None,
        }
    }
}

/// What matters of a RunnerPool while jobs are queued.
pub(crate) struct Party<'a> {
    /// Whether the plan is made for it.
    pub(crate) is_own: bool,
    snapshot: &'a Snapshot,
    pub(crate) agents: &'a BTreeMap<u32, Agent>,
    pub(crate) known: &'a Known<'a>,
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
        known: &'a Known<'a>,
    ) -> Self {
        Self {
            is_own: true,
            snapshot,
            agents,
            known,
            room: room(snapshot, agents),
            failures,
            supply: supply(snapshot, known.look, agents, failures),
            alive: snapshot.cluster.alive_by_profile(),
        }
    }

    /// Another RunnerPool, whose plan is made elsewhere: what it will not do is not counted upon.
    pub(crate) fn sibling(
        snapshot: &'a Snapshot,
        agents: &'a BTreeMap<u32, Agent>,
        failures: &'a Failures,
        known: &'a Known<'a>,
        now: Timestamp,
    ) -> Self {
        let (ends, paused) = (snapshot.pool.ends().is_some(), snapshot.pool.is_paused());
        let party = Self::of(snapshot, agents, failures, known);
        Self {
            is_own: false,
            room: if ends || paused { 0 } else { party.room },
            supply: if ends {
                HashMap::new()
            } else {
                certain(agents, now)
            },
            ..party
        }
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
        profile.room(&self.alive).min(self.room)
    }

    pub(crate) fn holds_back(&self, profile: &Profile) -> bool {
        self.failures.hold_back(&profile.name)
    }

    /// The profile that a job without an agent waits for, of those that serve it: the first that is not full.
    pub(crate) fn waits_for(
        &self,
        mut serve: impl Iterator<Item = &'a Profile>,
        made: &Made<'_>,
    ) -> Option<&'a Profile> {
        let first = serve.next()?;
        let mut all = iter::once(first).chain(serve);
        let free = all.find(|profile| !self.is_full(profile, made));
        Some(free.unwrap_or(first))
    }

    /// Why no agent of the profile is made beside those that are; `None`: one is.
    pub(crate) fn why_none(&self, profile: &Profile, made: &Made<'_>) -> Option<Served> {
        if self.holds_back(profile) {
            Some(Served::HeldBack)
        } else if self.is_full(profile, made) {
            Some(Served::ProfileFull)
        } else {
            (made.all() >= self.room).then_some(Served::NoRoom)
        }
    }

    /// Whether there are as many agents of the profile as there may be of it.
    fn is_full(&self, profile: &Profile, made: &Made<'_>) -> bool {
        profile.room(&self.alive) <= made.of(profile)
    }
}

/// Agents that a plan makes for queued jobs, by profile.
#[derive(Debug, Default)]
pub(crate) struct Made<'a>(HashMap<&'a str, usize>);

impl<'a> Made<'a> {
    pub(crate) fn add(&mut self, profile: &'a Profile) {
        *self.0.entry(&profile.name).or_default() += 1;
    }

    fn of(&self, profile: &Profile) -> usize {
        self.0.get(profile.name.as_str()).copied().unwrap_or(0)
    }

    fn all(&self) -> usize {
        self.0.values().sum()
    }
}
