//! What is to go wrong and when: all of it from one seed, decided before anything happens.
//!
//! Whom it hits can only be decided then, as Pods come and go by themselves; each event brings a number to choose with.

use std::{fmt, time::Duration};

use azure_devops_simulator::FaultKind;

use super::random::Random;

/// A kind of event; the table counts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    ReplicaKilled,
    ReplicaRestarted,
    ReplicaFrozenBriefly,
    ReplicaFrozenLong,
    ReplicaCutOff,
    ApiServerRestarted,
    EtcdRestarted,
    WatchesCut,
    WatchesExpired,
    ApiServerSlow,
    ApiServerBusy,
    AzureDevOps(Trouble),
    PodDeleted,
    PodDeletedByForce,
    PodEvicted,
    NodeLost,
    ImageEdited,
    MaximumEdited,
    MinimumEdited,
    EnvironmentEdited,
    IdleTimeEdited,
    RunnerPoolRecreated,
}

/// The faults of Azure DevOps, with the numbers that make them hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Trouble {
    Latency,
    ServerError,
    TooManyRequests,
    RetryAfter,
    SignInPage,
    Unauthorized,
    TruncatedBody,
    DroppedConnection,
    EmptyList,
    StaleRead,
    LostReply,
}

/// An event with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Since the chaos began.
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    /// How long the trouble lasts, where it lasts.
    pub(crate) lasts: Duration,
    /// Decides whom it hits.
    pub(crate) number: u64,
}

/// From one event to the next: so close that most troubles overlap another one, so far apart that the operator gets
/// anything done in between.
const GAP_MILLIS: (u32, u32) = (2_000, 5_000);
/// The first event leaves the load a moment to begin.
const FIRST: Duration = Duration::from_secs(3);

impl Kind {
    pub(crate) const ALL: [Self; 32] = [
        Self::ReplicaKilled,
        Self::ReplicaRestarted,
        Self::ReplicaFrozenBriefly,
        Self::ReplicaFrozenLong,
        Self::ReplicaCutOff,
        Self::ApiServerRestarted,
        Self::EtcdRestarted,
        Self::WatchesCut,
        Self::WatchesExpired,
        Self::ApiServerSlow,
        Self::ApiServerBusy,
        Self::AzureDevOps(Trouble::Latency),
        Self::AzureDevOps(Trouble::ServerError),
        Self::AzureDevOps(Trouble::TooManyRequests),
        Self::AzureDevOps(Trouble::RetryAfter),
        Self::AzureDevOps(Trouble::SignInPage),
        Self::AzureDevOps(Trouble::Unauthorized),
        Self::AzureDevOps(Trouble::TruncatedBody),
        Self::AzureDevOps(Trouble::DroppedConnection),
        Self::AzureDevOps(Trouble::EmptyList),
        Self::AzureDevOps(Trouble::StaleRead),
        Self::AzureDevOps(Trouble::LostReply),
        Self::PodDeleted,
        Self::PodDeletedByForce,
        Self::PodEvicted,
        Self::NodeLost,
        Self::ImageEdited,
        Self::MaximumEdited,
        Self::MinimumEdited,
        Self::EnvironmentEdited,
        Self::IdleTimeEdited,
        Self::RunnerPoolRecreated,
    ];

    /// How long it lasts, least and most in milliseconds; 0 where it is over at once.
    const fn lasts_millis(self) -> (u32, u32) {
        match self {
            // Until somebody starts it again, as a kubelet does.
            Self::ReplicaKilled => (200, 8_000),
            // Within the lease of 4 s, and beyond it.
            Self::ReplicaFrozenBriefly => (500, 2_500),
            Self::ReplicaFrozenLong | Self::ReplicaCutOff => (6_000, 15_000),
            Self::ApiServerRestarted | Self::EtcdRestarted => (200, 6_000),
            Self::WatchesExpired => (500, 2_000),
            Self::ApiServerSlow | Self::ApiServerBusy => (4_000, 15_000),
            Self::AzureDevOps(_) => (6_000, 20_000),
            Self::NodeLost => (5_000, 20_000),
            Self::ReplicaRestarted
            | Self::WatchesCut
            | Self::PodDeleted
            | Self::PodDeletedByForce
            | Self::PodEvicted
            | Self::ImageEdited
            | Self::MaximumEdited
            | Self::MinimumEdited
            | Self::EnvironmentEdited
            | Self::IdleTimeEdited
            | Self::RunnerPoolRecreated => (0, 0),
        }
    }
}

