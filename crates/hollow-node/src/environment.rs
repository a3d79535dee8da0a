//! The environment and arguments of a container, resolved as a kubelet does it. Pure: what it refers to comes in.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector,
};
use kube::ResourceExt as _;

use crate::quantity;

/// Values by key.
pub(crate) type Data = BTreeMap<String, String>;

/// What a container's environment is made from besides its own pod.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The Secrets that it refers to; those that do not exist are absent.
    pub(crate) secrets: BTreeMap<String, Data>,
    /// The `ConfigMap`s that it refers to, likewise.
    pub(crate) config_maps: BTreeMap<String, Data>,
    /// The node that runs it.
    pub(crate) node_name: String,
    /// The address of the pod.
    pub(crate) pod_ip: String,
    /// The address of the node.
    pub(crate) host_ip: String,
}

/// Names of the Secrets and of the `ConfigMap`s that a container's environment refers to.
pub(crate) fn references(container: &Container) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let sources = || {
        container
            .env
            .iter()
            .flatten()
            .filter_map(|variable| variable.value_from.as_ref())
    };
    let whole = || container.env_from.iter().flatten();
    let secrets = sources()
        .filter_map(|source| source.secret_key_ref.as_ref())
        .map(|key| key.name.as_str())
        .chain(
            whole()
                .filter_map(|source| source.secret_ref.as_ref())
                .map(|secret| secret.name.as_str()),
        );
    let config_maps = sources()
        .filter_map(|source| source.config_map_key_ref.as_ref())
        .map(|key| key.name.as_str())
        .chain(
            whole()
                .filter_map(|source| source.config_map_ref.as_ref())
                .map(|map| map.name.as_str()),
        );
    (secrets.collect(), config_maps.collect())
}

/// The variables of the container, and its arguments with them put in.
///
/// # Errors
/// With the message of `CreateContainerConfigError`, as a kubelet words it, when something it refers to is missing.
pub(crate) fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<(Data, Vec<String>), String> {
    let mut variables = Data::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let whole = [
            source
                .secret_ref
                .as_ref()
                .map(|from| ("secret", &sources.secrets, &from.name, from.optional)),
            source
                .config_map_ref
                .as_ref()
                .map(|from| ("configmap", &sources.config_maps, &from.name, from.optional)),
        ];
        for (kind, objects, name, optional) in whole.into_iter().flatten() {
            match objects.get(name) {
                Some(data) => variables.extend(
                    data.iter()
                        .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
                ),
                None if optional == Some(true) => {}
                None => return Err(format!("{kind} \"{name}\" not found")),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(
                variable.value.as_deref().unwrap_or_default(),
                &variables,
            )),
            Some(source) => value_from(pod, container, source, sources)?,
        };
        // An optional reference to nothing leaves the variable undefined.
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    let arguments = container
        .args
        .iter()
        .flatten()
        .map(|argument| expand(argument, &variables))
        .collect();
    Ok((variables, arguments))
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, String> {
    if let Some(key) = &source.secret_key_ref {
        return pick(
            pod,
            "secret",
            "Secret",
            &sources.secrets,
            &key.name,
            &key.key,
            key.optional,
        );
    }
    if let Some(key) = &source.config_map_key_ref {
        return pick(
            pod,
            "configmap",
            "ConfigMap",
            &sources.config_maps,
            &key.name,
            &key.key,
            key.optional,
        );
    }
    if let Some(field) = &source.field_ref {
        return field_value(pod, field, sources).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, container, resource).map(Some);
    }
    Err("unsupported source of an environment variable".into())
}

/// One key of a Secret or `ConfigMap`.
fn pick(
    pod: &Pod,
    kind: &str,
    title: &str,
    objects: &BTreeMap<String, Data>,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    let object = objects.get(name);
    match object.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(value.clone())),
        None if optional == Some(true) => Ok(None),
        None if object.is_none() => Err(format!("{kind} \"{name}\" not found")),
        None => {
            let namespace = pod.namespace().unwrap_or_default();
            Err(format!(
                "couldn't find key {key} in {title} {namespace}/{name}"
            ))
        }
    }
}

fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    sources: &Sources,
) -> Result<String, String> {
    let path = field.field_path.as_str();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "spec.nodeName" => sources.node_name.clone(),
        "spec.serviceAccountName" => pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        "status.podIP" | "status.podIPs" => sources.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => sources.host_ip.clone(),
        _ => {
            let label = subscript("metadata.labels['").map(|name| pod.labels().get(name));
            let annotation =
                || subscript("metadata.annotations['").map(|name| pod.annotations().get(name));
            let value = label
                .or_else(annotation)
                .ok_or_else(|| format!("unsupported fieldPath: {path}"))?;
            value.cloned().unwrap_or_default()
        }
    })
}

