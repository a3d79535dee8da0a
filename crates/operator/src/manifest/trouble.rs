//! What Kubernetes tells of a Pod that does not start, that was ended from outside, or that does not end. Pure; it takes
//! the words of Kubernetes as they are and only shortens them.

use api::names;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use planner::{Hold, PodPhase, Waiting};
use serde_json::{Value, json};

use super::pod::AgentPod;

/// Reasons of a waiting container that are not trouble.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Longest text of Kubernetes that is passed on, in bytes: a few of them have to fit into one message.
const LONGEST: usize = 200;

/// How long after the end of its grace period a Pod may still be there: the kubelet needs a moment to report the end.
const DELETION_PATIENCE: SignedDuration = SignedDuration::from_mins(1);

/// What Kubernetes tells of a Pod's troubles.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trouble {
    /// Why it does not start, or failed.
    pub(crate) start: Option<String>,
    /// Why it was or is being ended, other than by its agent.
    pub(crate) end: Option<String>,
    /// Its node does not answer, so that nobody knows what its agent does.
    pub(crate) node_lost: bool,
    /// When it should be gone; `None`: nobody asked for its deletion.
    pub(crate) due: Option<Timestamp>,
}

impl Trouble {
    pub(crate) fn read(pod: &Pod, phase: PodPhase) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        Self {
            start: start(&status),
            end: end(pod, &status),
            node_lost: node_lost(pod, &status),
            due: due(pod, phase),
        }
    }

    /// Whether the Pod should have been gone for a while.
    pub(crate) fn is_overdue(&self, now: Timestamp) -> bool {
        self.due.is_some_and(|due| due < now - DELETION_PATIENCE)
    }
}

/// The end of a Pod's grace period. What it was given beyond what it asks for is for a job, and an agent that does not run
/// has none.
fn due(pod: &Pod, phase: PodPhase) -> Option<Timestamp> {
    let end = pod.metadata.deletion_timestamp.as_ref()?.0;
    if phase != PodPhase::Pending {
        return Some(end);
    }
    let given = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let spec = pod.spec.as_ref();
    let asked = spec.and_then(|spec| spec.termination_grace_period_seconds);
    let beyond = given.saturating_sub(asked.unwrap_or(given)).max(0);
    let earlier = end.checked_sub(SignedDuration::from_secs(beyond));
    Some(earlier.unwrap_or(end))
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

fn says(status: &PodStatus, type_: &str, value: &str) -> bool {
    condition(status, type_).is_some_and(|condition| condition.status == value)
}

/// All containers, those first that run first.
fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let first = status.init_container_statuses.iter().flatten();
    first.chain(status.container_statuses.iter().flatten())
}

fn state(container: &ContainerStatus) -> Option<&ContainerState> {
    container.state.as_ref()
}

