//! What carrying out a plan asks of the outside, one method a request: [`Outside`]. The program sends them to the API
//! server and to Azure DevOps; tests with a virtual clock answer them from models of both.
//!
//! Nothing is decided here, and nothing is repeated.

use std::{
    fmt,
    time::{Duration, Instant},
};

use api::{RunnerPool, conditions::Reason, names};
use azure_devops::{NewAgent, TaskAgent};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use kube::{
    Api, Resource as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use planner::{Action, Planned, Why};
use serde_json::Value;

use crate::{
    events::{Events, Report},
    manifest::{self, pod::AgentPod},
    mirror::PoolKey,
    reconcile::{Context, Finding, observe::Observed},
    telemetry::chain,
};

/// Longest wait for one answer of the API server.
const KUBERNETES_TIMEOUT: Duration = Duration::from_secs(30);

/// The requests that actions are made of, for one RunnerPool. Objects are of its namespace.
pub trait Outside: Sync {
    /// How long ago the actions began.
    fn elapsed(&self) -> Duration;

    /// The time by the operator's clock.
    fn now(&self) -> Timestamp;

    /// Creates a Pod and gives it back as it is stored.
    fn create_pod(&self, pod: &Pod) -> impl Future<Output = Result<Pod, Failure>> + Send;

    /// Reads a Pod; `None`: the API server says that there is none.
    fn get_pod(&self, name: &str) -> impl Future<Output = Result<Option<Pod>, Failure>> + Send;

    /// Asks for the end of a Pod that is as the preconditions say.
    fn delete_pod(
        &self,
        name: &str,
        params: DeleteParams,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Changes a Pod by a JSON merge patch.
    fn patch_pod(
        &self,
        name: &str,
        patch: Value,
    ) -> impl Future<Output = Result<Pod, Failure>> + Send;

    /// Changes the status of a Pod by a strategic merge patch.
    fn patch_pod_status(
        &self,
        name: &str,
        patch: Value,
    ) -> impl Future<Output = Result<Pod, Failure>> + Send;

    /// Creates a claim and gives it back as it is stored.
    fn create_claim(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> impl Future<Output = Result<PersistentVolumeClaim, Failure>> + Send;

    /// Reads a claim; `None`: the API server says that there is none.
    fn get_claim(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Option<PersistentVolumeClaim>, Failure>> + Send;

    /// Asks for the end of a claim that is as the preconditions say.
    fn delete_claim(
        &self,
        name: &str,
        preconditions: Preconditions,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Stops Azure DevOps from giving jobs to an agent.
    fn disable_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        name: &str,
    ) -> impl Future<Output = Result<(), azure_devops::Error>> + Send;

    /// Deletes a registration.
    fn delete_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
    ) -> impl Future<Output = Result<(), azure_devops::Error>> + Send;

    /// Registers an agent without a key.
    fn add_agent(
        &self,
        pool_id: i64,
        agent: &NewAgent,
    ) -> impl Future<Output = Result<TaskAgent, azure_devops::Error>> + Send;

    /// Registers an agent without a key in place of the one that has the id.
    fn replace_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        agent: &NewAgent,
    ) -> impl Future<Output = Result<TaskAgent, azure_devops::Error>> + Send;

    /// Takes note of an action that took effect.
    fn done(&self, planned: &Planned);
}

/// Why a call to the API server failed.
#[derive(Debug)]
pub enum Failure {
    /// The API server said no.
    Api(Box<kube::core::Status>),
    /// There was no answer, or none that can be read.
    Other(String),
}

impl Failure {
    /// Whether the call surely changed nothing. The API server may have carried out what it answers with a 5xx.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Api(status) => (400..500).contains(&status.code),
            Self::Other(_) => false,
        }
    }

    /// The refusal of an object that was to be created. A quota only makes jobs wait, as `maxAgents` does.
    pub(crate) fn refusal(&self, reason: Reason, what: &str) -> Finding {
        match self {
            // The quota plugin has no reason of its own; its words have not changed since Kubernetes 1.0.
            Self::Api(status)
                if status.is_forbidden() && status.message.contains("exceeded quota") =>
            {
                let message = format!(
                    "a quota does not allow {what}, so jobs wait: {self}; raise the quota or lower spec.maxAgents"
                );
                Finding::new(Reason::QuotaExceeded, message)
            }
            _ => Finding::new(
                reason,
                format!(
                    "the API server refused {what}: {self}; it is asked again, at least every 30 s"
                ),
            ),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(status) => f.write_str(&status.message),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The API server and Azure DevOps.
pub(crate) struct Services<'a> {
    key: &'a PoolKey,
    events: &'a Events,
    azure_devops: &'a azure_devops::Client,
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
    reference: ObjectReference,
    /// The Pods that the pass saw: one that is deleted may be gone from the mirror before its end is told.
    seen: &'a [AgentPod],
    started: Instant,
}

impl<'a> Services<'a> {
    /// For actions that begin now.
    pub(crate) fn new(
        pool: &RunnerPool,
        key: &'a PoolKey,
        context: &'a Context,
        observed: &'a Observed,
    ) -> Self {
        Self {
            key,
            events: &context.events,
            azure_devops: observed.subscription.reader.client(),
            pods: Api::namespaced(context.client.clone(), &key.namespace),
            claims: Api::namespaced(context.client.clone(), &key.namespace),
            reference: pool.object_ref(&()),
            seen: &observed.pods,
            started: Instant::now(),
        }
    }

    fn noted(&self, what: &str, action: &Action) {
        let (namespace, pool, agent) = (&self.key.namespace, &self.key.name, action.subject());
        tracing::debug!(namespace, pool, agent, "{what}");
    }
}

impl Outside for Services<'_> {
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod, Failure> {
        within(self.pods.create(&post(), pod)).await
    }

    async fn get_pod(&self, name: &str) -> Result<Option<Pod>, Failure> {
        within(self.pods.get_opt(name)).await
    }

    async fn delete_pod(&self, name: &str, params: DeleteParams) -> Result<(), Failure> {
        within(self.pods.delete(name, &params)).await.map(drop)
    }

    async fn patch_pod(&self, name: &str, patch: Value) -> Result<Pod, Failure> {
        let patch = Patch::Merge(patch);
        within(self.pods.patch(name, &PatchParams::default(), &patch)).await
    }

    async fn patch_pod_status(&self, name: &str, patch: Value) -> Result<Pod, Failure> {
        let patch = Patch::Strategic(patch);
        within(
            self.pods
                .patch_status(name, &PatchParams::default(), &patch),
        )
        .await
    }

    async fn create_claim(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, Failure> {
        within(self.claims.create(&post(), claim)).await
    }

    async fn get_claim(&self, name: &str) -> Result<Option<PersistentVolumeClaim>, Failure> {
        within(self.claims.get_opt(name)).await
    }

    async fn delete_claim(&self, name: &str, preconditions: Preconditions) -> Result<(), Failure> {
        let params = DeleteParams::default().preconditions(preconditions);
        within(self.claims.delete(name, &params)).await.map(drop)
    }

    async fn disable_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        name: &str,
    ) -> Result<(), azure_devops::Error> {
        self.azure_devops
            .update_agent(pool_id, agent_id, name, false)
            .await
    }

    async fn delete_agent(&self, pool_id: i64, agent_id: i64) -> Result<(), azure_devops::Error> {
        self.azure_devops.delete_agent(pool_id, agent_id).await
    }

    async fn add_agent(
        &self,
        pool_id: i64,
        agent: &NewAgent,
    ) -> Result<TaskAgent, azure_devops::Error> {
        self.azure_devops.add_agent(pool_id, agent).await
    }

    async fn replace_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        agent: &NewAgent,
    ) -> Result<TaskAgent, azure_devops::Error> {
        self.azure_devops
            .replace_agent(pool_id, agent_id, agent)
            .await
    }

    /// Logs what was done and, for agents, writes an event.
    fn done(&self, planned: &Planned) {
        let Planned { action, why } = planned;
        let (message, report) = match action {
            Action::CreateAgent { .. } => (
                "Created Pod",
                Some(("AgentCreated", "CreateAgent", "Created")),
            ),
            Action::Disable { .. } => ("Disabled agent", None),
            Action::Remove { .. } => (
                "Removed agent",
                Some(("AgentRemoved", "RemoveAgent", "Removed")),
            ),
            Action::DeletePod { .. } => (
                "Deleted Pod",
                Some(("AgentRemoved", "RemoveAgent", "Deleted the Pod of")),
            ),
            Action::GiveUpPod { .. } => (
                "Gave up Pod",
                Some(("AgentGivenUp", "GiveUpAgent", "Gave up the Pod of")),
            ),
            Action::DeleteClaim { .. } => ("Deleted claim", None),
            Action::MarkPod { .. } => return self.noted("Marked Pod", action),
            Action::Remember { .. } => {
                return self.noted("Remembered what an agent reports", action);
            }
            Action::AddPlaceholder { .. } => ("Registered placeholder", None),
            Action::UpdatePlaceholder { .. } => ("Updated placeholder", None),
            // Of a Pod that ended and stays. A placeholder never had one.
            Action::RemoveRegistration { .. } if *why == Why::PodFinished => (
                "Removed registration",
                Some(("AgentRemoved", "RemoveAgent", "Removed the registration of")),
            ),
            Action::RemoveRegistration { .. } => ("Removed registration", None),
        };
        let (namespace, pool, agent) = (&self.key.namespace, &self.key.name, action.subject());
        let request_id = match why {
            Why::JobQueued { request } => Some(*request),
            _ => None,
        };
        tracing::info!(namespace, pool, agent, request_id, reason = %why, "{message}");
        if let Some((reason, event_action, verb)) = report {
            let pod = manifest::pod::reference(namespace, agent);
            let mut ended = self.seen.iter().filter(|_| *why == Why::PodFinished);
            let ended = ended.find(|pod| pod.pod.name == agent);
            let end = ended.and_then(manifest::trouble::ended);
            let end = end.map_or_else(String::new, |end| format!(" ({end})"));
            let note = format!("{verb} agent {agent}: {why}{end}");
            let report = Report {
                warning: false,
                reason,
                action: event_action,
                note,
                related: Some(pod),
            };
            self.events.emit(&self.reference, report);
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(KUBERNETES_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(Failure::Api(status)),
        Ok(Err(error)) => Err(Failure::Other(chain(&error))),
        Err(_) => Err(Failure::Other(format!(
            "no answer within {} s",
            KUBERNETES_TIMEOUT.as_secs()
        ))),
    }
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(names::OPERATOR.into()),
        ..PostParams::default()
    }
}
