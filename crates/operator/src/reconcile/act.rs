//! Carries a plan out: requests to Kubernetes and to Azure DevOps side by side, each kind in parallel.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use api::{ClaimTemplate, RunnerPool, conditions::Reason, names};
use azure_devops::{Class, NewAgent};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use planner::{Action, Breach, Plan, Planned, Why};
use serde_json::json;

use super::{Context, Finding, Identity, observe::Observed};
use crate::{
    events::Report,
    manifest::{self, pod::Blueprint},
    mirror::Mirrored as _,
    reader::{self, Write},
    telemetry::chain,
};

/// Requests to the API server at a time, for one RunnerPool: where its throughput stops growing (measured: 790 Pods a
/// second with 8, 1250 with 32, 950 with 64).
const KUBERNETES_CONCURRENCY: usize = 32;
/// Requests to Azure DevOps at a time, for one RunnerPool: few, as its limits count the work of a few minutes.
const AZURE_DEVOPS_CONCURRENCY: usize = 8;
/// No request to Azure DevOps begins later than this in a pass: it may delay each by half a minute, and new jobs need
/// their agents meanwhile.
const AZURE_DEVOPS_BUDGET: Duration = Duration::from_secs(10);
/// Longest wait for one answer of the API server.
const KUBERNETES_TIMEOUT: Duration = Duration::from_secs(30);

/// What carrying out a plan came to.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// What went wrong in a way that the user should know of.
    pub(crate) findings: Vec<Finding>,
    /// Something failed or was put off, and is to be tried again.
    pub(crate) unfinished: bool,
}

impl Done {
    /// A plan that was not carried out.
    pub(crate) fn refused(breaches: &[Breach]) -> Self {
        let message = breaches
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        tracing::error!(reason = message, "Refused to carry out a plan");
        let message = format!(
            "a plan broke an invariant and was not carried out ({message}); please report this"
        );
        Self {
            findings: vec![Finding::new(Reason::PlanRefused, message)],
            unfinished: true,
        }
    }
}

/// How the deletion of a registration ended well.
enum Deleted {
    /// It was there.
    Now,
    /// It was gone already.
    Before,
}

/// What becomes of a claim that an agent is to mount.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and gone with the agent's creation"
)]
enum Mount {
    /// It was made just now.
    Made(PersistentVolumeClaim),
    /// It was there.
    There,
    /// It is not there, and the agent may go without.
    Without,
}

/// How one action ended.
enum End {
    /// It took effect.
    Carried(Option<Write>),
    /// It has to wait; nothing is wrong.
    PutOff(&'static str),
    /// It failed.
    Failed(Finding),
}

pub(crate) async fn act(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    observed: &Observed,
    plan: &Plan,
) -> Done {
    let actor = Actor {
        pool,
        identity,
        context,
        observed,
        pods: Api::namespaced(context.client.clone(), &identity.key.namespace),
        claims: Api::namespaced(context.client.clone(), &identity.key.namespace),
        reference: pool.object_ref(&()),
        started: Instant::now(),
        refused: Mutex::default(),
    };
    let (azure, kubernetes): (Vec<_>, Vec<_>) = plan
        .actions
        .iter()
        .cloned()
        .partition(|planned| speaks_to_azure(&planned.action));
    let (azure, kubernetes) = tokio::join!(
        actor.all(azure, AZURE_DEVOPS_CONCURRENCY),
        actor.all(kubernetes, KUBERNETES_CONCURRENCY)
    );
    let mut findings = [azure.findings, kubernetes.findings].concat();
    findings.sort();
    Done {
        findings,
        unfinished: azure.unfinished || kubernetes.unfinished,
    }
}

fn speaks_to_azure(action: &Action) -> bool {
    match action {
        Action::Disable { .. }
        | Action::Remove { .. }
        | Action::AddPlaceholder { .. }
        | Action::RemovePlaceholder { .. } => true,
        Action::CreateAgent { .. }
        | Action::DeletePod { .. }
        | Action::GiveUpPod { .. }
        | Action::DeleteClaim { .. }
        | Action::MarkPod { .. } => false,
    }
}

struct Actor<'a> {
    pool: &'a RunnerPool,
    identity: &'a Identity,
    context: &'a Context,
    observed: &'a Observed,
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
    reference: ObjectReference,
    started: Instant,
    /// Profiles of which the API server refused an agent in this pass: a quota or a policy would refuse the others too.
    refused: Mutex<BTreeSet<String>>,
}