fn resource_value(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldSelector,
) -> Result<String, String> {
    let containers = pod.spec.iter().flat_map(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    });
    let named = |name: &String| containers.clone().find(|container| container.name == *name);
    let container = field
        .container_name
        .as_ref()
        .and_then(named)
        .unwrap_or(container);
    let resources = container.resources.as_ref();
    let (list, resource) = match field.resource.split_once('.') {
        Some(("limits", resource)) => (resources.and_then(|all| all.limits.as_ref()), resource),
        Some(("requests", resource)) => (resources.and_then(|all| all.requests.as_ref()), resource),
        _ => return Err(format!("unsupported resource: {}", field.resource)),
    };
    let quantity = list
        .and_then(|list| list.get(resource))
        .map_or("0", |quantity| quantity.0.as_str());
    // The API server writes a divisor of "0" where none is given, which means 1.
    let divisor = field
        .divisor
        .as_ref()
        .map_or("1", |divisor| divisor.0.as_str());
    let divisor = if divisor == "0" { "1" } else { divisor };
    quantity::divided(quantity, divisor)
        .ok_or_else(|| format!("cannot divide {quantity} by {divisor}"))
}

/// Puts variables in for `$(NAME)`. `$$` stands for `$`, and a name that is not defined stays as it is.
fn expand(text: &str, variables: &Data) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = after
            .strip_prefix('(')
            .and_then(|after| after.split_once(')'))
        {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn resolved(env: &serde_json::Value, sources: &Sources) -> Result<(Data, Vec<String>), String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "pool-agent-0", "namespace": "build", "labels": { "capability": "java" } },
            "spec": { "containers": [{
                "name": "agent", "env": env, "args": ["--once", "$(NAME)", "$(NONE)"],
                "envFrom": [{ "prefix": "ALL_", "configMapRef": { "name": "whole", "optional": true } }],
                "resources": { "limits": { "memory": "4Gi" } },
            }]},
        }))
        .unwrap();
        resolve(&pod, &pod.spec.as_ref().unwrap().containers[0], sources)
    }

    fn data(pairs: &[(&str, &str)]) -> Data {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn every_source_is_resolved() {
        let sources = Sources {
            secrets: [("pat".into(), data(&[("token", "secret")]))].into(),
            config_maps: [
                ("whole".into(), data(&[("A", "1")])),
                ("map".into(), data(&[("key", "mapped")])),
            ]
            .into(),
            node_name: "node".into(),
            ..Sources::default()
        };
        let env = json!([
            { "name": "AZP_TOKEN", "valueFrom": { "secretKeyRef": { "name": "pat", "key": "token" } } },
            { "name": "MAPPED", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "key" } } },
            { "name": "ABSENT", "valueFrom": { "secretKeyRef": { "name": "none", "key": "k", "optional": true } } },
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "LABEL", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['capability']" } } },
            { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Gi" } } },
            { "name": "PATH", "value": "/$(NAME)/$(LATER)/$$(NAME)/$HOME$" },
            { "name": "LATER", "value": "too late" },
        ]);
        let (variables, arguments) = resolved(&env, &sources).unwrap();
        let expected = data(&[
            ("ALL_A", "1"),
            ("AZP_TOKEN", "secret"),
            ("LABEL", "java"),
            ("LATER", "too late"),
            ("MAPPED", "mapped"),
            ("MEMORY", "4"),
            ("NAME", "pool-agent-0"),
            ("NODE", "node"),
            ("PATH", "/pool-agent-0/$(LATER)/$(NAME)/$HOME$"),
        ]);
        assert_eq!(variables, expected);
        assert_eq!(arguments, ["--once", "pool-agent-0", "$(NONE)"]);
    }

    #[test]
    fn what_is_missing_is_named_as_the_kubelet_names_it() {
        let sources = Sources {
            secrets: [("pat".into(), Data::new())].into(),
            ..Sources::default()
        };
        let token = |name| json!([{ "name": "T", "valueFrom": { "secretKeyRef": { "name": name, "key": "token" } } }]);
        assert_eq!(
            resolved(&token("none"), &sources).unwrap_err(),
            "secret \"none\" not found"
        );
        assert_eq!(
            resolved(&token("pat"), &sources).unwrap_err(),
            "couldn't find key token in Secret build/pat"
        );
    }
}
