//! Conditions of a RunnerPool: a closed set of types and reasons.

use std::fmt;

/// Type of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// Summary: the RunnerPool does what it should.
    Ready,
    /// Azure DevOps answers, takes the token and has the agent pool.
    Connected,
    /// More agents are wanted than may exist.
    ScalingLimited,
    /// Something keeps agents from working, or jobs from agents: Pods that fail, claims that are missing, names that strangers
    /// hold, demands that no profile meets.
    Degraded,
}

impl ConditionType {
    /// Every type, in the order in which they are written.
    pub const ALL: [Self; 4] = [
        Self::Ready,
        Self::Connected,
        Self::ScalingLimited,
        Self::Degraded,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Reason of a condition or of an event: CamelCase, from a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Nothing is wrong.
    AsExpected,
    /// Not known yet: Azure DevOps has not been asked.
    NotYetKnown,
    /// Azure DevOps answered the last look.
    Answered,
    /// The spec breaks a rule.
    InvalidSpec,
    /// The Secret of `patSecretName` is missing or has no usable token.
    SecretUnusable,
    /// Azure DevOps refused the token.
    Unauthorized,
    /// There is no such agent pool, or the token may not see it.
    PoolNotFound,
    /// Azure DevOps asked to wait.
    Throttled,
    /// Azure DevOps could not be reached or gave no usable answer.
    Unreachable,
    /// `maxAgents` is reached.
    MaxAgentsReached,
    /// Queued jobs demand what no profile has: they get no agent.
    JobsUnserved,
    /// A quota of the namespace does not allow more Pods or claims: jobs wait.
    QuotaExceeded,
    /// A claim with `createPvc: false` does not exist, or a claim of that name belongs to somebody else.
    ClaimMissing,
    /// A claim could not be created.
    ClaimRefused,
    /// A Pod could not be created.
    PodRefused,
    /// Pods fail or cannot start.
    PodFailing,
    /// Pods whose node does not answer, or that should be gone, keep their places.
    PodStuck,
    /// No node takes a Pod.
    Unschedulable,
    /// Somebody else's registration has the name of one of our agents.
    NameTaken,
    /// A plan broke an invariant and was not carried out: a defect of the operator.
    PlanRefused,
    /// `spec.mode` is `Paused`: nothing is created or removed.
    Paused,
    /// `spec.mode` is `Drained`: there are to be no agents.
    Drained,
    /// The RunnerPool is being deleted.
    Deleting,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
