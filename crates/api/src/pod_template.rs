//! `spec.podTemplate`: what users add to the Pods of their agents.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{RESERVED_ENV, RunnerPoolSpec, names, validation::unrecognizable};

/// Labels that tell the operator, and users' scripts, what a Pod is.
const RESERVED_LABELS: [&str; 7] = [
    names::LABEL_APP,
    names::LABEL_RUNNER_POOL,
    names::LABEL_MANAGED_BY,
    names::LABEL_MIN_AGENT,
    names::LABEL_CAPABILITY,
    names::LABEL_CAPABILITY_AWARE,
    names::LABEL_JOB_REQUEST_ID,
];

/// Merged strategically, as `kubectl patch` does, over the Pod that is made for each agent: lists of containers, variables,
/// volumes and the like by their keys, other lists as a whole. It adds and changes; it cannot take away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels and annotations of the Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodTemplateMetadata>,
    /// What a Pod has under `spec`. The agent runs in the container `agent`; a sidecar that is to end with it is an init
    /// container with `restartPolicy: Always`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub spec: Map<String, Value>,
}

/// Labels and annotations of Pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PodTemplateMetadata {
    /// Labels beside those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations beside those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The schema of a Pod has some ten thousand lines; the API server checks Pods when they are made, and `validate` before.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// A field, by its path from `podTemplate`, and what is wrong with it.
type Fault = (String, String);

impl PodTemplate {
    /// The `spec` as a Pod's, without fields that a Pod does not have: `validate` refuses these.
    ///
    /// # Errors
    /// The first field whose value is of another type than a Pod's, by its path, and what is wrong with it.
    pub fn pod_spec(&self) -> Result<PodSpec, (String, String)> {
        serde_path_to_error::deserialize(&self.spec).map_err(|error| {
            let path = error.path().to_string();
            let separator = if path.starts_with(['[', '.']) {
                ""
            } else {
                "."
            };
            (format!("spec{separator}{path}"), error.inner().to_string())
        })
    }

    /// Whether its Pods run on Windows; `None`: it does not say.
    pub fn is_windows(&self) -> Option<bool> {
        let os = self.spec.get("os").and_then(|os| os.get("name"));
        let selector = self.spec.get("nodeSelector");
        let selected = selector.and_then(|labels| labels.get("kubernetes.io/os"));
        os.or(selected).map(|name| name == "windows")
    }
}

/// What stands in the template and not in the Pod that was read from it.
fn unknown(template: &PodTemplate, pod: &PodSpec) -> Vec<Fault> {
    let given = Value::Object(template.spec.clone());
    let read = serde_json::to_value(pod).expect("a Pod is plain data and always serialises");
    let mut faults = Vec::new();
    lost(&given, &read, "spec", &mut faults);
    faults
}