impl Actor<'_> {
    async fn all(&self, actions: Vec<Planned>, concurrency: usize) -> Done {
        let mut done = Done::default();
        // A request in the making takes many times the memory of its action, so it begins when its turn comes.
        let mut ends = stream::iter(actions)
            .map(|planned| self.one(planned).boxed())
            .buffer_unordered(concurrency);
        while let Some((planned, end)) = ends.next().await {
            match end {
                End::Carried(write) => {
                    self.tell(&planned);
                    if let Some(write) = write {
                        self.observed.subscription.reader.note(&write);
                    }
                }
                End::PutOff(reason) => {
                    let agent = planned.action.subject();
                    tracing::debug!(
                        namespace = self.identity.key.namespace,
                        pool = self.identity.key.name,
                        agent,
                        reason,
                        "Put off an action"
                    );
                    done.unfinished = true;
                }
                End::Failed(finding) => {
                    tracing::warn!(
                        namespace = self.identity.key.namespace,
                        pool = self.identity.key.name,
                        agent = planned.action.subject(),
                        reason = %finding.reason,
                        error = finding.message,
                        "Failed to carry out an action"
                    );
                    done.findings.push(finding);
                    done.unfinished = true;
                }
            }
        }
        done
    }

    async fn one(&self, planned: Planned) -> (Planned, End) {
        if speaks_to_azure(&planned.action) && self.started.elapsed() > AZURE_DEVOPS_BUDGET {
            return (planned, End::PutOff("Azure DevOps takes its time"));
        }
        let end = match &planned.action {
            Action::CreateAgent {
                index,
                name,
                profile,
                min_agent,
                run_once,
                attempt,
            } => {
                let blueprint = Blueprint {
                    pool: self.pool,
                    cluster: &self.context.cluster,
                    index: *index,
                    profile,
                    shape: self.shape(profile),
                    min_agent: *min_agent,
                    run_once: *run_once,
                    attempt: *attempt,
                    without: &[],
                };
                self.create(name, blueprint).await
            }
            Action::Disable { agent_id, name } => self.disable(*agent_id, name).await,
            Action::Remove {
                agent_id,
                name,
                pod_uid,
            } => self.remove(*agent_id, name, pod_uid.as_deref()).await,
            Action::DeletePod { name, uid } => self.delete_pod(name, uid).await,
            Action::GiveUpPod { name, uid } => self.give_up(name, uid).await,
            Action::DeleteClaim { name, uid } => self.delete_claim(name, uid).await,
            Action::MarkPod {
                name,
                uid,
                request,
                guarded,
            } => self.mark(name, uid, *request, *guarded).await,
            Action::AddPlaceholder { name, profile } => self.add_placeholder(name, profile).await,
            Action::RemovePlaceholder { agent_id, name } => {
                match self.delete_registration(*agent_id, name).await {
                    Ok(_) => End::Carried(Some(Write::Removed(*agent_id))),
                    Err(end) => end,
                }
            }
        };
        (planned, end)
    }

    /// Digest of the Pod that is made for the profile now.
    fn shape(&self, profile: &str) -> &str {
        let profiles = &self.observed.snapshot.pool.profiles;
        profiles
            .iter()
            .find(|known| known.name == profile)
            .map_or("", |known| &known.shape)
    }

    async fn create(&self, name: &str, blueprint: Blueprint<'_>) -> End {
        let (index, profile) = (blueprint.index, blueprint.profile);
        if self.refused().contains(profile) {
            return End::PutOff("the API server refused another agent of this profile");
        }
        let subscriptions = &self.context.subscriptions;
        if !subscriptions.reserve(
            &self.identity.key,
            &self.observed.subscription.agent_pool,
            name,
        ) {
            return End::PutOff("another RunnerPool is creating an agent of this name");
        }
        let (mut without, mut made) = (Vec::new(), Vec::new());
        for template in &self.pool.spec.pvcs {
            match self.ensure_claim(template, index).await {
                Ok(Mount::Made(claim)) if template.delete_with_agent => made.push(claim),
                Ok(Mount::Made(_) | Mount::There) => {}
                Ok(Mount::Without) => without.push(template.name.clone()),
                Err(end) => {
                    if matches!(end, End::Failed(_)) {
                        self.refused().insert(profile.to_owned());
                    }
                    return end;
                }
            }
        }
        let blueprint = Blueprint {
            without: &without,
            ..blueprint
        };
        let pod = manifest::pod::build(&blueprint);
        match within(self.pods.create(&post(), &pod)).await {
            Ok(created) => {
                self.context.pods.wrote(&created);
                End::Carried(None)
            }
            Err(Failure::Api(status)) if status.is_already_exists() => self.meet_pod(name).await,
            Err(failure) => {
                self.refused().insert(profile.to_owned());
                if failure.is_refusal() {
                    self.take_back(&made).await;
                }
                End::Failed(failure.refusal(Reason::PodRefused, &format!("the Pod {name}")))
            }
        }
    }

    /// Deletes the claims that were just made for a Pod that was refused, or each try would leave some behind.
    async fn take_back(&self, made: &[PersistentVolumeClaim]) {
        for claim in made {
            let name = claim.name_any();
            let uid = claim.uid().unwrap_or_default();
            // One that is left is deleted by the next plan, as nobody has it.
            if let End::Failed(finding) = self.delete_claim(&name, &uid).await {
                tracing::debug!(
                    claim = name,
                    error = finding.message,
                    "Failed to take a claim back"
                );
            }
        }
    }

    /// A Pod of that name exists, although the mirror has none.
    async fn meet_pod(&self, name: &str) -> End {
        match within(self.pods.get_opt(name)).await {
            Ok(Some(pod)) if self.owns(&pod) => {
                self.context.pods.wrote(&pod);
                End::PutOff("the Pod is already there")
            }
            Ok(Some(_)) => {
                let message = format!(
                    "a Pod {name} exists that this RunnerPool does not own; delete or rename it"
                );
                End::Failed(Finding::new(Reason::NameTaken, message))
            }
            Ok(None) | Err(_) => End::PutOff("a Pod of that name is just going"),
        }
    }

    fn owns(&self, pod: &Pod) -> bool {
        manifest::pod::AgentPod::read(pod).is_some_and(|(_, pod)| pod.owner == self.identity.uid)
    }

    /// Sees to it that the claim is there for the agent to mount, or that the agent may go without.
    #[expect(
        clippy::result_large_err,
        reason = "one at a time, and an action's end is what its caller wants"
    )]
    async fn ensure_claim(&self, template: &ClaimTemplate, index: u32) -> Result<Mount, End> {
        let name = manifest::claim::name(self.pool, template, index);
        let missing = |message: String| {
            let finding = Finding::new(Reason::ClaimMissing, format!("spec.pvcs: {message}"));
            if template.optional {
                Ok(Mount::Without)
            } else {
                Err(End::Failed(finding))
            }
        };
        if template.create_pvc {
            let claim = manifest::claim::build(self.pool, template, index);
            match within(self.claims.create(&post(), &claim)).await {
                Ok(created) => {
                    self.context.claims.wrote(&created);
                    return Ok(Mount::Made(created));
                }
                Err(Failure::Api(status)) if status.is_already_exists() => {}
                Err(Failure::Api(_)) if template.optional => return Ok(Mount::Without),
                Err(failure) => {
                    let what = format!("the claim {name} of spec.pvcs");
                    return Err(End::Failed(failure.refusal(Reason::ClaimRefused, &what)));
                }
            }
        }
        match within(self.claims.get_opt(&name)).await {
            Ok(Some(claim)) if claim.meta().deletion_timestamp.is_some() => {
                Err(End::PutOff("a claim of that name is just going"))
            }
            Ok(Some(claim))
                if template.create_pvc && !manifest::claim::is_ours(self.pool, &claim) =>
            {
                missing(format!(
                    "a claim {name} exists that was not made for this RunnerPool; rename or relabel it"
                ))
            }
            Ok(Some(_)) => Ok(Mount::There),
            Ok(None) if template.create_pvc => {
                Err(End::PutOff("a claim of that name is just going"))
            }
            Ok(None) => missing(format!(
                "the claim {name} does not exist in this namespace; create it, or set optional or createPvc to true"
            )),
            Err(failure) => Err(End::Failed(Finding::new(
                Reason::ClaimRefused,
                format!("spec.pvcs: the claim {name} could not be read: {failure}"),
            ))),
        }
    }

    async fn disable(&self, agent_id: i64, name: &str) -> End {
        let Some(pool_id) = self.observed.pool_id else {
            return End::PutOff("the agent pool's id is not known");
        };
        let client = self.observed.subscription.reader.client();
        match client.update_agent(pool_id, agent_id, name, false).await {
            Ok(()) => End::Carried(Some(Write::Disabled(agent_id))),
            Err(error) if error.class() == Class::NotFound => {
                End::Carried(Some(Write::Removed(agent_id)))
            }
            Err(error) => self.refused_by_azure(&format!("disable the agent {name}"), &error),
        }
    }

    async fn remove(&self, agent_id: i64, name: &str, pod_uid: Option<&str>) -> End {
        if pod_uid.is_none() {
            // The mirror may lag behind; only the API server itself can say that there is no Pod.
            match within(self.pods.get_opt(name)).await {
                Ok(None) => {}
                Ok(Some(pod)) => {
                    self.context.pods.wrote(&pod);
                    return End::PutOff("its Pod is there after all");
                }
                Err(_) => {
                    return End::PutOff("the API server did not say whether its Pod is there");
                }
            }
        }
        let write = match self.delete_registration(agent_id, name).await {
            // The look was older than it seemed: what it told of this Pod's agent may be true of a former one. An agent
            // whose registration is gone ends by itself.
            Ok(Deleted::Before) if self.may_run(pod_uid) => {
                return End::Carried(Some(Write::Removed(agent_id)));
            }
            Ok(Deleted::Now | Deleted::Before) => Write::Removed(agent_id),
            Err(end) => return end,
        };
        if let Some(uid) = pod_uid {
            // The registration is gone whatever becomes of the Pod; the next plan deletes a Pod that has ended.
            if let End::Failed(finding) = self.delete_pod_of(name, uid, None).await {
                tracing::warn!(
                    agent = name,
                    error = finding.message,
                    "Failed to delete the Pod of a removed agent"
                );
            }
        }
        End::Carried(Some(write))
    }

    /// Whether the agent of this Pod may be running.
    fn may_run(&self, pod_uid: Option<&str>) -> bool {
        let mut pods = self.observed.pods.iter();
        let pod = pods.find(|pod| Some(pod.pod.uid.as_str()) == pod_uid);
        pod.is_some_and(|pod| pod.pod.phase.finished_at().is_none())
    }

    async fn delete_registration(&self, agent_id: i64, name: &str) -> Result<Deleted, End> {
        let Some(pool_id) = self.observed.pool_id else {
            return Err(End::PutOff("the agent pool's id is not known"));
        };
        match self
            .observed
            .subscription
            .reader
            .client()
            .delete_agent(pool_id, agent_id)
            .await
        {
            Ok(()) => Ok(Deleted::Now),
            Err(error) => match error.class() {
                Class::NotFound => Ok(Deleted::Before),
                Class::Conflict => Err(End::PutOff(
                    "Azure DevOps keeps the agent, as a job is assigned to it",
                )),
                Class::Transient | Class::Throttled | Class::Unauthorized | Class::Invalid => {
                    Err(self.refused_by_azure(&format!("delete the agent {name}"), &error))
                }
            },
        }
    }

    /// Deletes the Pod of an agent that never ran, or has ended.
    async fn delete_pod(&self, name: &str, uid: &str) -> End {
        let seen = self.observed.pods.iter().find(|pod| pod.pod.uid == uid);
        // Not a newer version of it, in which the agent may run.
        let version = seen.and_then(|pod| pod.resource_version.clone());
        self.delete_pod_of(name, uid, version).await
    }

    /// Declares a Pod failed that waits on its node, or for one: its place is free then, the kubelet begins nothing any more,
    /// and the Pod tells what it waited for. Not a newer version of it, in which the agent may run.
    async fn give_up(&self, name: &str, uid: &str) -> End {
        let Some(seen) = self.observed.pods.iter().find(|pod| pod.pod.uid == uid) else {
            return End::PutOff("the Pod is just going");
        };
        let patch = manifest::trouble::given_up(seen);
        match within(self.pods.patch_status(
            name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        ))
        .await
        {
            Ok(pod) => {
                self.context.pods.wrote(&pod);
                End::Carried(None)
            }
            Err(failure) => gone(Err(failure), &format!("declare the Pod {name} failed")),
        }
    }

    async fn delete_pod_of(&self, name: &str, uid: &str, resource_version: Option<String>) -> End {
        let preconditions = Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version,
        });
        let params = DeleteParams {
            preconditions,
            ..DeleteParams::default()
        };
        gone(
            within(self.pods.delete(name, &params)).await.map(drop),
            &format!("delete the Pod {name}"),
        )
    }

    async fn delete_claim(&self, name: &str, uid: &str) -> End {
        let preconditions = Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let params = DeleteParams {
            preconditions,
            ..DeleteParams::default()
        };
        gone(
            within(self.claims.delete(name, &params)).await.map(drop),
            &format!("delete the claim {name}"),
        )
    }

    async fn mark(&self, name: &str, uid: &str, request: Option<i64>, guarded: bool) -> End {
        let patch = json!({ "metadata": {
            // A namesake of another uid is refused.
            "uid": uid,
            "labels": { names::LABEL_JOB_REQUEST_ID: request.map(|id| id.to_string()) },
            "annotations": manifest::pod::guards(guarded),
        }});
        match within(
            self.pods
                .patch(name, &PatchParams::default(), &Patch::Merge(patch)),
        )
        .await
        {
            Ok(pod) => {
                self.context.pods.wrote(&pod);
                End::Carried(None)
            }
            Err(Failure::Api(status)) if status.is_not_found() || status.is_conflict() => {
                End::Carried(None)
            }
            Err(failure) => End::Failed(Finding::new(
                Reason::PodRefused,
                format!("the Pod {name} could not be labelled: {failure}"),
            )),
        }
    }

    async fn add_placeholder(&self, name: &str, profile: &str) -> End {
        let Some(pool_id) = self.observed.pool_id else {
            return End::PutOff("the agent pool's id is not known");
        };
        let agent = placeholder(
            self.pool,
            &self.observed.snapshot.pool.owner_mark,
            name,
            profile,
        );
        match self
            .observed
            .subscription
            .reader
            .client()
            .add_agent(pool_id, &agent)
            .await
        {
            Ok(added) => {
                let mut registration = reader::registration(added);
                // The answer need not repeat what was sent.
                registration.owner_mark = Some(self.observed.snapshot.pool.owner_mark.clone());
                End::Carried(Some(Write::Added(registration)))
            }
            Err(error) if error.class() == Class::Conflict => {
                End::PutOff("a registration of this name appeared")
            }
            Err(error) => {
                self.refused_by_azure(&format!("register the placeholder {name}"), &error)
            }
        }
    }

    /// A call to Azure DevOps that failed. Trouble with the connection shows in the next look as well; what only this
    /// call met is told here.
    fn refused_by_azure(&self, what: &str, error: &azure_devops::Error) -> End {
        let reason = match error.class() {
            Class::Throttled => return End::PutOff("Azure DevOps asked to wait"),
            Class::Unauthorized => {
                self.observed.subscription.reader.refuse_token();
                Reason::Unauthorized
            }
            Class::Transient | Class::NotFound | Class::Conflict | Class::Invalid => {
                Reason::Unreachable
            }
        };
        End::Failed(Finding::new(
            reason,
            format!("could not {what}: {}", chain(error)),
        ))
    }

    fn refused(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs what was done and, for agents, writes an event.
    fn tell(&self, planned: &Planned) {
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
            Action::MarkPod { .. } => {
                tracing::debug!(
                    namespace = self.identity.key.namespace,
                    pool = self.identity.key.name,
                    agent = action.subject(),
                    "Marked Pod"
                );
                return;
            }
            Action::AddPlaceholder { .. } => ("Registered placeholder", None),
            Action::RemovePlaceholder { .. } => ("Removed placeholder", None),
        };
        let (namespace, pool, agent) = (
            &self.identity.key.namespace,
            &self.identity.key.name,
            action.subject(),
        );
        let request_id = match why {
            Why::JobQueued { request } => Some(*request),
            _ => None,
        };
        tracing::info!(namespace, pool, agent, request_id, reason = %why, "{message}");
        if let Some((reason, event_action, verb)) = report {
            let pod = manifest::pod::reference(namespace, agent);
            let note = format!("{verb} agent {agent}: {why}");
            let report = Report {
                warning: false,
                reason,
                action: event_action,
                note,
                pod: Some(pod),
            };
            self.context.events.emit(&self.reference, report);
        }
    }
}