/// A reason and what goes with it, shortened; `None` when there is neither.
fn told(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let parts = [reason, message].into_iter().flatten();
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    // The message may have several lines.
    let mut text = parts
        .join(": ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    // It becomes a part of a sentence.
    text.truncate(text.trim_end_matches('.').len());
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

/// The error that keeps a container from starting.
fn error(status: &PodStatus) -> Option<String> {
    containers(status).find_map(|container| {
        let waiting = state(container)?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        (!STARTING.contains(&reason))
            .then(|| told(Some(reason), waiting.message.as_deref()))
            .flatten()
    })
}

fn unscheduled(status: &PodStatus) -> Option<&PodCondition> {
    condition(status, "PodScheduled").filter(|condition| condition.status == "False")
}

/// How a container failed.
fn failed(container: &ContainerStatus) -> Option<String> {
    let ended = state(container)?.terminated.as_ref()?;
    if ended.exit_code == 0 {
        return None;
    }
    let which = match container.name.as_str() {
        names::AGENT_CONTAINER => String::new(),
        other => format!("{other}: "),
    };
    let reason = ended.reason.as_deref().filter(|reason| *reason != "Error");
    let code = format!("{which}exit code {}", ended.exit_code);
    let message = told(reason, ended.message.as_deref());
    Some(message.map_or_else(|| code.clone(), |message| format!("{code}, {message}")))
}

fn start(status: &PodStatus) -> Option<String> {
    if let Some(given_up) = condition(status, names::CONDITION_GIVEN_UP) {
        return told(Some("did not start"), given_up.message.as_deref());
    }
    if status.phase.as_deref() == Some("Failed") {
        let reason = told(status.reason.as_deref(), status.message.as_deref());
        let failed = || containers(status).find_map(failed);
        return Some(reason.or_else(failed).unwrap_or_else(|| "Failed".into()));
    }
    error(status).or_else(|| {
        let unscheduled = unscheduled(status).filter(|condition| !names_gates(condition))?;
        told(
            unscheduled.reason.as_deref(),
            unscheduled.message.as_deref(),
        )
    })
}

fn end(pod: &Pod, status: &PodStatus) -> Option<String> {
    let disruption = condition(status, "DisruptionTarget");
    let disruption = disruption.filter(|condition| condition.status == "True");
    let disrupted = || {
        let disruption = disruption?;
        told(disruption.reason.as_deref(), disruption.message.as_deref())
    };
    let evicted = || told(status.reason.as_deref(), status.message.as_deref());
    let killed = || {
        let mut agents =
            containers(status).filter(|container| container.name == names::AGENT_CONTAINER);
        agents.find_map(failed)
    };
    let deleted = || {
        let asked = pod.metadata.deletion_timestamp.is_some();
        asked.then(|| "somebody deleted the Pod".to_owned())
    };
    disrupted()
        .or_else(evicted)
        .or_else(deleted)
        .or_else(killed)
        .or_else(|| node_lost(pod, status).then(|| "its node does not answer".to_owned()))
}

/// The node lifecycle controller declares the Pods of a lost node not ready, and nothing else of them; only a Pod with
/// readiness gates may look so on a node that answers.
fn node_lost(pod: &Pod, status: &PodStatus) -> bool {
    let spec = pod.spec.as_ref();
    let gates = spec.and_then(|spec| spec.readiness_gates.as_ref());
    let has_gates = gates.is_some_and(|gates| !gates.is_empty());
    let unready = says(status, "ContainersReady", "True") && says(status, "Ready", "False");
    status.phase.as_deref() == Some("Unknown") || (unready && !has_gates)
}

/// Whether a Pod is kept from the scheduler: it waits in a queue, or has just left it.
fn is_gated(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let gates = spec.and_then(|spec| spec.scheduling_gates.as_ref());
    let scheduled = pod.status.as_ref().and_then(unscheduled);
    gates.is_some_and(|gates| !gates.is_empty()) || scheduled.is_some_and(names_gates)
}

fn names_gates(scheduled: &PodCondition) -> bool {
    scheduled.reason.as_deref() == Some("SchedulingGated")
}

/// What the start of a Pod waits for.
pub(super) fn waiting(pod: &Pod, phase: PodPhase, created_at: Timestamp) -> Option<Waiting> {
    let status = pod.status.as_ref().filter(|_| phase == PodPhase::Pending)?;
    if is_gated(pod) {
        let (hold, since) = (Hold::Queued, created_at);
        return Some(Waiting { hold, since });
    }
    let scheduled = condition(status, "PodScheduled")?;
    let since = refused_after_gates(pod);
    let since = since.or_else(|| scheduled.last_transition_time.clone());
    let hold = match scheduled.status.as_str() {
        "True" if error(status).is_some() => Hold::Failing,
        "True" => Hold::NotStarted,
        _ => Hold::NoNode,
    };
    Some(Waiting {
        hold,
        since: since.map_or(created_at, |time| time.0),
    })
}

/// How a Pod ended, and why, as far as Kubernetes tells it; `None`: it has not ended.
pub(crate) fn ended(pod: &AgentPod) -> Option<&str> {
    let Trouble { start, end, .. } = &pod.trouble;
    let known = match pod.pod.phase {
        PodPhase::Pending | PodPhase::Running => return None,
        PodPhase::Succeeded { .. } => end.as_deref(),
        PodPhase::Failed { .. } => end.as_deref().or(start.as_deref()).or(Some("failed")),
    };
    Some(known.unwrap_or("succeeded"))
}

/// When the scheduler last said something new of a Pod that had been gated; `None`: it never was, or the scheduler has not
/// seen it.
///
/// The condition of such a Pod is made by the API server, at its creation, and keeps that time while it is false: whoever
/// writes to it later is on record without its status, which nobody wrote.
fn refused_after_gates(pod: &Pod) -> Option<Time> {
    let written = |fields: &Value| {
        let written = fields.pointer(r#"/f:status/f:conditions/k:{"type":"PodScheduled"}"#)?;
        Some(written.get("f:status").is_some())
    };
    let writers = pod.metadata.managed_fields.iter().flatten();
    let writers = writers.filter_map(|writer| {
        let with_status = written(&writer.fields_v1.as_ref()?.0)?;
        Some((with_status, writer.time.clone()?))
    });
    let (with_status, last) = writers.max_by_key(|(with_status, time)| (*with_status, time.0))?;
    (!with_status).then_some(last)
}

/// When the operator declared the Pod failed.
pub(super) fn given_up_at(status: &PodStatus) -> Option<Timestamp> {
    let given_up = condition(status, names::CONDITION_GIVEN_UP)?;
    given_up.last_transition_time.as_ref().map(|time| time.0)
}

/// The patch of a Pod's status that declares it failed, unless it has changed since it was read.
///
/// The kubelet takes such a Pod for one that is to be torn down, and leaves its phase as it is.
pub(crate) fn given_up(pod: &AgentPod, now: Timestamp) -> Value {
    let message = pod.trouble.start.clone().unwrap_or_else(|| {
        "its node tells of no error; its events may say what it waited for, as a volume".into()
    });
    json!({
        "metadata": { "uid": pod.pod.uid, "resourceVersion": pod.resource_version },
        "status": {
            "phase": "Failed",
            "reason": "NotStarted",
            "message": message,
            "conditions": [{
                "type": names::CONDITION_GIVEN_UP, "status": "True", "reason": "NotStarted", "message": message,
                "lastTransitionTime": Time(now),
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::Mirrored as _;

    /// An agent's Pod that was created at 100 and has this spec, status, and account of who wrote it.
    fn pod(spec: &Value, status: &Value, managed_fields: &Value) -> AgentPod {
        let owner = json!({
            "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": "web", "uid": "1", "controller": true,
        });
        let mut spec = spec.clone();
        spec["containers"] = json!([]);
        let pod = json!({
            "metadata": {
                "name": "web-agent-0", "namespace": "ci", "uid": "2", "ownerReferences": [owner],
                "creationTimestamp": at(100), "managedFields": managed_fields,
            },
            "spec": spec,
            "status": status,
        });
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        AgentPod::read(&pod).expect("one of ours").1
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// How an agent's Pod ended that has this status.
    fn how_ended(status: &Value) -> Option<String> {
        ended(&pod(&json!({}), status, &json!([]))).map(str::to_owned)
    }

    fn container(name: &str, terminated: &Value) -> Value {
        json!({
            "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": terminated },
        })
    }

    #[test]
    fn a_pod_that_ended_tells_how() {
        let agent = |phase: &str, terminated: Value| {
            let containers = [container(names::AGENT_CONTAINER, &terminated)];
            how_ended(&json!({ "phase": phase, "containerStatuses": containers }))
        };
        let succeeded = json!({ "exitCode": 0, "reason": "Completed" });
        assert_eq!(
            agent("Succeeded", succeeded.clone()).as_deref(),
            Some("succeeded")
        );
        // A sidecar that is killed fails the Pod of an agent that did not.
        assert_eq!(agent("Failed", succeeded).as_deref(), Some("succeeded"));
        let failed = json!({ "exitCode": 3, "reason": "Error", "message": "no\nsuch pool." });
        assert_eq!(
            agent("Failed", failed).as_deref(),
            Some("exit code 3, no such pool")
        );
        let memory = json!({ "exitCode": 137, "reason": "OOMKilled" });
        assert_eq!(
            agent("Failed", memory).as_deref(),
            Some("exit code 137, OOMKilled")
        );
        let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory." });
        assert_eq!(
            how_ended(&evicted).as_deref(),
            Some("Evicted: The node was low on memory")
        );
        let init = [container("prepare", &json!({ "exitCode": 1 }))];
        let init = json!({ "phase": "Failed", "initContainerStatuses": init });
        assert_eq!(how_ended(&init).as_deref(), Some("prepare: exit code 1"));
        assert_eq!(how_ended(&json!({ "phase": "Running" })), None);
    }

    #[test]
    fn a_pod_is_overdue_after_the_time_that_it_asks_for_or_if_it_runs_that_it_was_given() {
        let due = |phase: PodPhase, given: i64| {
            let pod = json!({
                "metadata": { "deletionTimestamp": at(100_000), "deletionGracePeriodSeconds": given },
                "spec": { "containers": [], "terminationGracePeriodSeconds": 3600 },
            });
            let pod: Pod = serde_json::from_value(pod).expect("a Pod");
            Trouble::read(&pod, phase).due
        };
        let (pending, running) = (PodPhase::Pending, PodPhase::Running);
        assert_eq!(due(pending, 3600), Some(at(100_000)));
        assert_eq!(due(pending, 24 * 3600), Some(at(100_000 - 23 * 3600)));
        assert_eq!(due(running, 24 * 3600), Some(at(100_000)));
        assert_eq!(due(running, 0), Some(at(100_000)));
        assert_eq!(due(pending, i64::MIN), Some(at(100_000)));
        assert_eq!(due(pending, i64::MAX), Some(at(100_000)), "before all time");
    }

    #[test]
    fn a_pod_waits_for_its_turn_and_then_for_a_node_from_that_time_on() {
        let scheduled = |status: &str, reason: &str, since: Option<i64>| {
            let since = since.map(at);
            let condition = json!({ "type": "PodScheduled", "status": status, "reason": reason, "lastTransitionTime": since });
            json!({ "phase": "Pending", "conditions": [condition] })
        };
        let gates = json!({ "schedulingGates": [{ "name": "kueue.x-k8s.io/admission" }] });
        let (none, nobody) = (json!({}), json!([]));
        let seen = |spec: &Value, status: Value, writers: &Value| {
            let pod = pod(spec, &status, writers);
            (pod.trouble.start, pod.pod.waiting)
        };
        let in_queue = (
            None,
            Some(Waiting {
                hold: Hold::Queued,
                since: at(100),
            }),
        );
        assert_eq!(
            seen(&gates, json!({ "phase": "Pending" }), &nobody),
            in_queue
        );
        let waits = || scheduled("False", "SchedulingGated", None);
        assert_eq!(seen(&gates, waits(), &nobody), in_queue);
        // Let through, and the scheduler has not looked yet.
        assert_eq!(seen(&none, waits(), &nobody), in_queue);

        let unplaced = |since| {
            let since = at(since);
            let hold = Hold::NoNode;
            let start = Some("Unschedulable".to_owned());
            (start, Some(Waiting { hold, since }))
        };
        let refused = |since| scheduled("False", "Unschedulable", since);
        assert_eq!(seen(&none, refused(Some(150)), &nobody), unplaced(150));
        assert_eq!(seen(&none, refused(None), &nobody), unplaced(100));
        let wrote = |field: &str, second: i64| {
            let condition = json!({ r#"k:{"type":"PodScheduled"}"#: { field: {} } });
            let fields = json!({ "f:status": { "f:conditions": condition } });
            json!({
                "manager": "scheduler", "operation": "Update", "subresource": "status", "fieldsType": "FieldsV1",
                "time": at(second), "fieldsV1": fields,
            })
        };
        let later = |writers: &[Value]| seen(&none, refused(Some(100)), &json!(writers));
        let reason = || wrote("f:reason", 900);
        assert_eq!(later(&[reason()]), unplaced(900), "it had been gated");
        let writers = [wrote("f:status", 110), reason()];
        assert_eq!(later(&writers), unplaced(100), "it never was");
    }
}
