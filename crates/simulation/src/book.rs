//! What a run is judged by and what it counts. The judge knows the truth of both models and none of the planner's
//! rules.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
};

use crate::clock::{Millis, show};

/// A way in which a run fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    /// A job was killed or lost by something that the operator did.
    JobKilled,
    /// The operator acted on an agent while it had a job, in a way that could harm it.
    BusyDisturbed,
    /// There were more unfinished Pods than allowed.
    AboveMaximum,
    /// A registration, Pod or claim of somebody else was touched.
    StrangerTouched,
    /// A claim that is to be kept was deleted.
    KeptClaimDeleted,
    /// A claim was deleted that a Pod was about to use.
    ClaimInUseDeleted,
    /// Two live Pods had one agent's identity.
    IdentityShared,
    /// A plan broke an invariant of the planner's own check.
    PlanRefused,
    /// A job was refused for want of an agent that a placeholder should have stood for.
    JobRefused,
    /// Something was left over at the end.
    LeftOver,
    /// Jobs had not run, or agents were missing, at the end.
    NotConverged,
}

impl Breach {
    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::JobKilled => "job killed",
            Self::BusyDisturbed => "busy agent disturbed",
            Self::AboveMaximum => "above maximum",
            Self::StrangerTouched => "stranger touched",
            Self::KeptClaimDeleted => "kept claim deleted",
            Self::ClaimInUseDeleted => "claim in use deleted",
            Self::IdentityShared => "identity shared",
            Self::PlanRefused => "plan refused",
            Self::JobRefused => "job refused",
            Self::LeftOver => "left over",
            Self::NotConverged => "not converged",
        }
    }
}

/// A failure: what, when and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The rule that was broken.
    pub breach: Breach,
    /// Virtual time since the start of the run, in milliseconds.
    pub time: i64,
    /// Names and circumstances.
    pub detail: String,
}

/// Counts of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Jobs queued.
    pub jobs: u64,
    /// Jobs that ran to their end.
    pub jobs_run: u64,
    /// Jobs that a user cancelled.
    pub jobs_canceled: u64,
    /// Jobs that failed at once, as no agent was registered that could run them.
    pub jobs_refused: u64,
    /// Jobs lost because somebody else ended their agent.
    pub jobs_lost_outside: u64,
    /// Jobs that the operator killed.
    pub jobs_killed: u64,
    /// Jobs that had no agent to the end, although some agent could have run them.
    pub jobs_left: u64,
    /// Things left over at the end.
    pub leaked: u64,
    /// Pods created.
    pub pods: u64,
    /// Agents that registered and had no job.
    pub in_vain: u64,
    /// Looks at Azure DevOps that were carried out.
    pub looks: u64,
    /// Passes.
    pub passes: u64,
    /// Requests of the operator.
    pub requests: u64,
    /// Troubles, by kind, and single requests that failed or lost their answer.
    pub troubles: BTreeMap<&'static str, u64>,
    /// Most Pods above the maximum while two operators acted.
    pub above_maximum_with_two: u64,
    /// Pods that found no claim, as another operator that acted at the same time had deleted it.
    pub claims_missing_with_two: u64,
    /// Agents that met another of their name, made by another operator that acted at the same time for a RunnerPool of the
    /// same name.
    pub identities_shared_with_two: u64,
    /// Agents that were told to stop, by the end of their job, while no look showed them yet: their node had not told that
    /// they run, or their RunnerPool ended and did not wait for them any more.
    pub stopped_unheard: u64,
    /// Longest time from the end of all trouble to rest, in milliseconds.
    pub longest_to_rest: i64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            jobs,
            jobs_run,
            jobs_canceled,
            jobs_refused,
            jobs_lost_outside,
            jobs_killed,
            jobs_left,
            leaked,
            pods,
            in_vain,
            looks,
            passes,
            requests,
            troubles,
            above_maximum_with_two,
            claims_missing_with_two,
            identities_shared_with_two,
            stopped_unheard,
            longest_to_rest,
        } = other;
        self.jobs += jobs;
        self.jobs_run += jobs_run;
        self.jobs_canceled += jobs_canceled;
        self.jobs_refused += jobs_refused;
        self.jobs_lost_outside += jobs_lost_outside;
        self.jobs_killed += jobs_killed;
        self.jobs_left += jobs_left;
        self.leaked += leaked;
        self.pods += pods;
        self.in_vain += in_vain;
        self.looks += looks;
        self.passes += passes;
        self.requests += requests;
        for (kind, count) in troubles {
            *self.troubles.entry(kind).or_default() += count;
        }
        self.above_maximum_with_two = self.above_maximum_with_two.max(*above_maximum_with_two);
        self.claims_missing_with_two += claims_missing_with_two;
        self.identities_shared_with_two += identities_shared_with_two;
        self.stopped_unheard += stopped_unheard;
        self.longest_to_rest = self.longest_to_rest.max(*longest_to_rest);
    }

    pub(crate) fn trouble(&mut self, kind: &'static str) {
        *self.troubles.entry(kind).or_default() += 1;
    }
}

/// What a run wrote down.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) counts: Counts,
    pub(crate) failures: Vec<Failure>,
    /// Grows with everything that took effect: equal for equal runs.
    digest: u64,
    tells: bool,
}

impl Book {
    pub(crate) fn new(tells: bool) -> Self {
        Self {
            counts: Counts::default(),
            failures: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            tells,
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// Something took effect.
    pub(crate) fn effect(&mut self, now: Millis, what: &str, whom: &str) {
        let mut hasher = Fnv(self.digest);
        (now, what, whom).hash(&mut hasher);
        self.digest = hasher.finish();
    }

    /// A line of the story.
    #[expect(
        clippy::print_stdout,
        reason = "the story is the output that was asked for"
    )]
    pub(crate) fn tell(&self, now: Millis, who: &str, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{}  {who:<13} {}", show(now), what());
        }
    }

    /// A rule was broken.
    pub(crate) fn fail(&mut self, breach: Breach, now: Millis, detail: String) {
        self.tell(now, "FAILURE", || format!("{}: {detail}", breach.name()));
        self.failures.push(Failure {
            breach,
            time: now,
            detail,
        });
    }
}

/// The hash called FNV-1a, which is the same in every process.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