/// A registration that is never online: with every capability that is known of the agents it stands for, and a version
/// above any that a job demands.
fn placeholder(pool: &RunnerPool, owner_mark: &str, name: &str, profile: &str) -> NewAgent {
    const VERSION: &str = "99.999.9";
    let own = [
        ("Agent.Version", VERSION),
        ("Agent.OS", "Linux"),
        ("AZP_URL", pool.spec.az_do_url.trim()),
        ("AZP_POOL", pool.spec.pool.trim()),
        ("AZP_CAPABILITY", profile),
    ];
    let mut capabilities: BTreeMap<String, String> = own
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if profile != names::BASE {
        capabilities.insert(profile.to_owned(), String::new());
    }
    // Agents report their environment; a value that comes from a Secret is nobody's business here.
    let extra = pool
        .spec
        .extra_env
        .iter()
        .map(|env| (env.name.clone(), env.value.clone().unwrap_or_default()));
    capabilities.extend(extra);
    NewAgent {
        name: name.to_owned(),
        version: VERSION.into(),
        os_description: "Placeholder: lets jobs wait while there is no agent".into(),
        system_capabilities: capabilities,
        user_capabilities: BTreeMap::from([(names::ENV_OWNER.to_owned(), owner_mark.to_owned())]),
    }
}

/// A deletion: what is gone already is as good, and what has changed is looked at again.
fn gone(result: Result<(), Failure>, what: &str) -> End {
    match result {
        Ok(()) => End::Carried(None),
        Err(Failure::Api(status)) if status.is_not_found() => End::Carried(None),
        Err(Failure::Api(status)) if status.is_conflict() => End::PutOff("it changed meanwhile"),
        Err(failure) => End::Failed(Finding::new(
            Reason::PodRefused,
            format!("could not {what}: {failure}"),
        )),
    }
}

/// Why a call to the API server failed.
#[derive(Debug)]
enum Failure {
    Api(Box<kube::core::Status>),
    Other(String),
}

impl Failure {
    /// Whether the call surely changed nothing. The API server may have carried out what it answers with a 5xx.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Api(status) => (400..500).contains(&status.code),
            Self::Other(_) => false,
        }
    }
}

impl Failure {
    /// The refusal of an object that was to be created. A quota only makes jobs wait, as `maxAgents` does.
    fn refusal(&self, reason: Reason, what: &str) -> Finding {
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

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(status) => f.write_str(&status.message),
            Self::Other(text) => f.write_str(text),
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
