//! Wire types, named as Microsoft names them. What is used is decoded strictly, what is not used is ignored.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// An agent pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TaskAgentPool {
    /// Its id in the organization.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// How many agents it has; 0 when the service left it out.
    #[serde(default)]
    pub size: u64,
}

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskAgent {
    /// Its id in the pool.
    pub id: i64,
    /// Its name; unique in the pool without regard to case.
    pub name: String,
    /// Whether it may get jobs; `None` when the service left it out.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Whether it has a session.
    pub status: TaskAgentStatus,
    /// When it was registered.
    #[serde(default, deserialize_with = "time")]
    pub created_on: Option<Timestamp>,
    /// What the agent reported.
    #[serde(default, deserialize_with = "capabilities")]
    pub system_capabilities: BTreeMap<String, String>,
    /// What a user gave it.
    #[serde(default, deserialize_with = "capabilities")]
    pub user_capabilities: BTreeMap<String, String>,
    /// The request that it holds.
    #[serde(default)]
    pub assigned_request: Option<TaskAgentJobRequest>,
    /// The request that it ended last.
    #[serde(default)]
    pub last_completed_request: Option<TaskAgentJobRequest>,
}

/// Whether an agent has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TaskAgentStatus {
    /// It has.
    Online,
    /// It has not.
    Offline,
}

/// A job that asks for an agent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskAgentJobRequest {
    /// Its id; later requests have higher ones.
    pub request_id: i64,
    /// Its demands, as `name` or `name -equals value` or `name -gtVersion value`.
    #[serde(default, deserialize_with = "demands")]
    pub demands: Vec<String>,
    /// The agent that it is reserved for.
    #[serde(default)]
    pub reserved_agent: Option<TaskAgentReference>,
    /// Registered agents that meet its demands, as the service sees it; `None`: it does not say.
    #[serde(default)]
    pub matched_agents: Option<Vec<TaskAgentReference>>,
    /// How it ended; `None` while it has not.
    #[serde(default)]
    pub result: Option<String>,
    /// When it was queued.
    #[serde(default, deserialize_with = "time")]
    pub queue_time: Option<Timestamp>,
    /// When it ended.
    #[serde(default, deserialize_with = "time")]
    pub finish_time: Option<Timestamp>,
}

/// An agent, by reference.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TaskAgentReference {
    /// Its id in the pool.
    pub id: i64,
}

/// An agent to register without a key: it is offline for ever and makes Azure DevOps queue the jobs that match it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewAgent {
    /// Its name.
    pub name: String,
    /// Version of the agent software that it claims to be.
    pub version: String,
    /// Text shown as its operating system.
    pub os_description: String,
    /// What jobs may demand of it.
    pub system_capabilities: BTreeMap<String, String>,
    /// Further capabilities, shown as given by a user.
    pub user_capabilities: BTreeMap<String, String>,
}

fn capabilities<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let map =
        Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(map
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or_default()))
        .collect())
}

/// Demands come as strings; whatever else may come is kept as its JSON text rather than dropped.
fn demands<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let demands = Option::<Vec<serde_json::Value>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(demands
        .into_iter()
        .map(|demand| match demand {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        })
        .collect())
}

/// Times carry 2 to 7 fractional digits and usually a `Z`; without an offset they are UTC.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let utc = || {
        text.parse::<DateTime>()?
            .to_zoned(TimeZone::UTC)
            .map(|zoned| zoned.timestamp())
    };
    text.parse()
        .or_else(|_| utc())
        .map(Some)
        .map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_as_the_service_writes_it() {
        let agent: TaskAgent = serde_json::from_str(
            r#"{"_links":{},"id":25,"name":"web-agent-0","version":"4.255.0","enabled":false,"status":"online",
                "createdOn":"2026-11-24T07:00:00.49Z","systemCapabilities":{"java":null,"Agent.OS":"Linux"},
                "assignedRequest":{"requestId":7,"demands":["java",{"name":"x"}],"queueTime":"2026-11-24T07:00:01.2233333Z"}}"#,
        )
        .expect("an agent");
        assert_eq!(
            (agent.id, agent.enabled, agent.status),
            (25, Some(false), TaskAgentStatus::Online)
        );
        assert_eq!(agent.system_capabilities["java"], "");
        let request = agent.assigned_request.expect("a request");
        assert_eq!(request.demands, ["java", r#"{"name":"x"}"#]);
        assert_eq!(
            request.queue_time.map(|time| time.to_string()).as_deref(),
            Some("2026-11-24T07:00:01.2233333Z")
        );
    }

    #[test]
    fn a_time_without_an_offset_is_utc() {
        let request: TaskAgentJobRequest =
            serde_json::from_str(r#"{"requestId":1,"finishTime":"2026-11-24T07:00:00"}"#)
                .expect("a request");
        assert_eq!(
            request.finish_time.map(|time| time.to_string()).as_deref(),
            Some("2026-11-24T07:00:00Z")
        );
    }

    #[test]
    fn an_unknown_status_is_an_error_not_a_default() {
        assert!(
            serde_json::from_str::<TaskAgent>(r#"{"id":1,"name":"a","status":"asleep"}"#).is_err()
        );
        assert!(serde_json::from_str::<TaskAgent>(r#"{"id":1,"name":"a"}"#).is_err());
    }
}
