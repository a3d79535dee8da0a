//! Carries a plan out: requests to Kubernetes and to Azure DevOps side by side, each kind in parallel. It knows which
//! requests an action takes, in which order, and what their answers mean; it does not know how they are sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{ClaimTemplate, RunnerPool, conditions::Reason, names};
use azure_devops::{Class, NewAgent};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Resource as _, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use planner::{Action, Breach, Capabilities, Plan, Planned, Reported};
use serde_json::json;

use super::{Finding, Identity, Known, observe::Observed};
use crate::{
    manifest::{self, pod::Blueprint},
    mirror::Mirrored as _,
    outside::{Failure, Outside},
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

pub(crate) async fn act<O: Outside>(
    pool: &RunnerPool,
    identity: &Identity,
    known: Known<'_>,
    observed: &Observed,
    plan: &Plan,
    outside: &O,
) -> Done {
    let actor = Actor {
        pool,
        identity,
        known,
        observed,
        outside,
        refused: Mutex::default(),
        doubtful: !known.pods.doubted(&identity.key).is_empty(),
    };
    actor.settle_doubts().await;
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
        | Action::UpdatePlaceholder { .. }
        | Action::RemoveRegistration { .. } => true,
        Action::CreateAgent { .. }
        | Action::DeletePod { .. }
        | Action::GiveUpPod { .. }
        | Action::DeleteClaim { .. }
        | Action::MarkPod { .. }
        | Action::Remember { .. } => false,
    }
}

struct Actor<'a, O> {
    pool: &'a RunnerPool,
    identity: &'a Identity,
    known: Known<'a>,
    observed: &'a Observed,
    outside: &'a O,
    /// Profiles of which the API server refused an agent in this pass: a quota or a policy would refuse the others too.
    refused: Mutex<BTreeSet<String>>,
    /// The plan was made without knowing what became of an earlier creation, so that it may create too many.
    doubtful: bool,
}

