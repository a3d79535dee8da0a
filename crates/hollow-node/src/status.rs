//! The status of a pod, as a kubelet writes it. Pure.
//!
//! Each function gives the part of the status that changes; the API server merges it, conditions by their type.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

/// The container that runs the agent.
pub(crate) const AGENT: &str = "agent";

/// The address of the node, and the address of one pod on it.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) host: String,
    pub(crate) pod: String,
}

/// No node takes the pod.
pub(crate) fn unschedulable(message: &str) -> Value {
    json!({ "conditions": [condition("PodScheduled", false, "Unschedulable", message)] })
}

/// The node has the pod, and its containers cannot start yet.
pub(crate) fn waiting(
    pod: &Pod,
    host: &str,
    started: Timestamp,
    reason: &str,
    message: &str,
) -> Value {
    let mut waiting = json!({ "reason": reason });
    if !message.is_empty() {
        waiting["message"] = message.into();
    }
    let state = |_: &Container| json!({ "waiting": waiting });
    let not_ready = "containers are not ready";
    json!({
        "phase": "Pending",
        "hostIP": host,
        "hostIPs": [{ "ip": host }],
        "startTime": Time(started),
        "conditions": [
            condition("Ready", false, "ContainersNotReady", not_ready),
            condition("ContainersReady", false, "ContainersNotReady", not_ready),
        ],
        "containerStatuses": containers(pod, false, state),
    })
}

/// All containers run; init containers have run, and sidecars run.
pub(crate) fn running(pod: &Pod, addresses: &Addresses, started: Timestamp) -> Value {
    json!({
        "phase": "Running",
        "hostIP": addresses.host,
        "hostIPs": [{ "ip": addresses.host }],
        "podIP": addresses.pod,
        "podIPs": [{ "ip": addresses.pod }],
        "startTime": Time(started),
        "conditions": [
            condition("PodReadyToStartContainers", true, "", ""),
            condition("Initialized", true, "", ""),
            condition("ContainersReady", true, "", ""),
            condition("Ready", true, "", ""),
        ],
        "initContainerStatuses": init_containers(pod, started, true),
        "containerStatuses": containers(pod, true, |_| json!({ "running": { "startedAt": Time(started) } })),
    })
}

/// The node of the pod is lost: nobody knows more than that.
pub(crate) fn not_ready() -> Value {
    json!({ "conditions": [condition("Ready", false, "", "")] })
}

/// The agent has ended, and other containers of the pod run on.
pub(crate) fn agent_ended(pod: &Pod, started: Timestamp, exit_code: i32) -> Value {
    let state = |container: &Container| {
        if container.name == AGENT {
            terminated(started, exit_code, reason_of(exit_code))
        } else {
            json!({ "running": { "startedAt": Time(started) } })
        }
    };
    let message = "containers with unready status: [agent]";
    json!({
        "conditions": [
            condition("Ready", false, "ContainersNotReady", message),
            condition("ContainersReady", false, "ContainersNotReady", message),
        ],
        "containerStatuses": containers(pod, true, state),
    })
}

/// How the containers of a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The exit code of the agent.
    pub(crate) agent: i32,
    /// The exit code of every other container.
    pub(crate) others: i32,
    /// Replaces the reason that follows from the exit code.
    pub(crate) reason: Option<&'static str>,
}

/// All containers have ended, and that is final.
pub(crate) fn ended(pod: &Pod, started: Timestamp, ends: Ends) -> Value {
    let code = |container: &Container| {
        if container.name == AGENT {
            ends.agent
        } else {
            ends.others
        }
    };
    let codes: Vec<i32> = spec(pod)
        .into_iter()
        .flat_map(|spec| &spec.containers)
        .map(code)
        .collect();
    let (phase, reason) = if codes.iter().all(|code| *code == 0) {
        ("Succeeded", "PodCompleted")
    } else {
        ("Failed", "PodFailed")
    };
    let state = |container: &Container| {
        let code = code(container);
        terminated(started, code, ends.reason.unwrap_or(reason_of(code)))
    };
    json!({
        "phase": phase,
        "conditions": [
            condition("PodReadyToStartContainers", false, "", ""),
            condition("Ready", false, reason, ""),
            condition("ContainersReady", false, reason, ""),
        ],
        "initContainerStatuses": init_containers(pod, started, false),
        "containerStatuses": containers(pod, false, state),
    })
}

/// The kubelet has ended the pod, and says nothing of its containers.
pub(crate) fn evicted(message: &str) -> Value {
    json!({
        "phase": "Failed",
        "reason": "Evicted",
        "message": message,
        "conditions": [
            condition("DisruptionTarget", true, "TerminationByKubelet", message),
            condition("Ready", false, "PodFailed", ""),
            condition("ContainersReady", false, "PodFailed", ""),
        ],
    })
}

fn reason_of(exit_code: i32) -> &'static str {
    if exit_code == 0 { "Completed" } else { "Error" }
}

fn terminated(started: Timestamp, exit_code: i32, reason: &str) -> Value {
    json!({ "terminated": {
        "exitCode": exit_code, "reason": reason, "startedAt": Time(started), "finishedAt": Time(Timestamp::now()),
    }})
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Value {
    json!({
        "type": kind,
        "status": if status { "True" } else { "False" },
        "lastTransitionTime": Time(Timestamp::now()),
        // Null removes what an earlier patch has left there.
        "reason": Some(reason).filter(|reason| !reason.is_empty()),
        "message": Some(message).filter(|message| !message.is_empty()),
    })
}

fn containers(pod: &Pod, started: bool, state: impl Fn(&Container) -> Value) -> Vec<Value> {
    let containers = spec(pod).into_iter().flat_map(|spec| &spec.containers);
    containers
        .map(|container| container_status(pod, container, started, &state(container)))
        .collect()
}

fn init_containers(pod: &Pod, started: Timestamp, pod_runs: bool) -> Vec<Value> {
    let containers = spec(pod)
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let status = |container: &Container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let state = if sidecar && pod_runs {
            json!({ "running": { "startedAt": Time(started) } })
        } else {
            terminated(started, 0, "Completed")
        };
        let mut status = container_status(pod, container, sidecar && pod_runs, &state);
        status["ready"] = true.into();
        status
    };
    containers.map(status).collect()
}

fn container_status(pod: &Pod, container: &Container, started: bool, state: &Value) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    let runs = state.get("running").is_some();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let has_been = state.get("waiting").is_none();
    json!({
        "name": container.name,
        "image": image,
        "imageID": if has_been { image } else { "" },
        "containerID": if has_been { Some(format!("hollow://{uid}/{}", container.name)) } else { None },
        "ready": runs,
        "started": started && runs,
        "restartCount": 0,
        "state": state,
    })
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}
