//! The chart on a real API server: what it renders is taken, meets the Pod Security Standard `restricted`, and its releases
//! treat the CustomResourceDefinition well.

use std::{fs, path::Path};

use api::RunnerPool;
use control_plane::{ControlPlane, Options, apply, helm};
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};

use crate::bed::{CHART, chart, control_plane, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_takes_all_of_it_and_the_pod_is_restricted() {
    let control_plane = control_plane().await;
    let client = control_plane.client().unwrap();
    let namespace = control_plane.namespace("chart").await.unwrap();
    let enforced =
        json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    Api::<Namespace>::all(client.clone())
        .patch(&namespace, &PatchParams::default(), &Patch::Merge(enforced))
        .await
        .unwrap();
    let everything = json!({
        "imagePullSecrets": [{ "name": "my-registry" }],
        "watchNamespaces": [namespace],
        "customCA": { "secret": "my-ca" },
        "proxy": { "https": "http://proxy.example.com:3128", "noProxy": "10.0.0.0/8" },
        "serviceAccount": { "annotations": { "example.com/role": "my-role" } },
        "networkPolicy": { "enabled": true, "extraEgress": [{ "ports": [{ "port": 3128 }] }] },
        "podAnnotations": { "example.com/note": "text" },
        "podLabels": { "example.com/team": "platform" },
        "podSecurityContext": { "fsGroup": 2000 },
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
        "priorityClassName": "system-cluster-critical",
        "extraVolumes": [{ "name": "scratch", "emptyDir": {} }],
        "extraVolumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }],
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "key": "dedicated", "operator": "Exists", "effect": "NoSchedule" }],
        "affinity": { "podAntiAffinity": {} },
        "extraEnv": [{ "name": "RUST_BACKTRACE", "value": "1" }],
        "hostAliases": [{ "ip": "10.1.2.3", "hostnames": ["azure-devops.example.com"] }],
    });
    for values in [json!({}), everything] {
        let objects = chart("azdo-runner-operator", &namespace, values).await;
        for object in &objects {
            // The shared control plane has the definition already, and other tests use it.
            if kind(object) != "CustomResourceDefinition" {
                apply(&client, object, true).await.unwrap();
            }
        }
        control_plane.grant(&objects).await.unwrap();
        let pod = pod(&objects);
        create_on_trial(&client, &namespace, &pod).await.unwrap();

        // And the namespace does refuse what is not restricted.
        let mut lax = pod;
        lax["spec"]["securityContext"]["seccompProfile"] = Value::Null;
        let refusal = create_on_trial(&client, &namespace, &lax).await;
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains("violates PodSecurity"), "{refusal}");
    }
}

/// The Pod that the Deployment among these objects makes.
fn pod(objects: &[DynamicObject]) -> Value {
    let mut deployments = objects.iter().filter(|object| kind(object) == "Deployment");
    let mut pod = deployments.next().unwrap().data["spec"]["template"].clone();
    pod["metadata"]["name"] = json!("operator");
    pod
}

async fn create_on_trial(client: &Client, namespace: &str, pod: &Value) -> kube::Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let on_trial = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = serde_json::from_value(pod.clone()).unwrap();
    pods.create(&on_trial, &pod).await
}

fn kind(object: &DynamicObject) -> &str {
    &object.types.as_ref().unwrap().kind
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_brings_the_new_schema_and_an_uninstall_keeps_the_data_unless_asked() {
    // A control plane of its own: there is one definition for all namespaces.
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = control_plane.client().unwrap();
    let release = Release {
        kubeconfig: control_plane.kubeconfig().display().to_string(),
    };
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = api::crd().name_any();
    let schema = async || {
        let definition = definitions.get(&name).await.unwrap();
        serde_json::to_value(definition.spec).unwrap()
    };

    let former = former_chart(&control_plane);
    let notes = release.install(&former, json!({})).await;
    let first_command =
        "kubectl rollout status --namespace azdo-operator deployment/azdo-runner-operator";
    assert!(notes.contains(first_command), "{notes}");
    await_condition(definitions.clone(), &name, conditions::is_crd_established())
        .await
        .unwrap();
    let former_schema = schema().await;
    assert!(
        !former_schema.to_string().contains("ttlIdleSeconds"),
        "{former_schema}"
    );

    release.upgrade(CHART, json!({})).await;
    assert!(schema().await.to_string().contains("ttlIdleSeconds"));

    let pools: Api<RunnerPool> = Api::default_namespaced(client.clone());
    let pool = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "spec": { "azDoUrl": "https://dev.azure.com/acme", "pool": "p", "patSecretName": "s", "image": "i" },
    }));
    pools
        .create(&PostParams::default(), &pool.unwrap())
        .await
        .unwrap();
    release.uninstall().await;
    assert_eq!(pools.get("web").await.unwrap().name_any(), "web");

    // A later release of that name takes the definition over again, and deletes it when told to.
    release
        .install(CHART, json!({ "crds": { "keep": false } }))
        .await;
    assert_eq!(pools.get("web").await.unwrap().name_any(), "web");
    let definition = definitions.get(&name).await.unwrap();
    release.uninstall().await;
    let uid = definition.uid().unwrap();
    let gone = conditions::is_deleted(&uid);
    within(
        "the definition is gone",
        await_condition(definitions, &name, gone),
    )
    .await
    .unwrap();
    control_plane.stop().unwrap();
}

/// A release as a user has it.
struct Release {
    kubeconfig: String,
}

impl Release {
    async fn install(&self, chart: &str, values: Value) -> String {
        self.helm(&["install", "--create-namespace"], Some((chart, values)))
            .await
    }

    async fn upgrade(&self, chart: &str, values: Value) -> String {
        self.helm(&["upgrade"], Some((chart, values))).await
    }

    async fn uninstall(&self) -> String {
        self.helm(&["uninstall"], None).await
    }

    async fn helm(&self, command: &[&str], chart: Option<(&str, Value)>) -> String {
        let (chart, values) = chart.unzip();
        let mut arguments: Vec<String> = command.iter().map(ToString::to_string).collect();
        arguments.push("azdo-runner-operator".to_owned());
        arguments.extend(chart.map(str::to_owned));
        arguments.push("--namespace=azdo-operator".to_owned());
        arguments.push(format!("--kubeconfig={}", self.kubeconfig));
        let work = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            helm::run(&arguments, values.as_ref())
        };
        tokio::task::spawn_blocking(work).await.unwrap().unwrap()
    }
}

/// The chart as an older version may have been: its schema lacks a field. In the folder of the control plane, and gone with
/// it.
fn former_chart(control_plane: &ControlPlane) -> String {
    let folder = control_plane.folder().join("former-chart");
    copy(Path::new(CHART), &folder);
    let file = folder.join("files/crd.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let mut definition: Value = serde_saphyr::from_str(&text).unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let fields = definition.pointer_mut(spec).unwrap().as_object_mut();
    fields.unwrap().remove("ttlIdleSeconds").unwrap();
    fs::write(&file, definition.to_string()).unwrap();
    folder.display().to_string()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