impl<O: Outside> Actor<'_, O> {
    async fn all(&self, actions: Vec<Planned>, concurrency: usize) -> Done {
        let mut done = Done::default();
        // A request in the making takes many times the memory of its action, so it begins when its turn comes.
        let mut ends = stream::iter(actions)
            .map(|planned| self.one(planned).boxed())
            .buffer_unordered(concurrency);
        while let Some((planned, end)) = ends.next().await {
            match end {
                End::Carried(write) => {
                    self.outside.done(&planned);
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
        if speaks_to_azure(&planned.action) && self.outside.elapsed() > AZURE_DEVOPS_BUDGET {
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
                    cluster: self.known.cluster,
                    index: *index,
                    profile: &self.pool.spec.profile(profile),
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
            Action::DeleteClaim { name, uid } => self.delete_unused_claim(name, uid).await,
            Action::MarkPod {
                name,
                uid,
                request,
                guarded,
            } => self.mark(name, uid, *request, *guarded).await,
            Action::AddPlaceholder { name, capabilities } => {
                self.add_placeholder(name, capabilities).await
            }
            Action::UpdatePlaceholder {
                agent_id,
                name,
                capabilities,
            } => self.update_placeholder(*agent_id, name, capabilities).await,
            Action::Remember { name, lesson } => {
                let reader = &self.observed.subscription.reader;
                reader.remember(name, lesson.clone());
                End::Carried(None)
            }
            Action::RemoveRegistration { agent_id, name } => {
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
        let (index, profile) = (blueprint.index, blueprint.profile.name);
        if self.doubtful {
            return End::PutOff("an earlier creation had no answer");
        }
        if self.refused().contains(profile) {
            return End::PutOff("the API server refused another agent of this profile");
        }
        let subscriptions = self.known.subscriptions;
        if !subscriptions.reserve(
            &self.identity.key,
            &self.observed.subscription.agent_pool,
            name,
        ) {
            return End::PutOff("another RunnerPool is creating an agent of this name");
        }
        // It may have created it, and ended its reservation, after this plan was made.
        let agent_pool = &self.observed.subscription.agent_pool;
        let siblings = subscriptions.siblings(&self.identity.key, agent_pool);
        if (siblings.iter()).any(|(pool, _)| self.known.pods.may_have(pool, name)) {
            return End::PutOff("another RunnerPool has an agent of this name");
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
        // Claims may take a while, and an agent would register over another one of its name.
        if self.observed.subscription.reader.has_seen(name) {
            self.take_back(&made).await;
            return End::PutOff("an agent of this name has registered since the plan was made");
        }
        let blueprint = Blueprint {
            without: &without,
            ..blueprint
        };
        let pod = manifest::pod::build(&blueprint);
        // The pass may end before the answer is there.
        self.known.pods.doubt(&self.identity.key, name);
        let settle = || self.known.pods.settle(&self.identity.key, name);
        match self.outside.create_pod(&pod).await {
            Ok(created) => {
                self.known.pods.wrote(&created);
                settle();
                End::Carried(None)
            }
            Err(Failure::Api(status)) if status.is_already_exists() => {
                settle();
                self.meet_pod(name).await
            }
            Err(failure) => {
                self.refused().insert(profile.to_owned());
                if failure.is_refusal() {
                    settle();
                    self.take_back(&made).await;
                }
                End::Failed(failure.refusal(Reason::PodRefused, &format!("the Pod {name}")))
            }
        }
    }

    /// Asks what became of Pods whose creation had no answer.
    async fn settle_doubts(&self) {
        let key = &self.identity.key;
        stream::iter(self.known.pods.doubted(key))
            .for_each_concurrent(KUBERNETES_CONCURRENCY, |name| async move {
                if let Ok(found) = self.outside.get_pod(&name).await {
                    if let Some(pod) = found {
                        self.known.pods.wrote(&pod);
                    }
                    self.known.pods.settle(key, &name);
                }
            })
            .await;
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
        match self.outside.get_pod(name).await {
            Ok(Some(pod)) if self.owns(&pod) => {
                self.known.pods.wrote(&pod);
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
            match self.outside.create_claim(&claim).await {
                Ok(created) => {
                    self.known.claims.wrote(&created);
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
        match self.outside.get_claim(&name).await {
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
        let reader = &self.observed.subscription.reader;
        reader.disabling(agent_id);
        let answer = self.outside.disable_agent(pool_id, agent_id, name).await;
        reader.disabling(agent_id);
        match answer {
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
            match self.outside.get_pod(name).await {
                Ok(None) => {}
                Ok(Some(pod)) => {
                    self.known.pods.wrote(&pod);
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
            if let End::Failed(finding) = self.delete_pod_of(name, uid, None, None).await {
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
        match self.outside.delete_agent(pool_id, agent_id).await {
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
        let grace = seen.and_then(|pod| pod.grace);
        self.delete_pod_of(name, uid, version, grace).await
    }

    /// Declares a Pod failed that waits on its node, or for one: its place is free then, the kubelet begins nothing any more,
    /// and the Pod tells what it waited for. Not a newer version of it, in which the agent may run.
    async fn give_up(&self, name: &str, uid: &str) -> End {
        let Some(seen) = self.observed.pods.iter().find(|pod| pod.pod.uid == uid) else {
            return End::PutOff("the Pod is just going");
        };
        let patch = manifest::trouble::given_up(seen, self.outside.now());
        match self.outside.patch_pod_status(name, patch).await {
            Ok(pod) => {
                self.known.pods.wrote(&pod);
                End::Carried(None)
            }
            Err(failure) => gone(Err(failure), &format!("declare the Pod {name} failed")),
        }
    }

    async fn delete_pod_of(
        &self,
        name: &str,
        uid: &str,
        resource_version: Option<String>,
        grace: Option<u32>,
    ) -> End {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version,
            }),
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        gone(
            self.outside.delete_pod(name, params).await,
            &format!("delete the Pod {name}"),
        )
    }

    /// Deletes a claim whose agent has no Pod. The mirror may lag behind; only the API server itself can say so.
    async fn delete_unused_claim(&self, name: &str, uid: &str) -> End {
        let claims = &self.observed.snapshot.cluster.claims;
        let Some(claim) = claims.iter().find(|claim| claim.uid == uid) else {
            return End::PutOff("the claim is not known");
        };
        let agent = names::agent(self.pool.agent_base(), claim.index);
        match self.outside.get_pod(&agent).await {
            Ok(Some(pod)) if self.owns(&pod) => {
                self.known.pods.wrote(&pod);
                End::PutOff("its Pod is there after all")
            }
            // Somebody else's of that name is no agent of ours, which the claim waits for.
            Ok(None | Some(_)) => self.delete_claim(name, uid).await,
            Err(_) => End::PutOff("the API server did not say whether its Pod is there"),
        }
    }

    async fn delete_claim(&self, name: &str, uid: &str) -> End {
        let preconditions = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        gone(
            self.outside.delete_claim(name, preconditions).await,
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
        match self.outside.patch_pod(name, patch).await {
            Ok(pod) => {
                self.known.pods.wrote(&pod);
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

    async fn add_placeholder(&self, name: &str, capabilities: &Reported) -> End {
        let Some(pool_id) = self.observed.pool_id else {
            return End::PutOff("the agent pool's id is not known");
        };
        let agent = self.placeholder(name, capabilities);
        match self.outside.add_agent(pool_id, &agent).await {
            Ok(added) => {
                let mut registration = reader::registration(added);
                // The answer need not repeat what was sent.
                registration.owner_mark = Some(self.observed.snapshot.pool.owner_mark.clone());
                registration.capabilities = capabilities.clone();
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

    async fn update_placeholder(&self, agent_id: i64, name: &str, capabilities: &Reported) -> End {
        let Some(pool_id) = self.observed.pool_id else {
            return End::PutOff("the agent pool's id is not known");
        };
        let agent = self.placeholder(name, capabilities);
        match self.outside.replace_agent(pool_id, agent_id, &agent).await {
            Ok(_) => End::Carried(Some(Write::Updated(agent_id, capabilities.clone()))),
            Err(error) if error.class() == Class::NotFound => {
                End::Carried(Some(Write::Removed(agent_id)))
            }
            Err(error) if error.class() == Class::Conflict => {
                End::PutOff("Azure DevOps keeps the placeholder as it is for now")
            }
            Err(error) => self.refused_by_azure(&format!("update the placeholder {name}"), &error),
        }
    }

    /// A registration that is never online, with the owner mark.
    fn placeholder(&self, name: &str, capabilities: &Reported) -> NewAgent {
        let pairs = |capabilities: &Capabilities| -> BTreeMap<String, String> {
            let pairs = capabilities.iter();
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let mut user = pairs(&capabilities.user);
        let mark = self.observed.snapshot.pool.owner_mark.clone();
        user.insert(names::ENV_OWNER.to_owned(), mark);
        NewAgent {
            name: name.to_owned(),
            version: planner::PLACEHOLDER_VERSION.into(),
            os_description: "Placeholder: lets jobs wait while there is no agent".into(),
            system_capabilities: pairs(&capabilities.system),
            user_capabilities: user,
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
