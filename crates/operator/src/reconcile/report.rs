//! Tells the user: status, conditions, and events when they change. Written only when something other than a time is
//! new.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use api::{
    AgentIndexStatus, AgentPoolStatus, AgentStatus, ConnectionStatus, FinishedRequest, InForce,
    Mode, RunnerPool, RunnerPoolStatus, ScheduleStatus,
    conditions::{ConditionType, Reason},
    names,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::error_boundary::InvalidObject,
    runtime::controller::Action,
};
use planner::{Agent, AgentState, Lacking, Look, Plan};
use serde_json::json;

use super::{Context, Error, Identity, act::Done, observe::Observed, troubles};
use crate::{
    events::Report,
    manifest,
    mirror::PoolKey,
    reader::{FailureKind, Outcome},
};

/// Shortest time between two writes of one status. A burst of Pods changes it at each one; people read it later.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Agents that a status lists at the most: an object has to fit into etcd's 1.5 MiB.
const MOST_LISTED: usize = 1000;

/// Something that the user should know of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Finding {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What has been told. Losing it costs a repeated event, nothing else.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<HashMap<PoolKey, Told>>);

#[derive(Debug, Default)]
struct Told {
    written: Option<Instant>,
    /// The status as it was last written, without times.
    applied: Option<RunnerPoolStatus>,
    /// The API server dropped the agent pool from the status: its CRD is older than this program.
    dropped: bool,
    lost: HashSet<i64>,
    /// What keeps queued jobs from agents.
    lacking: BTreeSet<Lacking>,
    /// Why Pods were or are being ended, by name.
    ends: HashMap<String, String>,
    /// Why the object could not be read, as last told.
    unreadable: Option<String>,
}

impl Reports {
    pub(crate) fn forget(&self, pool: &PoolKey) {
        self.told().remove(pool);
    }

