//! `status` of a RunnerPool.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use crate::{OrganizationUrl, RunnerPoolSpec};

/// What the operator last knew of a RunnerPool. Written only when something other than a time changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerPoolStatus {
    /// Whether Azure DevOps answers.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub connection_status: Option<ConnectionStatus>,
    /// Name of the organization or collection.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub organization_name: Option<String>,
    /// The agent pool that the agents of this RunnerPool are made for, from the time on when it was first found. The spec
    /// must not lead to another one then, as agents are looked for where it leads.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub agent_pool: Option<AgentPoolStatus>,
    /// Registered agents of this RunnerPool and the most it may have, as `n/max`.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub agents_summary: Option<String>,
    /// Whether Azure DevOps answered the last look.
    #[serde(default, deserialize_with = "lenient")]
    pub active: bool,
    /// Job requests of the agent pool that wait for an agent. Running ones do not count.
    #[serde(default, deserialize_with = "lenient")]
    pub queued_jobs: u32,
    /// Of these, jobs that demand what neither this RunnerPool nor anybody else has.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub unserved_jobs: Option<u32>,
    /// Queued jobs of which Azure DevOps says otherwise than the operator whether a placeholder meets their demands.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub disputed_jobs: Option<u32>,
    /// Agents of this RunnerPool that are online.
    #[serde(default, deserialize_with = "lenient")]
    pub running_agents: u32,
    /// Highest index in use.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub current_agent_index: Option<u32>,
    /// Which of `spec.schedules` is in force, and what comes next. Absent without schedules.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub schedule: Option<ScheduleStatus>,
    /// When Azure DevOps last answered, as of the last change of this status.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_polled: Option<Time>,
    /// What is wrong, for which object, and what to do about it.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_error: Option<String>,
    /// Registered agents of this RunnerPool, by name; at most 1000 are listed.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub agents: Vec<AgentStatus>,
    /// Indexes in use; at most 1000 are listed.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub agent_indexes: BTreeMap<String, AgentIndexStatus>,
    /// What holds and what does not, each type once.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status speaks of.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub observed_generation: Option<i64>,
}

/// A field of status that cannot be read counts as absent: another operator may have written it, and what is only told
/// must not keep a RunnerPool from working.
fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// How the last look at Azure DevOps went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConnectionStatus {
    /// It answered.
    Connected,
    /// It could not be reached, or answered what cannot be understood.
    Disconnected,
    /// It refused the token, or there is none.
    Unauthorized,
    /// It has no agent pool of that name that the token may see.
    PoolNotFound,
    /// It asked to wait.
    Throttled,
}

/// An agent pool, in one form however a spec names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolStatus {
    /// The organization or collection, like `dev.azure.com/my-org`, in lower case.
    pub organization: String,
    /// Its name in lower case.
    pub name: String,
}

impl AgentPoolStatus {
    /// The agent pool that a spec leads to; `None`: it names none.
    pub fn of(spec: &RunnerPoolSpec) -> Option<Self> {
        let organization = OrganizationUrl::parse(&spec.az_do_url).ok()?.address();
        let name = spec.pool.trim().to_lowercase();
        (!name.is_empty()).then_some(Self { organization, name })
    }
}

/// Which schedule is in force, and what comes next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Name of the schedule in force; absent: `minAgents` and `maxAgents` of the spec hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// Until when what `active` says holds; absent: for ever, or longer than can be foreseen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_change_time: Option<Time>,
    /// Name of the schedule that comes into force next; absent: none, or that is too far away to be foreseen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_active: Option<String>,
    /// When `nextActive` comes into force. Between `nextChangeTime` and this, `minAgents` and `maxAgents` of the spec hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_time: Option<Time>,
}

/// A registered agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Id in Azure DevOps.
    pub id: i64,
    /// Its name, which is its Pod's name.
    pub name: String,
    /// `Idle`, `Busy`, `Draining` or `Offline`.
    pub status: String,
    /// When its Pod was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// When it last ended a job; absent for one that never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active: Option<Time>,
    /// When it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_on: Option<Time>,
    /// The job request that it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_completed_request: Option<FinishedRequest>,
}

/// A job request that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FinishedRequest {
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_time: Option<Time>,
}

/// An index in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentIndexStatus {
    /// Name of the Pod.
    pub pod_name: String,
    /// `Starting`, `Idle`, `Busy`, `Draining`, `Stopping` or `Finished`.
    pub status: String,
    /// Whether the agent belongs to `minAgents`.
    pub is_min_agent: bool,
    /// When the Pod was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// Claims of this index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pvc_names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_operator_wrote_into_status_does_not_make_it_unreadable() {
        let status: RunnerPoolStatus = serde_json::from_str(
            r#"{"connectionStatus": "Error", "queuedJobs": -1, "agents": [{"id": "7"}], "lastError": "no PAT"}"#,
        )
        .expect("a status");
        assert_eq!(status.connection_status, None);
        assert_eq!((status.queued_jobs, status.agents.len()), (0, 0));
        assert_eq!(status.last_error.as_deref(), Some("no PAT"));
    }
}
