//! What the agents of each profile can do, as far as it is known: what the RunnerPool gives them or declares of them, and
//! what they were seen to report.
//!
//! The newest agent that is online teaches what its image can do; the profile's placeholder remembers it in Azure DevOps
//! while there is none. Nothing else is kept, so nothing is lost by a restart. See `docs/demands.md`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    Agent, Capabilities, Demand, Profile,
    placeholders::{Learned, Placeholders},
};

/// Whether an agent meets a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It does not.
    Unmet,
    /// No agent of this image was seen yet.
    Unknown,
    /// It does.
    Met,
}

/// What the newest agent of each profile reports.
pub(crate) struct Taught<'a>(HashMap<&'a str, (i64, &'a Arc<Capabilities>)>);

impl<'a> Taught<'a> {
    pub(crate) fn by(agents: &'a BTreeMap<u32, Agent>) -> Self {
        let mut taught: HashMap<&str, (i64, &Arc<Capabilities>)> = HashMap::new();
        for agent in agents.values().filter(|agent| !agent.outdated) {
            let (Some(pod), Some(registration)) = (&agent.pod, &agent.registration) else {
                continue;
            };
            let system = &registration.capabilities.system;
            // Agents report at their registration, and one that ran a short job may never be seen online.
            if !system.is_empty() {
                let newest = taught
                    .entry(&pod.profile)
                    .or_insert((registration.id, system));
                if newest.0 < registration.id {
                    *newest = (registration.id, system);
                }
            }
        }
        Self(taught)
    }

    pub(crate) fn of(&self, profile: &'a Profile) -> Option<Learned<'a>> {
        let (_, capabilities) = self.0.get(profile.name.as_str())?;
        Some(Learned {
            image: &profile.image,
            capabilities,
        })
    }
}

/// What is known of a profile's agents.
pub(crate) struct Knowledge<'a> {
    pub(crate) profile: &'a Profile,
    /// What agents of its image report; `None`: none was seen yet.
    learned: Option<&'a Capabilities>,
}

impl<'a> Knowledge<'a> {
    pub(crate) fn of(
        profile: &'a Profile,
        taught: &Taught<'a>,
        placeholders: &Placeholders<'a>,
    ) -> Self {
        let learned = taught
            .of(profile)
            .or_else(|| placeholders.remembered(profile))
            .filter(|learned| learned.image == profile.image);
        Self {
            profile,
            learned: learned.map(|learned| learned.capabilities.as_ref()),
        }
    }
}

impl Knowledge<'_> {
    pub(crate) fn verdict(&self, demand: Demand<'_>) -> Verdict {
        let Some(name) = demand.name() else {
            return Verdict::Unmet;
        };
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let exists = matches!(demand, Demand::Exists { .. });
        let of_every_agent = exists && OF_EVERY_AGENT.iter().any(|known| is(known));
        if is_met_by_update(demand) || of_every_agent || demand.is_met_by(&self.profile.given) {
            return Verdict::Met;
        }
        // Without a value it says that the capability is there, not what it is.
        let declared =
            demand.is_met_by(&self.profile.declared) || self.profile.declared.get(name) == Some("");
        match self.learned {
            Some(learned) if demand.is_met_by(learned) => Verdict::Met,
            Some(_) => Verdict::Unmet,
            None if declared => Verdict::Met,
            // Agents are named by their index, and whoever wants a certain one does not want a new one.
            None if is("Agent.Name") => Verdict::Unmet,
            None => Verdict::Unknown,
        }
    }

    /// Whether the profile declares what a job demands.
    pub(crate) fn is_for(&self, demands: &[Demand<'_>]) -> bool {
        let mut names = demands.iter().filter_map(|demand| demand.name());
        names.any(|name| self.profile.declared.has(name))
    }

    /// Whether the profile declares what is demanded, and its agents do not report it so.
    pub(crate) fn is_contradicted(&self, demand: Demand<'_>) -> bool {
        let declares = demand
            .name()
            .is_some_and(|name| self.profile.declared.has(name));
        declares && self.verdict(demand) == Verdict::Unmet
    }
}

/// Whether it is about the agent's version only: an agent that is too old for a job is updated by the service first.
pub(crate) fn is_met_by_update(demand: Demand<'_>) -> bool {
    matches!(demand, Demand::AtLeast { name, .. } if name.eq_ignore_ascii_case("Agent.Version"))
}

/// Capabilities that every agent reports, whatever its image.
///
/// Source: the agent's code (`Capabilities/AgentCapabilitiesProvider.cs`).
const OF_EVERY_AGENT: [&str; 7] = [
    "Agent.Name",
    "Agent.OS",
    "Agent.OSArchitecture",
    "Agent.Version",
    "Agent.ComputerName",
    "Agent.HomeDirectory",
    "InteractiveSession",
];