    fn told(&self) -> MutexGuard<'_, HashMap<PoolKey, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes down the agent pool when it was found, before anything is done there: from then on the spec must not lead to
/// another one. `true`: the RunnerPool changed, by this or meanwhile, which calls for the next pass.
///
/// It is a write of its own and not part of the others, so that none of them can take it back: they may start from an older
/// copy of the RunnerPool, or from one that cannot be read.
pub(crate) async fn settle(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    observed: &Observed,
) -> Result<bool, Error> {
    let holds = |pool: &RunnerPool| {
        let status = pool.status.as_ref();
        status.is_some_and(|status| status.agent_pool.is_some())
    };
    let dropped = {
        let told = context.reports.told();
        told.get(&identity.key).is_some_and(|told| told.dropped)
    };
    if observed.pool_id.is_none() || holds(pool) || dropped {
        return Ok(false);
    }
    let pools: Api<RunnerPool> = Api::namespaced(context.client.clone(), &identity.key.namespace);
    // The resource version: the spec may lead to another one by now.
    let patch = json!({
        "metadata": { "resourceVersion": pool.resource_version() },
        "status": { "agentPool": AgentPoolStatus::of(&pool.spec) },
    });
    let (name, params) = (&identity.key.name, PatchParams::default());
    match pools
        .patch_status(name, &params, &Patch::Merge(patch))
        .await
    {
        Ok(written) if holds(&written) => Ok(true),
        Ok(_) => {
            tracing::warn!(
                namespace = identity.key.namespace,
                pool = identity.key.name,
                "Failed to write the agent pool into the status: the CustomResourceDefinition is older than the operator"
            );
            context
                .reports
                .told()
                .entry(identity.key.clone())
                .or_default()
                .dropped = true;
            Ok(false)
        }
        Err(kube::Error::Api(refusal)) if refusal.is_not_found() || refusal.is_conflict() => {
            Ok(true)
        }
        Err(error) => Err(Error::Status(error)),
    }
}

/// Reports a pass; gives the time after which to report again what was too soon to write.
pub(crate) async fn report(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    observed: &Observed,
    plan: &Plan,
    done: &Done,
) -> Result<Option<Duration>, Error> {
    let current = pool.status.clone().unwrap_or_default();
    if matches!(observed.outcome, Outcome::Pending) && !current.conditions.is_empty() {
        // The first look is on its way; what was known before says more than that.
        return Ok(None);
    }
    if matches!(observed.outcome, Outcome::Seen(_)) {
        tell_unserved_jobs(pool, identity, context, plan);
    }
    let findings = Findings::gather(pool, observed, plan, done);
    let status = status(pool, &current, observed, plan, &findings);
    write(pool, identity, context, &current, status).await
}

/// Reports a RunnerPool that cannot be worked on.
pub(crate) async fn blocked(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    finding: Finding,
) -> Result<Action, Error> {
    context.metrics.forget(&identity.key);
    let current = pool.status.clone().unwrap_or_default();
    let connected = finding.reason == Reason::SecretUnusable;
    let findings = Findings {
        connected: if connected {
            Verdict::no(finding.clone())
        } else {
            Verdict::unknown()
        },
        limited: Verdict::unknown(),
        degraded: if connected {
            Verdict::unknown()
        } else {
            Verdict::yes(finding.clone())
        },
        resting: resting(pool),
    };
    let status = RunnerPoolStatus {
        connection_status: Some(if connected {
            ConnectionStatus::Unauthorized
        } else {
            ConnectionStatus::Disconnected
        }),
        active: false,
        last_error: Some(finding.message),
        conditions: findings.conditions(pool, &current),
        observed_generation: pool.meta().generation,
        ..current.clone()
    };
    let again = write(pool, identity, context, &current, status).await?;
    Ok(again.map_or_else(Action::await_change, Action::requeue))
}

/// Reports a RunnerPool that cannot even be read: it is older than the schema, or was written without it.
pub(crate) async fn unreadable(
    context: &Context,
    key: &PoolKey,
    invalid: &InvalidObject,
) -> Result<Action, Error> {
    context.metrics.forget(key);
    let message = format!("the object cannot be read: {}; correct it", invalid.error);
    // The write itself comes back as a change of the object; the same trouble is told once.
    let told = context
        .reports
        .told()
        .get(key)
        .and_then(|told| told.unreadable.clone());
    if told.as_ref() == Some(&message) {
        return Ok(Action::await_change());
    }
    tracing::warn!(
        namespace = key.namespace,
        pool = key.name,
        error = message,
        "Skipped an unreadable RunnerPool"
    );
    let finding = Verdict::yes(Finding::new(Reason::InvalidSpec, message.clone()));
    let generation = invalid.metadata.generation;
    let now = Time(Timestamp::now());
    let conditions = [
        condition(
            ConditionType::Ready,
            &finding.negated(),
            generation,
            now.clone(),
        ),
        condition(ConditionType::Degraded, &finding, generation, now),
    ];
    let status =
        json!({ "lastError": message, "conditions": conditions, "observedGeneration": generation });
    let resource = ApiResource::erase::<RunnerPool>(&());
    let pools: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &key.namespace, &resource);
    let apply = json!({
        "apiVersion": RunnerPool::api_version(&()), "kind": RunnerPool::kind(&()), "status": status,
    });
    pools
        .patch_status(&key.name, &manager().force(), &Patch::Apply(apply))
        .await
        .map_err(Error::Status)?;
    context
        .reports
        .told()
        .entry(key.clone())
        .or_default()
        .unreadable = Some(message);
    Ok(Action::await_change())
}

/// What there is to say, by condition.
struct Findings {
    connected: Verdict,
    limited: Verdict,
    degraded: Verdict,
    /// Why it does not do what a RunnerPool is for, by its user's wish.
    resting: Option<Finding>,
}

/// Status of a condition, with its reason.
#[derive(Clone)]
struct Verdict {
    status: &'static str,
    finding: Finding,
}

impl Verdict {
    fn yes(finding: Finding) -> Self {
        Self {
            status: "True",
            finding,
        }
    }

    fn no(finding: Finding) -> Self {
        Self {
            status: "False",
            finding,
        }
    }

    fn unknown() -> Self {
        Self {
            status: "Unknown",
            finding: Finding::new(Reason::NotYetKnown, "Azure DevOps has not been asked yet"),
        }
    }

    fn negated(&self) -> Self {
        let status = match self.status {
            "True" => "False",
            "False" => "True",
            other => other,
        };
        Self {
            status,
            finding: self.finding.clone(),
        }
    }
}