/// Values that a Pod did not take over: fields that it does not have, and nulls.
fn lost(given: &Value, read: &Value, path: &str, faults: &mut Vec<Fault>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (name, value) in given {
                let path = format!("{path}.{name}");
                match read.get(name) {
                    Some(read) => lost(value, read, &path, faults),
                    None if value.is_null() => faults.push((
                        path,
                        "is null; a template adds and changes, and cannot take away".into(),
                    )),
                    None if is_empty(value) => {}
                    None => faults.push((
                        path,
                        "is no field of a Pod; correct its name or its place".into(),
                    )),
                }
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            for (i, (given, read)) in given.iter().zip(read).enumerate() {
                lost(given, read, &format!("{path}[{i}]"), faults);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// What is wrong with the template of a spec: what no Pod has, and what would break that which the operator depends on.
pub(crate) fn check(template: &PodTemplate, spec: &RunnerPoolSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(metadata) = &template.metadata {
        let labels = metadata.labels.keys();
        for label in labels.filter(|label| RESERVED_LABELS.contains(&label.as_str())) {
            faults.push(ours(format!("metadata.labels[{label:?}]")));
        }
        let guards = [
            names::ANNOTATION_SAFE_TO_EVICT,
            names::ANNOTATION_DO_NOT_DISRUPT,
        ];
        let annotations = metadata.annotations.keys();
        for annotation in annotations.filter(|annotation| {
            annotation.starts_with(names::FINALIZER_PREFIX) || guards.contains(&annotation.as_str())
        }) {
            faults.push(ours(format!("metadata.annotations[{annotation:?}]")));
        }
    }
    match template.pod_spec() {
        Ok(pod) => {
            let unknown = unknown(template, &pod);
            if unknown.is_empty() {
                check_pod(&pod, spec, &mut faults);
            }
            faults.extend(unknown);
        }
        Err(fault) => faults.push(fault),
    }
    faults
}

fn ours(field: String) -> Fault {
    (field, "is set by the operator; leave it out".into())
}

fn check_pod(pod: &PodSpec, spec: &RunnerPoolSpec, faults: &mut Vec<Fault>) {
    if (pod.restart_policy.as_deref()).is_some_and(|policy| policy != "Never") {
        let remedy = "must be Never, as an agent that ended is replaced; leave it out";
        faults.push(("spec.restartPolicy".into(), remedy.into()));
    }
    for (i, volume) in pod.volumes.iter().flatten().enumerate() {
        let name = &volume.name;
        let claimed = spec.pvcs.iter().any(|claim| claim.name == *name);
        if claimed || name.starts_with(names::CERTIFICATE_VOLUME_PREFIX) {
            let remedy = format!("{name} is a volume of the operator's; choose another name");
            faults.push((format!("spec.volumes[{i}].name"), remedy));
        }
    }
    for (i, container) in pod.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{i}]");
        if [names::AGENT_CONTAINER, names::INIT_CONTAINER].contains(&container.name.as_str()) {
            let remedy = format!("{} is the operator's; choose another name", container.name);
            faults.push((format!("{path}.name"), remedy));
        }
        check_image(container, &path, faults);
    }
    for (i, container) in pod.containers.iter().enumerate() {
        let path = format!("spec.containers[{i}]");
        if container.name == names::AGENT_CONTAINER {
            check_agent(container, &path, spec, faults);
        } else {
            check_image(container, &path, faults);
        }
    }
}

/// A container of the user's own has nothing to be merged with.
fn check_image(container: &Container, path: &str, faults: &mut Vec<Fault>) {
    if container.image.as_deref().is_none_or(str::is_empty) {
        let remedy = format!("must name the image of the container {:?}", container.name);
        faults.push((format!("{path}.image"), remedy));
    }
}

fn check_agent(agent: &Container, path: &str, spec: &RunnerPoolSpec, faults: &mut Vec<Fault>) {
    let fixed = [
        (
            "image",
            agent.image.is_some(),
            "is given by spec.image and spec.capabilityImages",
        ),
        (
            "imagePullPolicy",
            agent.image_pull_policy.is_some(),
            "is given by spec.imagePullPolicy",
        ),
        (
            "args",
            agent.args.is_some(),
            "say whether the agent runs one job, which spec.ttlIdleSeconds decides",
        ),
        (
            "lifecycle",
            agent.lifecycle.is_some(),
            "holds the hook that lets a running job end",
        ),
        (
            "restartPolicy",
            agent.restart_policy.is_some(),
            "must stay absent, as an agent that ended is replaced",
        ),
    ];
    for (field, given, why) in fixed {
        if given {
            faults.push((format!("{path}.{field}"), format!("{why}; leave it out")));
        }
    }
    for (i, env) in agent.env.iter().flatten().enumerate() {
        let name = &env.name;
        if let Some(remedy) = unrecognizable(name, env.value.as_deref()) {
            faults.push((format!("{path}.env[{i}].value"), remedy));
        }
        let remedy = if RESERVED_ENV.contains(&name.as_str()) {
            format!("{name} is set by the operator; choose another name")
        } else if spec.extra_env.iter().any(|extra| extra.name == *name) {
            format!("{name} stands in spec.extraEnv as well; give it once")
        } else {
            continue;
        };
        faults.push((format!("{path}.env[{i}].name"), remedy));
    }
    for (i, mount) in agent.volume_mounts.iter().flatten().enumerate() {
        let claimed = |mount_path: &str| {
            let mut claims = spec.pvcs.iter();
            claims.any(|claim| claim.mount_path == mount_path)
        };
        if claimed(&mount.mount_path) {
            let remedy = format!("{} is a mountPath of spec.pvcs", mount.mount_path);
            faults.push((format!("{path}.volumeMounts[{i}].mountPath"), remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(template: &str, spec: &str) -> Vec<String> {
        let spec = format!(
            "azDoUrl: https://dev.azure.com/acme\npool: p\npatSecretName: pat\nimage: agent:1\n{spec}"
        );
        let spec = serde_saphyr::from_str(&spec).expect("a spec");
        let template = serde_saphyr::from_str(template).expect("a template");
        let faults = check(&template, &spec);
        faults
            .into_iter()
            .map(|(field, message)| format!("{field}: {message}"))
            .collect()
    }

    fn fields(template: &str, spec: &str) -> Vec<String> {
        let faults = faults(template, spec).into_iter();
        faults
            .map(|fault| fault.split(": ").next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn what_pods_have_is_taken() {
        let template = "metadata: {labels: {team: web, kueue.x-k8s.io/queue-name: ci}}\nspec:\n  nodeSelector: {disk: ssd}\n  \
             tolerations: [{key: ci, operator: Exists}]\n  serviceAccountName: builder\n  runtimeClassName: gvisor\n  \
             volumes: [{name: scratch, emptyDir: {}}]\n  initContainers: [{name: buildkit, image: b, restartPolicy: Always}]\n  \
             containers: [{name: agent, resources: {limits: {cpu: 8}}, env: [{name: A, value: b}], \
             volumeMounts: [{name: scratch, mountPath: /scratch}]}]\n";
        assert_eq!(faults(template, ""), Vec::<String>::new());
    }

    #[test]
    fn what_no_pod_has_is_refused_with_its_path() {
        let template = "spec: {nodeselector: {a: b}, containers: [{name: agent, resources: {limit: {cpu: 1}}, tty: null}]}";
        assert_eq!(
            fields(template, ""),
            [
                "spec.containers[0].resources.limit",
                "spec.containers[0].tty",
                "spec.nodeselector"
            ]
        );
        let found = faults("spec: {containers: [{name: agent, tty: 7}]}", "");
        assert!(
            found.len() == 1 && found[0].starts_with("spec.containers[0].tty: invalid type"),
            "{found:?}"
        );
    }

    #[test]
    fn what_the_operator_depends_on_is_refused_with_its_path() {
        let template = "metadata: {labels: {app: x}, annotations: {devops.opentools.mf/shape: x}}\nspec:\n  \
             restartPolicy: Always\n  volumes: [{name: work, emptyDir: {}}, {name: certificate-x, emptyDir: {}}]\n  \
             initContainers: [{name: agent, image: x}, {name: own}]\n  containers:\n  - {name: own}\n  \
             - {name: agent, image: x, imagePullPolicy: Always, args: [a], lifecycle: {}, \
             env: [{name: AZP_TOKEN, value: x}, {name: A, value: x}, {name: VSO_AGENT_IGNORE, value: azp_capability}], volumeMounts: [{name: v, mountPath: /work}]}\n";
        let spec = "extraEnv: [{name: A, value: b}]\npvcs: [{name: work, mountPath: /work, storage: 1Gi}]\n";
        assert_eq!(
            fields(template, spec),
            [
                "metadata.labels[\"app\"]",
                "metadata.annotations[\"devops.opentools.mf/shape\"]",
                "spec.restartPolicy",
                "spec.volumes[0].name",
                "spec.volumes[1].name",
                "spec.initContainers[0].name",
                "spec.initContainers[1].image",
                "spec.containers[0].image",
                "spec.containers[1].image",
                "spec.containers[1].imagePullPolicy",
                "spec.containers[1].args",
                "spec.containers[1].lifecycle",
                "spec.containers[1].env[0].name",
                "spec.containers[1].env[1].name",
                "spec.containers[1].env[2].value",
                "spec.containers[1].volumeMounts[0].mountPath",
            ]
        );
    }

    #[test]
    fn windows_is_told_by_the_os_or_by_the_node() {
        let is_windows = |template: &str| {
            let template: PodTemplate = serde_saphyr::from_str(template).expect("a template");
            template.is_windows()
        };
        assert_eq!(is_windows("spec: {os: {name: windows}}"), Some(true));
        let selector = |os: &str| format!("spec: {{nodeSelector: {{kubernetes.io/os: {os}}}}}");
        assert_eq!(is_windows(&selector("windows")), Some(true));
        assert_eq!(is_windows(&selector("linux")), Some(false));
        assert_eq!(is_windows("spec: {nodeSelector: {disk: ssd}}"), None);
    }
}
