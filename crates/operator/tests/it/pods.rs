//! What each agent becomes.

use std::{collections::BTreeSet, time::Duration};

use api::RunnerPool;
use azure_devops_simulator::world::AgentView;
use k8s_openapi::api::{
    core::v1::{Container, Pod, ServiceAccount, VolumeMount},
    node::v1::RuntimeClass,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, agent_names, jobs, long_job, names},
    stuck::{age, notes},
};

/// The one Pod of a `RunnerPool` with these fields, for a queued job.
async fn pod(bed: &Bed, fields: Value) -> Pod {
    bed.create("web", fields).await;
    bed.ready("web").await;
    bed.queue(long_job()).await;
    bed.pods_when("an agent", |pods| pods.len() == 1)
        .await
        .remove(0)
}

fn container(pod: &Pod) -> &Container {
    &pod.spec.as_ref().unwrap().containers[0]
}

fn env<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    container(pod)
        .env
        .iter()
        .flatten()
        .find(|env| env.name == name)?
        .value
        .as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_pod_is_as_the_contract_says() {
    let bed = Bed::start().await;
    let pod = pod(&bed, json!({})).await;
    assert_eq!(pod.name_any(), "web-agent-0");
    let labels = pod.labels();
    for (label, value) in [
        ("app", "azdo-runner"),
        ("runner-pool", "web"),
        ("managed-by", "azdo-runner-operator"),
        ("min-agent", "false"),
        ("capability", "base"),
        ("capability-aware", "false"),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    let owner = &pod.owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str(), owner.controller),
        ("RunnerPool", "web", Some(true))
    );
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.enable_service_links, Some(false));
    assert_eq!(spec.termination_grace_period_seconds, Some(3600));
    assert!(spec.init_containers.iter().flatten().next().is_none());
    let agent = container(&pod);
    assert_eq!(agent.name, "agent");
    assert_eq!(agent.args, Some(vec!["--once".to_owned()]));
    assert_eq!(agent.image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(agent.security_context, None, "the image's own user");
    let resources = serde_json::to_value(agent.resources.as_ref().unwrap()).unwrap();
    assert_eq!(
        resources["requests"],
        json!({ "cpu": "100m", "memory": "256Mi" })
    );
    assert_eq!(resources["limits"], json!({ "cpu": "2", "memory": "4Gi" }));
    assert_eq!(env(&pod, "AZP_URL"), Some(bed.organization_url().as_str()));
    assert_eq!(env(&pod, "AZP_POOL"), Some("Linux Pool"));
    assert_eq!(env(&pod, "AZP_AGENT_NAME"), Some("web-agent-0"));
    assert_eq!(env(&pod, "AZP_CAPABILITY"), Some("base"));
    assert!(
        env(&pod, "AZDO_RUNNER_OWNER")
            .unwrap()
            .ends_with(&format!("/{}/web", bed.namespace))
    );
    let token = agent
        .env
        .iter()
        .flatten()
        .find(|env| env.name == "AZP_TOKEN")
        .unwrap();
    let reference = token
        .value_from
        .as_ref()
        .unwrap()
        .secret_key_ref
        .as_ref()
        .unwrap();
    assert_eq!(
        (reference.name.as_str(), reference.key.as_str()),
        ("pat-token", "token")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_come_from_values_and_from_secrets() {
    let bed = Bed::start().await;
    bed.secret("api-secrets", &[("production-key", "s3cret")])
        .await;
    let pod = pod(
        &bed,
        json!({ "extraEnv": [
            { "name": "BUILD_ENVIRONMENT", "value": "production" },
            { "name": "API_KEY", "valueFrom": { "secretKeyRef": { "name": "api-secrets", "key": "production-key" } } },
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "PRIVATE", "value": "to the agent" },
            { "name": "VSO_AGENT_IGNORE", "value": "other, private" },
        ] }),
    )
    .await;
    assert_eq!(env(&pod, "BUILD_ENVIRONMENT"), Some("production"));
    // The agent got them, so it reports them.
    let agents = bed
        .agents_when("the agent is online", |agents| {
            agents.iter().any(|agent| agent.online)
        })
        .await;
    let agent = agents.iter().find(|agent| agent.online).unwrap();
    assert_eq!(agent.system_capabilities["BUILD_ENVIRONMENT"], "production");
    assert_eq!(agent.system_capabilities["API_KEY"], "s3cret");
    assert!(!agent.system_capabilities.contains_key("PRIVATE"));
    let learned = |agent: &&AgentView| {
        agent.name == "web-placeholder-base"
            && agent
                .system_capabilities
                .contains_key("Agent.OSArchitecture")
    };
    let agents = bed
        .agents_when("the placeholder has learned", |agents| {
            agents.iter().any(|agent| learned(&agent))
        })
        .await;
    let placeholder = agents.iter().find(learned).unwrap();
    let given = &placeholder.user_capabilities;
    assert_eq!(given["BUILD_ENVIRONMENT"], "production");
    assert_eq!(given["API_KEY"], "", "a secret value is nobody's business");
    assert!(!given.contains_key("PRIVATE"), "agents do not report it");
    let mut all = placeholder
        .system_capabilities
        .values()
        .chain(given.values());
    assert!(all.all(|value| value != "s3cret"), "{placeholder:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_mounted_without_their_keys() {
    let bed = Bed::start().await;
    bed.secret(
        "corporate-ca",
        &[("tls.crt", "certificate"), ("tls.key", "key")],
    )
    .await;
    let pod = pod(
        &bed,
        json!({ "certTrustStore": [{ "secretName": "corporate-ca" }] }),
    )
    .await;
    let mounts = container(&pod).volume_mounts.clone().unwrap();
    let paths: Vec<_> = mounts
        .iter()
        .map(
            |VolumeMount {
                 mount_path,
                 sub_path,
                 read_only,
                 ..
             }| (mount_path.as_str(), sub_path.as_deref(), *read_only),
        )
        .collect();
    assert_eq!(
        paths,
        [
            ("/etc/ssl/certs/corporate-ca", None, Some(true)),
            (
                "/etc/ssl/certs/corporate-ca.crt",
                Some("tls.crt"),
                Some(true)
            ),
        ]
    );
    let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    let sources = volumes[0]
        .projected
        .as_ref()
        .unwrap()
        .sources
        .as_ref()
        .unwrap();
    let items: Vec<_> = sources
        .iter()
        .map(|source| {
            let secret = source.secret.as_ref().unwrap();
            (
                secret.items.as_ref().unwrap()[0].key.as_str(),
                secret.optional,
            )
        })
        .collect();
    assert_eq!(items, [("tls.crt", Some(false)), ("ca.crt", Some(true))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_claims_of_similar_names_do_not_collide() {
    let bed = Bed::start().await;
    for name in ["a.b", "a-b"] {
        bed.secret(name, &[("tls.crt", "certificate")]).await;
    }
    let sources = json!([{ "secretName": "a.b" }, { "secretName": "a-b" }]);
    let pvcs = json!([{ "name": "certificate-a-b", "mountPath": "/a", "storage": "1Gi" }]);
    let pod = pod(&bed, json!({ "certTrustStore": sources, "pvcs": pvcs })).await;
    assert_eq!(pod.spec.unwrap().volumes.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_container_gives_the_volumes_to_the_agents_user() {
    let bed = Bed::start().await;
    let pod = pod(
        &bed,
        json!({
            "initContainer": { "image": "busybox:1" },
            "securityContext": { "runAsUser": 1001, "runAsGroup": 1002, "fsGroup": 1003 },
            "pvcs": [
                { "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" },
                { "name": "cache", "mountPath": "/var/cache", "storage": "1Gi", "deleteWithAgent": true },
            ],
        }),
    )
    .await;
    let spec = pod.spec.as_ref().unwrap();
    let init = &spec.init_containers.as_ref().unwrap()[0];
    assert_eq!(init.image.as_deref(), Some("busybox:1"));
    assert_eq!(init.security_context.as_ref().unwrap().run_as_user, Some(0));
    let command = init.command.as_ref().unwrap();
    assert_eq!(command[4..], ["/workspace", "/var/cache"]);
    assert!(command[2].contains("chown 1001:1002"), "{}", command[2]);
    let user = container(&pod).security_context.as_ref().unwrap();
    assert_eq!(
        (
            user.run_as_user,
            user.run_as_group,
            user.run_as_non_root,
            user.allow_privilege_escalation
        ),
        (Some(1001), Some(1002), Some(true), Some(false))
    );
    assert_eq!(spec.security_context.as_ref().unwrap().fs_group, Some(1003));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_agent_stops_within_seconds_of_its_grace_period() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1 })).await;
    bed.agents_when("a warm agent", |agents| {
        agents.iter().any(|agent| agent.online)
    })
    .await;
    let started = std::time::Instant::now();
    bed.delete("web").await;
    bed.gone("web").await;
    bed.pods_when("the Pod is gone", <[_]>::is_empty).await;
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?} of 3600 s",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_merged_over_the_pod_and_a_changed_one_replaces_idle_agents() {
    let bed = Bed::start().await;
    let template = json!({
        "metadata": { "labels": { "team": "a" }, "annotations": { "note": "b" } },
        "spec": {
            "terminationGracePeriodSeconds": 7200,
            "tolerations": [{ "key": "dedicated", "operator": "Exists" }],
            "initContainers": [{ "name": "sidecar", "image": "sidecar", "restartPolicy": "Always" }],
            "containers": [{
                "name": "agent",
                "resources": { "limits": { "cpu": "8" } },
                "env": [{ "name": "FROM_TEMPLATE", "value": "1" }],
                "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }],
            }],
            "volumes": [{ "name": "scratch", "emptyDir": {} }],
        },
    });
    let fields = json!({
        "minAgents": 1,
        "extraEnv": [{ "name": "EXTRA", "value": "2" }],
        "pvcs": [{ "name": "work", "mountPath": "/work", "storage": "1Gi", "deleteWithAgent": true }],
        "podTemplate": template,
    });
    bed.create("web", fields).await;
    let pods = bed.pods_when("an agent", |pods| pods.len() == 1).await;
    let pod = &pods[0];
    assert_eq!(
        (pod.labels()["team"].as_str(), pod.labels()["app"].as_str()),
        ("a", "azdo-runner")
    );
    assert_eq!(pod.annotations()["note"], "b");
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.termination_grace_period_seconds, Some(7200));
    let tolerations = spec.tolerations.iter().flatten();
    assert!(
        tolerations
            .filter_map(|toleration| toleration.key.as_deref())
            .any(|key| key == "dedicated")
    );
    let sidecar = &spec.init_containers.as_ref().unwrap()[0];
    assert_eq!(
        (sidecar.name.as_str(), sidecar.restart_policy.as_deref()),
        ("sidecar", Some("Always"))
    );
    assert_eq!(spec.containers.len(), 1);
    let resources = serde_json::to_value(container(pod).resources.as_ref().unwrap()).unwrap();
    assert_eq!(resources["limits"], json!({ "cpu": "8", "memory": "4Gi" }));
    let variables = ["FROM_TEMPLATE", "EXTRA", "AZP_POOL"].map(|name| env(pod, name));
    assert_eq!(variables, [Some("1"), Some("2"), Some("Linux Pool")]);
    let mounts = container(pod).volume_mounts.iter().flatten();
    let mut paths: Vec<&str> = mounts.map(|mount| mount.mount_path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/scratch", "/work"]);
    assert!(container(pod).lifecycle.is_some());
    // The placeholder has what agents will report.
    let reports = |name: &str| name.contains("placeholder");
    let agents = bed
        .agents_when("the placeholder", |agents| {
            agents.iter().any(|agent| reports(&agent.name))
        })
        .await;
    let placeholder = agents.iter().find(|agent| reports(&agent.name)).unwrap();
    assert_eq!(
        placeholder
            .user_capabilities
            .get("FROM_TEMPLATE")
            .map(String::as_str),
        Some("1")
    );

    bed.online(1).await;
    let labels = json!({ "podTemplate": { "metadata": { "labels": { "team": "c" } } } });
    bed.change("web", labels).await;
    bed.pods_when("another takes the place of the idle agent", |pods| {
        pods.len() == 1 && pods[0].labels().get("team").is_some_and(|team| team == "c")
    })
    .await;
}

/// The example of this name.
macro_rules! recipe {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../../../examples/", $name, ".yaml")),
        )
    };
}

/// Every recipe among the examples becomes a Pod that the API server takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recipes_for_pods_are_taken() {
    let bed = Bed::start().await;
    let account: ServiceAccount =
        serde_json::from_value(json!({ "metadata": { "name": "builds" } })).unwrap();
    bed.api::<ServiceAccount>()
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let class = format!("sandbox-{}", bed.namespace);
    let sandbox: RuntimeClass =
        serde_json::from_value(json!({ "metadata": { "name": class }, "handler": "sandbox" }))
            .unwrap();
    let client = bed.api::<Pod>().into_client();
    Api::<RuntimeClass>::all(client)
        .create(&PostParams::default(), &sandbox)
        .await
        .unwrap();
    let recipes = [
        recipe!("pod-template"),
        recipe!("sidecar"),
        recipe!("work-volume"),
        recipe!("arm64"),
        recipe!("windows"),
        recipe!("runtime-class"),
    ];
    for (name, recipe) in recipes {
        let recipe: RunnerPool = serde_saphyr::from_str(recipe).unwrap();
        let mut template = json!(recipe.spec.pod_template);
        if name == "runtime-class" {
            // They are of the whole cluster.
            template["spec"]["runtimeClassName"] = json!(class);
        }
        let mut fields = json!({
            "minAgents": 1,
            "podTemplate": template,
            "profiles": recipe.spec.profiles,
            "extraEnv": recipe.spec.extra_env,
            "securityContext": recipe.spec.security_context,
        });
        for profile in fields["profiles"].as_array_mut().unwrap() {
            profile["minAgents"] = json!(1);
        }
        bed.create(name, fields).await;
    }
    // One for each recipe, and another one for the profile of arm64.
    let pods = bed
        .pods_when("an agent of each recipe", |pods| {
            pods.len() == recipes.len() + 1
        })
        .await;
    let pod_of = |name: &str| {
        pods.iter()
            .find(|pod| pod.labels()["runner-pool"] == name)
            .unwrap()
    };
    let hook = |name: &str| container(pod_of(name)).lifecycle.is_some();
    assert_eq!(
        (hook("pod-template"), hook("windows")),
        (true, false),
        "the hook is for a POSIX shell"
    );
    assert_eq!(
        pod_of("runtime-class")
            .spec
            .as_ref()
            .unwrap()
            .runtime_class_name
            .as_deref(),
        Some(class.as_str())
    );
    let architectures: BTreeSet<_> = pods
        .iter()
        .filter(|pod| pod.labels()["runner-pool"] == "arm64")
        .map(|pod| {
            let spec = pod.spec.as_ref().unwrap();
            spec.node_selector.as_ref().unwrap()["kubernetes.io/arch"].as_str()
        })
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"].into());
}

