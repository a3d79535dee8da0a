//! Job requests: what the service keeps of each, and how it shows them (protocol section 4).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{agent::Reference, millis, pool::Needs, wire};

/// What a test or demo asks for when it queues jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct JobSpec {
    /// How many jobs.
    pub count: usize,
    /// Their name, shown as the pipeline's.
    pub name: String,
    /// Demands as a pipeline writes them: `java`, `os -equals linux`.
    pub demands: Vec<String>,
    /// How long the simulated agent works on each; milliseconds on the wire.
    #[serde(with = "millis")]
    pub duration: Duration,
    /// What the agent reports at the end, if nothing comes between.
    pub result: JobResult,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            count: 1,
            name: "job".to_owned(),
            demands: Vec::new(),
            duration: Duration::ZERO,
            result: JobResult::Succeeded,
        }
    }
}

/// How a job ended, in the service's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobResult {
    /// All went well.
    Succeeded,
    /// Warnings.
    SucceededWithIssues,
    /// Errors, or no agent could ever run it.
    Failed,
    /// Cancelled by somebody, or the agent was stopped.
    Canceled,
    /// Not run.
    Skipped,
    /// Nobody heard of it again.
    Abandoned,
}

/// Where a job stands or how it ended, told apart as the wire format does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Waits for an agent.
    Queued,
    /// An agent is reserved and has not taken the job yet.
    Assigned,
    /// An agent works on it.
    Running,
    /// Ended well.
    Succeeded,
    /// The job itself failed.
    Failed,
    /// A user cancelled it.
    Canceled,
    /// No registered agent met its demands when it was queued.
    Refused,
    /// It ended with its agent: the agent was stopped and reported it cancelled, or the agent
    /// vanished and the lock expired, or the pool was deleted.
    Killed,
}

impl Outcome {
    /// Whether the job is over.
    pub fn is_finished(self) -> bool {
        !matches!(self, Self::Queued | Self::Assigned | Self::Running)
    }
}

/// A job as the control API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// The request id, unique in the organization.
    pub id: i64,
    /// The name it was queued with.
    pub name: String,
    /// Demands as given.
    pub demands: Vec<String>,
    /// Where it stands.
    pub outcome: Outcome,
    /// The result on the wire, once it ended.
    pub result: Option<JobResult>,
    /// The name of the agent that got it.
    pub agent: Option<String>,
    /// When it was queued.
    pub queued: Timestamp,
    /// When an agent was reserved.
    pub assigned: Option<Timestamp>,
    /// When the agent took it.
    pub received: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// What the service would show the user, where there is something to say.
    pub message: Option<String>,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "`jobId` is the protocol's word, besides `requestId`"
)]
pub(crate) struct Job {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) demands: Vec<String>,
    pub(crate) needs: Needs,
    pub(crate) duration: Duration,
    pub(crate) planned: JobResult,
    pub(crate) queue_time: Timestamp,
    pub(crate) assign_time: Option<Timestamp>,
    pub(crate) receive_time: Option<Timestamp>,
    pub(crate) locked_until: Option<Timestamp>,
    pub(crate) finish_time: Option<Timestamp>,
    pub(crate) result: Option<JobResult>,
    pub(crate) end: Option<End>,
    /// The agent as it was when the job was given to it: the entry outlives the agent.
    pub(crate) agent: Option<Reference>,
    /// Agents that matched when it was queued; kept only where a switch asks for them.
    pub(crate) matched: Arc<[i64]>,
    pub(crate) plan_id: Uuid,
    pub(crate) job_id: Uuid,
    pub(crate) cancel_requested: bool,
    pub(crate) message: Option<String>,
}

/// Who ended a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Agent,
    User,
    NoMatch,
    Lost,
}

