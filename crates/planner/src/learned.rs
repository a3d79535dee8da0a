//! What the agents of each profile can do, as far as it is known: what the RunnerPool gives them or declares of them, and
//! what they were seen to report.
//!
//! An agent teaches what its image can do; the profile's placeholder remembers it in Azure DevOps while there is none, so
//! nothing is lost by a restart. See `docs/demands.md`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::SignedDuration;

use crate::{
    Agent, Capabilities, Demand, Pod, Profile, Registration, Reported, later,
    placeholders::{Learned, Placeholders},
};

/// Variable of every agent that names its profile.
const ENV_PROFILE: &str = "AZP_CAPABILITY";

/// How much the clocks of Azure DevOps and of the cluster may differ: an agent takes longer than that to start.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

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

/// What the newest agent of each profile reports, with the id of its registration.
pub(crate) struct Taught<'a>(HashMap<&'a str, (i64, &'a Reported)>);

impl<'a> Taught<'a> {
    pub(crate) fn by(agents: &'a BTreeMap<u32, Agent>) -> Self {
        let mut taught: HashMap<&str, (i64, &Reported)> = HashMap::new();
        for agent in agents.values().filter(|agent| !agent.outdated) {
            let (Some(pod), Some(registration)) = (&agent.pod, &agent.registration) else {
                continue;
            };
            // Agents report at their registration, and one that ran a short job may never be seen online.
            if !is_of(registration, pod) {
                continue;
            }
            let own = (registration.id, &registration.capabilities);
            let newest = taught.entry(&pod.profile).or_insert(own);
            if newest.0 < own.0 {
                *newest = own;
            }
        }
        Self(taught)
    }

    /// What the newest of them reports, with the id of its registration.
    pub(crate) fn newest(&self, profile: &'a Profile) -> Option<(i64, Learned<'a>)> {
        let (id, reported) = self.0.get(profile.name.as_str())?;
        let learned = Learned {
            image: &profile.image,
            capabilities: &reported.system,
            user: Some(reported.user.as_ref()),
            whole: true,
        };
        Some((*id, learned))
    }

    /// The system capabilities of the newest of them, with the id of its registration.
    pub(crate) fn newest_report(&self, profile: &Profile) -> Option<(i64, &'a Arc<Capabilities>)> {
        let (id, reported) = self.0.get(profile.name.as_str())?;
        Some((*id, &reported.system))
    }
}

/// Whether a registration tells of this Pod's agent, and not of a former one of its name, which an old look may show.
fn is_of(registration: &Registration, pod: &Pod) -> bool {
    let reported = &registration.capabilities.system;
    let since = later(pod.created_at, -CLOCK_TOLERANCE);
    reported.get(ENV_PROFILE) == Some(pod.profile.as_str())
        && registration
            .created_on
            .is_none_or(|created| created >= since)
}

/// What is known of a profile's agents.
pub(crate) struct Knowledge<'a> {
    pub(crate) profile: &'a Profile,
    /// What agents of its image report; `None`: none was seen yet.
    learned: Option<Learned<'a>>,
}

impl<'a> Knowledge<'a> {
    pub(crate) fn of(
        profile: &'a Profile,
        taught: &Taught<'a>,
        placeholders: &Placeholders<'a>,
    ) -> Self {
        let learned = placeholders.learned(profile, taught);
        Self {
            profile,
            learned: learned.filter(|learned| learned.image == profile.image),
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
        let has_another_value = |promised: &Capabilities| {
            let value = promised.get(name);
            value.is_some_and(|value| !value.is_empty())
        };
        match self.learned {
            Some(learned) if learned.meets(demand) => Verdict::Met,
            Some(learned) if learned.hides(name, self.profile) => Verdict::Unknown,
            Some(_) => Verdict::Unmet,
            None if declared => Verdict::Met,
            None if has_another_value(&self.profile.given) => Verdict::Unmet,
            None if has_another_value(&self.profile.declared) => Verdict::Unmet,
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
pub(crate) const OF_EVERY_AGENT: [&str; 7] = [
    "Agent.Name",
    "Agent.OS",
    "Agent.OSArchitecture",
    "Agent.Version",
    "Agent.ComputerName",
    "Agent.HomeDirectory",
    "InteractiveSession",
];