/// With the gate that Kueue adds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_wait_for_its_turn_in_a_queue_as_long_as_it_takes() {
    let bed = Bed::start().await;
    let (_, recipe) = recipe!("kueue");
    let recipe: RunnerPool = serde_saphyr::from_str(recipe).unwrap();
    let mut template = json!(recipe.spec.pod_template);
    template["spec"]["schedulingGates"] = json!([{ "name": "kueue.x-k8s.io/admission" }]);
    let plain = json!({ "minAgents": 1 });
    bed.create("web", plain).await;
    let gated = json!({ "minAgents": 1, "podTemplate": template });
    bed.create("kueue", gated).await;
    bed.ready("kueue").await;
    bed.online(1).await;
    let pods = bed
        .pods_when("one waits and one is online", |pods| pods.len() == 2)
        .await;
    let waits = pods
        .iter()
        .find(|pod| pod.labels()["runner-pool"] == "kueue");
    let waits = waits.unwrap();
    age(&bed, &waits.name_any(), "PodScheduled", 1200).await;
    bed.queue(jobs(1, Duration::from_millis(100))).await;
    bed.all_succeed().await;
    let still = bed.pods().await;
    assert!(still.iter().any(|pod| pod.uid() == waits.uid()));
    bed.condition_when("kueue", "Degraded", "False", "AsExpected")
        .await;
    // Its turn comes, and there is no node for it: that has not lasted as long as its condition has.
    let pods: Api<Pod> = bed.api();
    let params = PatchParams::default();
    let turn = Patch::Merge(json!({ "spec": { "schedulingGates": null } }));
    pods.patch(&waits.name_any(), &params, &turn).await.unwrap();
    let refused = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node" });
    let refused = Patch::Strategic(json!({ "status": { "conditions": [refused] } }));
    pods.patch_status(&waits.name_any(), &params, &refused)
        .await
        .unwrap();
    bed.queue(jobs(1, Duration::from_millis(100))).await;
    bed.all_succeed().await;
    bed.condition_when("kueue", "Degraded", "False", "AsExpected")
        .await;
}