impl Job {
    pub(crate) fn outcome(&self) -> Outcome {
        match (self.end, self.result) {
            (Some(End::NoMatch), _) => Outcome::Refused,
            (Some(End::Lost), _) => Outcome::Killed,
            (Some(End::User), _) => Outcome::Canceled,
            (
                _,
                Some(JobResult::Succeeded | JobResult::SucceededWithIssues | JobResult::Skipped),
            ) => Outcome::Succeeded,
            (_, Some(JobResult::Canceled)) if self.cancel_requested => Outcome::Canceled,
            (_, Some(JobResult::Canceled | JobResult::Abandoned)) => Outcome::Killed,
            (_, Some(JobResult::Failed)) => Outcome::Failed,
            (_, None) if self.receive_time.is_some() => Outcome::Running,
            (_, None) if self.assign_time.is_some() => Outcome::Assigned,
            (_, None) => Outcome::Queued,
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.result.is_some()
    }

    pub(crate) fn view(&self) -> JobView {
        JobView {
            id: self.id,
            name: self.name.clone(),
            demands: self.demands.clone(),
            outcome: self.outcome(),
            result: self.result,
            agent: self.agent.as_ref().map(|agent| agent.name.clone()),
            queued: self.queue_time,
            assigned: self.assign_time,
            received: self.receive_time,
            finished: self.finish_time,
            message: self.message.clone(),
        }
    }
}

/// What surrounds a job request in replies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) base: &'a str,
    pub(crate) host_id: Uuid,
    pub(crate) project: Uuid,
    pub(crate) pool: i64,
    /// Absent in lists asked with `$top` (protocol section 4.1).
    pub(crate) matched_agents: Option<&'a [Value]>,
}

impl Job {
    /// The resource of protocol section 4.2.
    pub(crate) fn json(&self, around: Surroundings<'_>) -> Value {
        let Surroundings {
            base,
            host_id,
            project,
            pool,
            matched_agents,
        } = around;
        let links = super::agent::Links { base, pool };
        let link = |kind: &str| {
            json!({
                "_links": {
                    "web": { "href": format!("{base}/{project}/_build/{kind}?id={}", self.id) },
                    "self": { "href": format!("{base}/{project}/_apis/build/{kind}/{}", self.id) },
                },
                "id": self.id,
                "name": self.name,
            })
        };
        wire::compact(json!({
            "requestId": self.id,
            "queueTime": wire::time(self.queue_time),
            "assignTime": self.assign_time.map(wire::time),
            "receiveTime": self.receive_time.map(wire::time),
            "lockedUntil": self.locked_until.map(wire::time),
            "finishTime": self.finish_time.map(wire::time),
            "result": self.result,
            "serviceOwner": "00025394-6065-48ca-87d9-7f5672854ef7",
            "hostId": host_id,
            "scopeId": project,
            "planType": "Build",
            "planId": self.plan_id,
            "jobId": self.job_id,
            "demands": self.demands,
            "matchedAgents": matched_agents,
            "reservedAgent": self.agent.as_ref().map(|agent| agent.json(links, true)),
            "definition": link("definition"),
            "owner": link("results"),
            "data": { "ParallelismTag": "Private", "IsScheduledKey": "False" },
            "poolId": pool,
            "orchestrationId": format!("{}.build.{}.__default", self.plan_id, self.name.to_lowercase()),
            "priority": 0,
        }))
    }

    /// The job message of protocol section 6.4. What the simulated agent shall do stands in two
    /// variables; a real agent finds no steps and succeeds.
    pub(crate) fn message_body(&self, base: &str, project: Uuid, token: &str) -> String {
        let millis = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let variable = |value: &str| json!({ "value": value, "isSecret": false });
        json!({
            "messageType": "PipelineAgentJobRequest",
            "plan": {
                "scopeIdentifier": project,
                "planType": "Build",
                "planId": self.plan_id,
                "version": PLAN_VERSION,
                "planGroup": "simulated",
            },
            "timeline": { "id": self.plan_id },
            "jobId": self.job_id,
            "jobDisplayName": self.name,
            "jobName": self.name,
            "requestId": self.id,
            "lockedUntil": self.locked_until.map(wire::time),
            "resources": {
                "endpoints": [{
                    "name": "SystemVssConnection",
                    "url": base,
                    "authorization": { "scheme": "OAuth", "parameters": { "AccessToken": token } },
                }],
                "repositories": [],
                "containers": [],
            },
            "variables": {
                "System.ServerType": variable("OnPremises"),
                DURATION_VARIABLE: variable(&millis.to_string()),
                RESULT_VARIABLE: variable(json!(self.planned).as_str().unwrap_or("succeeded")),
            },
            "maskHints": [],
            "steps": [],
            "workspace": {},
        })
        .to_string()
    }
}

/// Version 8 and above report the end of a job by a plan event (protocol section 6.6); 14 is what
/// another server that hosts real agents sends.
const PLAN_VERSION: i64 = 14;

/// Variable of the job message: how long the simulated agent works, in milliseconds.
pub(crate) const DURATION_VARIABLE: &str = "Simulator.DurationMilliseconds";
/// Variable of the job message: what the simulated agent reports.
pub(crate) const RESULT_VARIABLE: &str = "Simulator.Result";