/// What the user wishes other than agents for jobs.
fn resting(pool: &RunnerPool) -> Option<Finding> {
    let (reason, message) = match pool.spec.mode {
        _ if pool.meta().deletion_timestamp.is_some() => (
            Reason::Deleting,
            "it is being deleted: busy agents may finish, every registration is removed; the annotation \
             devops.opentools.mf/force-delete: \"true\" skips the wait",
        ),
        Mode::Active => return None,
        Mode::Paused => (
            Reason::Paused,
            "spec.mode is Paused: nothing is created or removed until it is Active",
        ),
        Mode::Drained => (
            Reason::Drained,
            "spec.mode is Drained: busy agents finish, and none is created until it is Active",
        ),
    };
    Some(Finding::new(reason, message))
}

impl Findings {
    fn gather(pool: &RunnerPool, observed: &Observed, plan: &Plan, done: &Done) -> Self {
        let fine = || Finding::new(Reason::AsExpected, "");
        let connected = match &observed.outcome {
            Outcome::Pending => Verdict::unknown(),
            Outcome::Seen(_) => {
                Verdict::yes(Finding::new(Reason::Answered, "Azure DevOps answers"))
            }
            Outcome::Failed(failure) => {
                let reason = match failure.kind {
                    FailureKind::Unauthorized => Reason::Unauthorized,
                    FailureKind::PoolNotFound => Reason::PoolNotFound,
                    FailureKind::Throttled => Reason::Throttled,
                    FailureKind::Unreachable => Reason::Unreachable,
                };
                Verdict::no(Finding::new(reason, failure.message.clone()))
            }
        };
        let over_quota = |finding: &&Finding| finding.reason == Reason::QuotaExceeded;
        let limited = match plan.shortage {
            _ if done.findings.iter().any(|finding| over_quota(&finding)) => Verdict::yes(
                done.findings
                    .iter()
                    .find(over_quota)
                    .cloned()
                    .unwrap_or_else(fine),
            ),
            Some(_) => Verdict::yes(Finding::new(
                Reason::MaxAgentsReached,
                format!(
                    "more agents are needed than {} ({}){} allows; jobs wait until one is free",
                    observed.in_force.schedule.as_ref().map_or_else(
                        || "spec.maxAgents".to_owned(),
                        |name| format!("schedule {name}")
                    ),
                    observed.in_force.max_agents,
                    if pool
                        .spec
                        .profiles
                        .iter()
                        .any(|profile| profile.max_agents.is_some())
                    {
                        ", or that of a profile,"
                    } else {
                        ""
                    }
                ),
            )),
            None => Verdict::no(fine()),
        };
        let found = done
            .findings
            .iter()
            .find(|finding| !over_quota(finding))
            .cloned()
            .or_else(|| troubles::of_pods(&observed.pods, plan, Timestamp::now()))
            .or_else(|| troubles::of_names(plan))
            .or_else(|| troubles::of_jobs(plan));
        let degraded = found.map_or_else(|| Verdict::no(fine()), Verdict::yes);
        Self {
            connected,
            limited,
            degraded,
            resting: resting(pool),
        }
    }

    /// The summary: connected and not degraded.
    fn ready(&self) -> Verdict {
        if let Some(why) = &self.resting {
            return Verdict::no(why.clone());
        }
        if self.connected.status != "True" {
            return self.connected.clone();
        }
        match self.degraded.status {
            "False" => Verdict::yes(Finding::new(Reason::AsExpected, "")),
            _ => self.degraded.negated(),
        }
    }

    fn first_error(&self) -> Option<String> {
        let bad = [(&self.connected, "False"), (&self.degraded, "True")];
        bad.into_iter()
            .find(|(verdict, bad)| verdict.status == *bad)
            .map(|(verdict, _)| verdict.finding.message.clone())
    }

    /// All conditions; the time of each moves only with its status.
    fn conditions(&self, pool: &RunnerPool, current: &RunnerPoolStatus) -> Vec<Condition> {
        let now = Time(Timestamp::now());
        ConditionType::ALL
            .into_iter()
            .map(|type_| {
                let verdict = match type_ {
                    ConditionType::Ready => self.ready(),
                    ConditionType::Connected => self.connected.clone(),
                    ConditionType::ScalingLimited => self.limited.clone(),
                    ConditionType::Degraded => self.degraded.clone(),
                };
                let same = current
                    .conditions
                    .iter()
                    .find(|old| old.type_ == type_.to_string() && old.status == verdict.status);
                let since =
                    same.map_or_else(|| now.clone(), |old| old.last_transition_time.clone());
                condition(type_, &verdict, pool.meta().generation, since)
            })
            .collect()
    }
}

