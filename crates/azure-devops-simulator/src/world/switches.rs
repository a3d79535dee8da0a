//! What nobody outside Microsoft knows for sure, as settings: a client that is sound works with
//! every combination. Each field names the section of the protocol page that calls it unverified
//! or gives its range.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::error::BusyTypeKey;
use super::millis;

/// Choices between behaviours that the sources leave open, and the service's timings.
/// Times are in milliseconds on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an open question of its own"
)]
pub struct Switches {
    /// Status of the refusal to delete a busy agent: 400 or 409 (1.5).
    pub busy_delete_status: u16,
    /// `typeKey` of that refusal (1.5).
    pub busy_delete_type_key: BusyTypeKey,
    /// Whether a job that is assigned but not yet received blocks deletion, too (12). If not, the
    /// job goes back to the queue.
    pub assigned_job_blocks_delete: bool,
    /// Status for an agent that does not exist: 404 expected (1.5).
    pub unknown_agent_status: u16,
    /// Status for a session that expired or never was: 403 in one other server (1.5).
    pub expired_session_status: u16,
    /// Status for a lock that expired or is another agent's (1.5).
    pub expired_lock_status: u16,
    /// What `matchedAgents` of a waiting job shows (3.5).
    pub matched_agents: MatchedAgents,
    /// What an `Agent.Version` demand is compared with (3.3).
    pub agent_version: AgentVersion,
    /// Whether `-gtVersion` is met by exactly the version named (5).
    pub minimum_version_inclusive: bool,
    /// Which value wins where a system and a user capability share a name (5).
    pub capability_precedence: CapabilityPrecedence,
    /// Whether replacing an agent ends its session at once (6.2).
    pub replace_ends_session: bool,
    /// What a job gets whose lock expired (6.7).
    pub expired_lock_result: ExpiredLockResult,
    /// Whether PATCH of an agent is refused without `name` (3.4).
    pub patch_needs_name: bool,
    /// Whether PATCH of an agent can change its capabilities (12).
    pub patch_changes_capabilities: bool,
    /// How a list of job requests is ordered (4.1).
    pub job_request_order: JobRequestOrder,
    /// How many finished job requests a list without parameters holds (4.1).
    pub default_completed_requests: usize,
    /// Whether an expired personal access token gives a JSON 401 rather than what any dead token
    /// gives (1.6).
    pub expired_pat_says_so: bool,
    /// Whether `X-TFS-FedAuthRedirect: Suppress` turns a sign-in page into a 401 (1.6).
    pub suppress_redirect: bool,
    /// Whether `poolName` finds a pool whatever the case of its name (2).
    pub pool_name_ignores_case: bool,
    /// Whether the pool resources insist on `-preview` in their version (1.4; seen on others).
    pub preview_flag_required: bool,
    /// How long a poll for messages is held: 50 s by logs (6.3).
    #[serde(with = "millis")]
    pub long_poll: Duration,
    /// Each receipt and renewal locks a job for that long: 10 min by logs (6.5).
    #[serde(with = "millis")]
    pub lock: Duration,
    /// A silent session shows its agent online for that long: about 5 min by an old statement
    /// (6.7). Must exceed `long_poll`, since a held poll counts from its start.
    #[serde(with = "millis")]
    pub offline_after: Duration,
    /// A silent session blocks another one for that long (6.2). At least `offline_after`.
    #[serde(with = "millis")]
    pub session_expiry: Duration,
    /// An agent's own access token lives that long: 50 to 60 min by inference (7.3).
    #[serde(with = "millis")]
    pub agent_token_life: Duration,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            busy_delete_status: 400,
            busy_delete_type_key: BusyTypeKey::default(),
            assigned_job_blocks_delete: true,
            unknown_agent_status: 404,
            expired_session_status: 403,
            expired_lock_status: 409,
            matched_agents: MatchedAgents::default(),
            agent_version: AgentVersion::default(),
            minimum_version_inclusive: true,
            capability_precedence: CapabilityPrecedence::default(),
            replace_ends_session: false,
            expired_lock_result: ExpiredLockResult::default(),
            patch_needs_name: false,
            patch_changes_capabilities: false,
            job_request_order: JobRequestOrder::default(),
            default_completed_requests: 25,
            expired_pat_says_so: false,
            suppress_redirect: true,
            pool_name_ignores_case: true,
            preview_flag_required: false,
            long_poll: Duration::from_secs(50),
            lock: Duration::from_mins(10),
            offline_after: Duration::from_mins(5),
            session_expiry: Duration::from_mins(5),
            agent_token_life: Duration::from_mins(50),
        }
    }
}

/// See [`Switches::matched_agents`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MatchedAgents {
    /// The agents that match at the time of reading.
    #[default]
    Recomputed,
    /// The agents that matched when the job was queued. Assignment looks at all agents anyway.
    Frozen,
}

/// See [`Switches::agent_version`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentVersion {
    /// The agent's `version` field.
    #[default]
    Field,
    /// The agent's capability `Agent.Version`.
    Capability,
}

/// See [`Switches::capability_precedence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CapabilityPrecedence {
    /// The user's value.
    #[default]
    User,
    /// The value that the agent reported.
    System,
}

/// See [`Switches::expired_lock_result`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExpiredLockResult {
    /// `abandoned`.
    #[default]
    Abandoned,
    /// `failed`.
    Failed,
}

/// See [`Switches::job_request_order`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobRequestOrder {
    /// The newest first.
    #[default]
    NewestFirst,
    /// The oldest first.
    OldestFirst,
    /// No order that a client could rely on, but always the same one.
    Mixed,
}
