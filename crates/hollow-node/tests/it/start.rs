//! From Pending to an end of its own.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::bed::{Bed, LONG, agent_state, condition, exit_code, phase};

#[tokio::test]
async fn a_pod_runs_and_succeeds_with_its_agent() -> anyhow::Result<()> {
    let bed = Bed::with(|settings| settings.start_delay(Duration::from_millis(100))).await?;
    let init = json!([{ "name": "chown", "image": "busybox" }]);
    bed.create("agent-0", &[("/spec/initContainers", init)])
        .await?;
    bed.until_waiting("agent-0", "ContainerCreating").await?;
    let pod = bed.until_phase("agent-0", "Running").await?;

    assert_eq!(
        pod.spec.as_ref().unwrap().node_name,
        Some(format!("node-of-{}", bed.namespace))
    );
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(
            condition(&pod, kind).map(|(status, _)| status),
            Some("True"),
            "{kind}"
        );
    }
    let status = pod.status.as_ref().unwrap();
    assert!(status.pod_ip.is_some() && status.start_time.is_some());
    assert!(agent_state(&pod).unwrap().running.is_some());
    let init = &status.init_container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        init.state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        0
    );

    bed.puppets
        .state("agent-0")
        .send_modify(|state| state.exit_code = Some(0));
    let pod = bed.until_phase("agent-0", "Succeeded").await?;
    let end = agent_state(&pod).unwrap().terminated.unwrap();
    assert_eq!(
        (end.exit_code, end.reason.as_deref()),
        (0, Some("Completed"))
    );
    assert!(end.started_at.unwrap().0 <= end.finished_at.unwrap().0);
    assert_eq!(condition(&pod, "Ready"), Some(("False", "PodCompleted")));

    bed.create("agent-1", &[]).await?;
    bed.until_phase("agent-1", "Running").await?;
    bed.puppets
        .state("agent-1")
        .send_modify(|state| state.exit_code = Some(3));
    let pod = bed.until_phase("agent-1", "Failed").await?;
    assert_eq!(exit_code(&pod), Some(3));
    bed.node.stop().await
}

#[tokio::test]
async fn the_agent_gets_the_pods_own_environment_and_arguments() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    let env = json!([
        { "name": "AZP_TOKEN", "valueFrom": { "secretKeyRef": { "name": "pat", "key": "token" } } },
        { "name": "AZP_AGENT_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
        { "name": "AZP_WORK", "value": "/agent/$(AZP_AGENT_NAME)" },
    ]);
    bed.create("agent-0", &[("/spec/containers/0/env", env)])
        .await?;
    let pod = bed
        .until_waiting("agent-0", "CreateContainerConfigError")
        .await?;
    assert_eq!(phase(&pod), "Pending");
    let message = agent_state(&pod).unwrap().waiting.unwrap().message;
    assert_eq!(message.as_deref(), Some("secret \"pat\" not found"));

    let secret = serde_json::from_value(
        json!({ "metadata": { "name": "pat" }, "stringData": { "token": "s3cr3t" } }),
    )?;
    Api::<Secret>::namespaced(bed.client.clone(), &bed.namespace)
        .create(&PostParams::default(), &secret)
        .await?;
    bed.until_phase("agent-0", "Running").await?;
    let launch = bed.puppets.launch_of("agent-0");
    let env: Vec<_> = launch
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let expected = [
        ("AZP_AGENT_NAME", "agent-0"),
        ("AZP_TOKEN", "s3cr3t"),
        ("AZP_WORK", "/agent/agent-0"),
    ];
    assert_eq!(env, expected);
    assert_eq!(launch.args, ["--once"]);
    assert_eq!(launch.tools.keys().collect::<Vec<_>>(), ["java"]);
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_waits_for_its_claim() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    let volumes = json!([{ "name": "work", "persistentVolumeClaim": { "claimName": "work" } }]);
    bed.create("agent-0", &[("/spec/volumes", volumes)]).await?;
    let unschedulable =
        |pod: &_| condition(pod, "PodScheduled") == Some(("False", "Unschedulable"));
    let pod = bed.until("agent-0", "unschedulable", unschedulable).await?;
    assert_eq!(pod.spec.unwrap().node_name, None);

    let claim = serde_json::from_value(json!({
        "metadata": { "name": "work" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(bed.client.clone(), &bed.namespace);
    claims.create(&PostParams::default(), &claim).await?;
    let pod = bed.until_phase("agent-0", "Running").await?;
    assert_eq!(
        condition(&pod, "PodScheduled").map(|(status, _)| status),
        Some("True")
    );
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_waits_for_the_secret_that_it_mounts() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    let volumes = json!([
        { "name": "certificate", "secret": { "secretName": "certificate" } },
        { "name": "extra", "secret": { "secretName": "extra", "optional": true } },
    ]);
    bed.create("agent-0", &[("/spec/volumes", volumes)]).await?;
    bed.until_waiting("agent-0", "ContainerCreating").await?;
    let secret = serde_json::from_value(json!({ "metadata": { "name": "certificate" } }))?;
    Api::<Secret>::namespaced(bed.client.clone(), &bed.namespace)
        .create(&PostParams::default(), &secret)
        .await?;
    bed.until_phase("agent-0", "Running").await?;
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_with_another_container_outlives_its_agent() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    let containers = json!([{ "name": "agent", "image": "agent" }, { "name": "docker", "image": "docker:dind" }]);
    bed.create("agent-0", &[("/spec/containers", containers)])
        .await?;
    bed.until_phase("agent-0", "Running").await?;
    bed.puppets
        .state("agent-0")
        .send_modify(|state| state.exit_code = Some(0));
    let pod = bed
        .until("agent-0", "without its agent", |pod| {
            exit_code(pod) == Some(0)
        })
        .await?;
    assert_eq!(phase(&pod), "Running");
    bed.delete("agent-0").await?;
    bed.until_gone("agent-0").await?;
    bed.node.stop().await
}

/// The purpose: hundreds of pods at once. The time is printed, since a limit would fail on a slower machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_500_pods_runs() -> anyhow::Result<()> {
    const PODS: usize = 500;
    let bed = Bed::new().await?;
    let started = Instant::now();
    let created = (0..PODS).map(|n| format!("agent-{n}"));
    futures::future::try_join_all(created.map(async |name| bed.create(&name, &[]).await)).await?;
    let created = started.elapsed();
    let running = ListParams::default().fields("status.phase=Running");
    while bed.pods.list_metadata(&running).await?.items.len() < PODS {
        assert!(
            started.elapsed() < LONG,
            "only {} run",
            bed.pods.list_metadata(&running).await?.items.len()
        );
    }
    eprintln!(
        "{PODS} pods created in {created:?}, all Running after {:?}",
        started.elapsed()
    );
    assert_eq!(bed.node.pod_count(), PODS);
    bed.node.stop().await
}