fn condition(
    type_: ConditionType,
    verdict: &Verdict,
    generation: Option<i64>,
    since: Time,
) -> Condition {
    Condition {
        type_: type_.to_string(),
        status: verdict.status.to_owned(),
        reason: verdict.finding.reason.to_string(),
        message: verdict.finding.message.clone(),
        observed_generation: generation,
        last_transition_time: since,
    }
}

fn status(
    pool: &RunnerPool,
    current: &RunnerPoolStatus,
    observed: &Observed,
    plan: &Plan,
    findings: &Findings,
) -> RunnerPoolStatus {
    let mut status = RunnerPoolStatus {
        connection_status: match &observed.outcome {
            Outcome::Pending => None,
            Outcome::Seen(_) => Some(ConnectionStatus::Connected),
            Outcome::Failed(failure) => Some(match failure.kind {
                FailureKind::Unauthorized => ConnectionStatus::Unauthorized,
                FailureKind::PoolNotFound => ConnectionStatus::PoolNotFound,
                FailureKind::Throttled => ConnectionStatus::Throttled,
                FailureKind::Unreachable => ConnectionStatus::Disconnected,
            }),
        },
        organization_name: Some(observed.organization.clone()),
        active: matches!(observed.outcome, Outcome::Seen(_)),
        current_agent_index: plan.agents.iter().map(|agent| agent.index).max(),
        schedule: schedule(pool, &observed.in_force),
        last_error: findings.first_error(),
        agent_indexes: indexes(pool, plan),
        conditions: findings.conditions(pool, current),
        observed_generation: pool.meta().generation,
        // What could not be looked at is as it was, not nothing.
        ..current.clone()
    };
    if let Look::Known(look) = &observed.snapshot.look {
        let registered = || {
            plan.agents
                .iter()
                .filter_map(|agent| Some((agent, agent.registration.as_ref()?)))
        };
        let queued = look
            .agent_pool
            .requests
            .iter()
            .filter(|request| request.reserved_agent.is_none())
            .count();
        status.queued_jobs = count(queued);
        let some = |jobs: usize| (jobs > 0).then(|| count(jobs));
        status.unserved_jobs = some(plan.unserved.len());
        status.disputed_jobs = some(plan.disputed);
        status.running_agents = count(
            registered()
                .filter(|(_, registration)| registration.online)
                .count(),
        );
        status.agents_summary = Some(format!(
            "{}/{}",
            registered().count(),
            observed.in_force.max_agents
        ));
        status.agents = registered()
            .take(MOST_LISTED)
            .map(|(agent, registration)| agent_status(agent, registration))
            .collect();
        status.last_polled = Some(whole(look.taken_at));
    }
    status
}