/// The API server refuses most of what is for Linux only where the Pod says that it is for Windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_for_windows_has_nothing_that_is_for_linux_only() {
    let bed = Bed::start().await;
    bed.secret("corporate-ca", &[("tls.crt", "certificate")])
        .await;
    let windows = json!({ "spec": { "os": { "name": "windows" } } });
    let linux = json!({ "spec": { "os": { "name": "linux" } } });
    bed.create(
        "web",
        json!({
            "minAgents": 1,
            "podTemplate": linux,
            "profiles": [{ "name": "windows", "minAgents": 1, "podTemplate": windows }],
            "initContainer": { "image": "busybox:1" },
            "securityContext": { "runAsUser": 1001, "runAsGroup": 1002, "fsGroup": 1003 },
            "certTrustStore": [{ "secretName": "corporate-ca" }],
            "pvcs": [{ "name": "work", "mountPath": "/work", "storage": "1Gi" }],
        }),
    )
    .await;
    let pods = bed
        .pods_when("an agent of each profile", |pods| pods.len() == 2)
        .await;
    let pod_of = |profile: &str| {
        let mut pods = pods.iter();
        pods.find(|pod| pod.labels()["capability"] == profile)
            .unwrap()
    };
    // What is left out, and how many mounts and volumes there are.
    let parts = |pod: &Pod| {
        let spec = pod.spec.as_ref().unwrap();
        let agent = container(pod);
        let given = [
            spec.init_containers.is_some(),
            agent.security_context.is_some(),
            agent.lifecycle.is_some(),
        ];
        let user = spec.security_context.as_ref();
        let group = user.and_then(|user| user.fs_group);
        let counts = [
            agent.volume_mounts.iter().flatten().count(),
            spec.volumes.iter().flatten().count(),
        ];
        (given, group, counts)
    };
    assert_eq!(parts(pod_of("base")), ([true; 3], Some(1003), [3, 2]));
    assert_eq!(parts(pod_of("windows")), ([false; 3], None, [1, 1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_pod_that_ended_stays_without_its_registration() {
    let bed = Bed::start().await;
    let work =
        json!({ "name": "work", "mountPath": "/work", "storage": "1Gi", "deleteWithAgent": true });
    let keep = json!({ "keepSucceeded": 1 });
    bed.create(
        "web",
        json!({ "maxAgents": 1, "pvcs": [work], "terminatedPods": keep }),
    )
    .await;
    bed.ready("web").await;
    for agent in ["web-agent-0", "web-agent-1"] {
        bed.queue(jobs(1, Duration::from_millis(100))).await;
        bed.all_succeed().await;
        bed.pods_when("the newest is kept", |pods| names(pods) == [agent])
            .await;
        bed.agents_when("and its registration", |agents| {
            agent_names(agents).is_empty()
        })
        .await;
        let told =
            format!("Removed the registration of agent {agent}: its Pod has ended (succeeded)");
        bed.events_when("an event tells how it ended", |events| {
            notes(events, "AgentRemoved").any(|note| note == told)
        })
        .await;
    }
    bed.change("web", json!({ "terminatedPods": null })).await;
    bed.pods_when("it goes", <[_]>::is_empty).await;
    bed.claims_when("and its claim", <[_]>::is_empty).await;
}