impl Trouble {
    /// What the simulator is told. Times are those of a service in trouble, scaled to runs of minutes.
    pub(crate) const fn fault(self) -> FaultKind {
        match self {
            Self::Latency => FaultKind::Latency {
                delay: Duration::from_secs(3),
            },
            Self::ServerError => FaultKind::ServerError { status: 503 },
            Self::TooManyRequests => FaultKind::TooManyRequests { retry_after: 3 },
            Self::RetryAfter => FaultKind::RetryAfter { retry_after: 3 },
            Self::SignInPage => FaultKind::SignInPage,
            Self::Unauthorized => FaultKind::Unauthorized,
            Self::TruncatedBody => FaultKind::TruncatedBody,
            Self::DroppedConnection => FaultKind::DroppedConnection,
            Self::EmptyList => FaultKind::EmptyList,
            Self::StaleRead => FaultKind::StaleRead {
                age: Duration::from_secs(3),
            },
            Self::LostReply => FaultKind::LostReply,
        }
    }
}

/// All events of a run. Every kind comes once before any comes again, so that a run of two minutes has seen each.
pub(crate) fn events(mut random: Random, duration: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    let mut bag: Vec<Kind> = Vec::new();
    let mut at = FIRST;
    while at < duration {
        let kind = bag.pop().unwrap_or_else(|| {
            bag = Kind::ALL.to_vec();
            random.shuffle(&mut bag);
            // The bag was just filled.
            bag.pop().unwrap_or(Kind::ReplicaKilled)
        });
        let (least, most) = kind.lasts_millis();
        events.push(Event {
            at,
            kind,
            lasts: random.millis(least, most),
            number: random.number(),
        });
        at += random.millis(GAP_MILLIS.0, GAP_MILLIS.1);
    }
    events
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::ReplicaKilled => "replica killed",
            Self::ReplicaRestarted => "replica restarted",
            Self::ReplicaFrozenBriefly => "replica frozen, within the lease",
            Self::ReplicaFrozenLong => "replica frozen, beyond the lease",
            Self::ReplicaCutOff => "replica cut off from the API server",
            Self::ApiServerRestarted => "API server killed and restarted",
            Self::EtcdRestarted => "etcd killed and restarted",
            Self::WatchesCut => "watches cut",
            Self::WatchesExpired => "watches expired (410)",
            Self::ApiServerSlow => "API server slow",
            Self::ApiServerBusy => "API server busy (429)",
            Self::AzureDevOps(Trouble::Latency) => "Azure DevOps: late",
            Self::AzureDevOps(Trouble::ServerError) => "Azure DevOps: 503",
            Self::AzureDevOps(Trouble::TooManyRequests) => "Azure DevOps: 429",
            Self::AzureDevOps(Trouble::RetryAfter) => "Azure DevOps: asks to wait",
            Self::AzureDevOps(Trouble::SignInPage) => "Azure DevOps: sign-in page",
            Self::AzureDevOps(Trouble::Unauthorized) => "Azure DevOps: 401",
            Self::AzureDevOps(Trouble::TruncatedBody) => "Azure DevOps: truncated body",
            Self::AzureDevOps(Trouble::DroppedConnection) => "Azure DevOps: dropped connection",
            Self::AzureDevOps(Trouble::EmptyList) => "Azure DevOps: empty list",
            Self::AzureDevOps(Trouble::StaleRead) => "Azure DevOps: stale read",
            Self::AzureDevOps(Trouble::LostReply) => "Azure DevOps: lost reply",
            Self::PodDeleted => "Pod deleted by a stranger",
            Self::PodDeletedByForce => "Pod deleted by force",
            Self::PodEvicted => "Pod evicted",
            Self::NodeLost => "node lost",
            Self::ImageEdited => "image edited",
            Self::MaximumEdited => "maxAgents edited",
            Self::MinimumEdited => "minAgents edited",
            Self::EnvironmentEdited => "extraEnv edited",
            Self::IdleTimeEdited => "ttlIdleSeconds edited",
            Self::RunnerPoolRecreated => "RunnerPool deleted and recreated",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_schedule_and_a_long_one_has_every_kind() {
        let minutes =
            |seed, minutes: u64| events(Random::new(seed), Duration::from_secs(60 * minutes));
        assert_eq!(minutes(1, 3), minutes(1, 3));
        assert_ne!(minutes(1, 3), minutes(2, 3));
        for seed in 0..100 {
            let events = minutes(seed, 3);
            let kinds: BTreeSet<Kind> = events.iter().map(|event| event.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}");
            assert!(events.is_sorted_by_key(|event| event.at));
            assert!(
                events
                    .iter()
                    .all(|event| event.at < Duration::from_secs(180))
            );
        }
    }
}