fn schedule(pool: &RunnerPool, in_force: &InForce) -> Option<ScheduleStatus> {
    let change = in_force
        .until
        .filter(|_| in_force.next != in_force.schedule);
    let (next, start) = in_force.coming.clone().unzip();
    (!pool.spec.schedules.is_empty()).then(|| ScheduleStatus {
        active: in_force.schedule.clone(),
        next_change_time: change.map(whole),
        next_active: next,
        next_start_time: start.map(whole),
    })
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// Kubernetes keeps whole seconds; a fraction would differ from what is read back.
fn whole(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn agent_status(agent: &Agent, registration: &planner::Registration) -> AgentStatus {
    let status = match (agent.state, registration.assigned) {
        (_, Some(_)) => "Busy",
        (AgentState::Drained | AgentState::Draining, _) => "Draining",
        _ if !registration.online => "Offline",
        _ => "Idle",
    };
    let finished = registration.last_finished.map(whole);
    AgentStatus {
        id: registration.id,
        name: registration.name.clone(),
        status: status.into(),
        created_at: agent.pod.as_ref().map(|pod| whole(pod.created_at)),
        last_active: finished.clone(),
        created_on: registration.created_on.map(whole),
        last_completed_request: finished.map(|time| FinishedRequest {
            finish_time: Some(time),
        }),
    }
}

fn indexes(pool: &RunnerPool, plan: &Plan) -> BTreeMap<String, AgentIndexStatus> {
    let with_pod = plan
        .agents
        .iter()
        .filter_map(|agent| Some((agent, agent.pod.as_ref()?)));
    with_pod
        .take(MOST_LISTED)
        .map(|(agent, pod)| {
            let status = match agent.state {
                AgentState::Starting | AgentState::Offline => "Starting",
                AgentState::Idle { .. } | AgentState::Unknown => "Idle",
                AgentState::Busy { .. } => "Busy",
                AgentState::Drained | AgentState::Draining | AgentState::Exiting => "Draining",
                AgentState::Stopping => "Stopping",
                AgentState::Finished | AgentState::Orphaned => "Finished",
            };
            let claims = pool
                .spec
                .pvcs
                .iter()
                .map(|template| crate::manifest::claim::name(pool, template, agent.index));
            let index = AgentIndexStatus {
                pod_name: pod.name.clone(),
                status: status.into(),
                is_min_agent: pod.min_agent,
                created_at: Some(whole(pod.created_at)),
                pvc_names: claims.collect(),
            };
            (agent.index.to_string(), index)
        })
        .collect()
}

/// Writes the status if it says something new; gives the time to wait when it was written a moment ago.
async fn write(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    current: &RunnerPoolStatus,
    status: RunnerPoolStatus,
) -> Result<Option<Duration>, Error> {
    let (found, wanted) = (timeless(current), timeless(&status));
    if found == wanted {
        return Ok(None);
    }
    let since = {
        let mut told = context.reports.told();
        let told = told.entry(identity.key.clone()).or_default();
        if told.applied.as_ref() == Some(&wanted) {
            // What still differs is a field that somebody else wrote and we do not claim, as the former operator's.
            return Ok(None);
        }
        told.written.map(|written| written.elapsed())
    };
    let conditions_moved = verdicts(&found) != verdicts(&wanted);
    if let Some(rest) = since
        .and_then(|since| SHORTEST_PAUSE.checked_sub(since))
        .filter(|_| !conditions_moved)
    {
        return Ok(Some(rest));
    }
    context
        .reports
        .told()
        .entry(identity.key.clone())
        .or_default()
        .written = Some(Instant::now());
    let pools: Api<RunnerPool> = Api::namespaced(context.client.clone(), &identity.key.namespace);
    let apply = json!({
        "apiVersion": RunnerPool::api_version(&()), "kind": RunnerPool::kind(&()),
        "metadata": { "name": identity.key.name, "uid": identity.uid },
        "status": status,
    });
    match pools
        .patch_status(&identity.key.name, &manager().force(), &Patch::Apply(apply))
        .await
    {
        Ok(_) => {
            context
                .reports
                .told()
                .entry(identity.key.clone())
                .or_default()
                .applied = Some(wanted);
            tell_conditions(pool, context, current, &status);
            tell_schedule(pool, context, current, &status);
            Ok(None)
        }
        Err(kube::Error::Api(refusal)) if refusal.is_not_found() => Ok(None),
        Err(error) => Err(Error::Status(error)),
    }
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(names::OPERATOR.into()),
        ..PatchParams::default()
    }
}

/// Status and reason of the conditions of a timeless status: what cannot wait to be told.
fn verdicts(timeless: &RunnerPoolStatus) -> Vec<(&str, &str, &str)> {
    let conditions = timeless.conditions.iter();
    conditions
        .map(|condition| {
            (
                condition.type_.as_str(),
                condition.status.as_str(),
                condition.reason.as_str(),
            )
        })
        .collect()
}

/// A status without its times and without the conditions of others.
fn timeless(status: &RunnerPoolStatus) -> RunnerPoolStatus {
    let mut status = RunnerPoolStatus {
        last_polled: None,
        ..status.clone()
    };
    let ours = |type_: &str| {
        ConditionType::ALL
            .iter()
            .any(|own| own.to_string() == type_)
    };
    status.conditions.retain(|condition| ours(&condition.type_));
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    status
}

/// One event for each condition that changed for the worse or the better.
fn tell_conditions(
    pool: &RunnerPool,
    context: &Context,
    current: &RunnerPoolStatus,
    status: &RunnerPoolStatus,
) {
    for new in &status.conditions {
        let old = current.conditions.iter().find(|old| old.type_ == new.type_);
        let changed =
            old.is_none_or(|old| (&old.status, &old.reason) != (&new.status, &new.reason));
        // The summary repeats the others; what is not known yet is no news; nor is a good start.
        let bad = if new.type_ == ConditionType::Connected.to_string() {
            "False"
        } else {
            "True"
        };
        let was_bad = old.is_some_and(|old| old.status == bad);
        let is_bad = new.status == bad;
        if !changed
            || new.type_ == ConditionType::Ready.to_string()
            || !(is_bad || was_bad)
            || new.status == "Unknown"
        {
            continue;
        }
        let note = if new.message.is_empty() {
            format!("{} is over", new.type_)
        } else {
            new.message.clone()
        };
        let report = Report {
            warning: is_bad,
            reason: &new.reason,
            action: "Reconcile",
            note,
            related: None,
        };
        context.events.emit(&pool.object_ref(&()), report);
    }
}

/// One event for each change of the schedule in force.
fn tell_schedule(
    pool: &RunnerPool,
    context: &Context,
    current: &RunnerPoolStatus,
    status: &RunnerPoolStatus,
) {
    let active = |status: &RunnerPoolStatus| status.schedule.clone().and_then(|told| told.active);
    let (reason, note) = match (active(current), active(status)) {
        (old, new) if old == new => return,
        (_, Some(new)) => ("ScheduleBegan", format!("Schedule {new} is in force")),
        (Some(old), None) => (
            "ScheduleEnded",
            format!("Schedule {old} is over; minAgents and maxAgents of the spec hold"),
        ),
        (None, None) => return,
    };
    let report = Report {
        warning: false,
        reason,
        action: "Reconcile",
        note,
        related: None,
    };
    context.events.emit(&pool.object_ref(&()), report);
}

/// One event for each new reason why queued jobs get no agent, whatever else is wrong.
fn tell_unserved_jobs(pool: &RunnerPool, identity: &Identity, context: &Context, plan: &Plan) {
    let lacking: BTreeSet<&Lacking> = plan.unserved.iter().map(|job| &job.lacking).collect();
    let mut told = context.reports.told();
    let told = told.entry(identity.key.clone()).or_default();
    told.lacking.retain(|told| lacking.contains(told));
    for job in &plan.unserved {
        if told.lacking.insert(job.lacking.clone()) {
            let note = format!(
                "Job request {} gets no agent, as {}",
                job.request, job.lacking
            );
            let report = Report {
                warning: true,
                reason: "JobUnserved",
                action: "Reconcile",
                note,
                related: Some(ObjectReference {
                    kind: Some("JobRequest".to_owned()),
                    name: Some(job.request.to_string()),
                    ..ObjectReference::default()
                }),
            };
            context.events.emit(&pool.object_ref(&()), report);
        }
    }
}

/// One event for each job that was lost with its Pod.
pub(crate) fn tell_lost_jobs(
    pool: &RunnerPool,
    identity: &Identity,
    context: &Context,
    observed: &Observed,
    plan: &Plan,
) {
    let lost = troubles::lost_jobs(&observed.pods, plan);
    let agents = plan.agents.iter().map(|agent| agent.name.as_str());
    let agents: HashSet<&str> = agents.collect();
    let mut told = context.reports.told();
    let told = told.entry(identity.key.clone()).or_default();
    // What is known of a Pod's end shortly before it goes is not to be read afterwards.
    told.ends.retain(|name, _| agents.contains(name.as_str()));
    let ends = observed.pods.iter().filter_map(|pod| {
        let end = pod.trouble.end.as_ref()?;
        Some((pod.pod.name.clone(), end.clone()))
    });
    told.ends.extend(ends);
    told.lost.retain(|request| lost.contains_key(request));
    for (request, agent) in lost {
        if told.lost.insert(request) {
            let end = told.ends.get(agent).map_or(
                "the Pod is gone: it was deleted by force, or with its node",
                String::as_str,
            );
            let note = format!(
                "Job request {request} was lost with the Pod of agent {agent}: {end}. Azure DevOps gives it up when its lock ends"
            );
            tracing::warn!(
                namespace = identity.key.namespace,
                pool = pool.name_any(),
                agent,
                request_id = request,
                reason = end,
                "Lost a job with its Pod"
            );
            context.events.emit(
                &pool.object_ref(&()),
                Report {
                    warning: true,
                    reason: "JobLost",
                    action: "Reconcile",
                    note,
                    related: Some(manifest::pod::reference(&identity.key.namespace, agent)),
                },
            );
        }
    }
}
