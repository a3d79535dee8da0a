//! Volumes: `spec.pvcs`.

use std::time::Duration;

use api::RunnerPool;
use azure_devops_simulator::world::Outcome;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Resource as _, ResourceExt as _, api::PostParams};
use serde_json::json;

use crate::bed::{Bed, jobs, names};

const SHORT: Duration = Duration::from_millis(200);

fn mounted(pod: &Pod) -> Vec<(String, String)> {
    let spec = pod.spec.as_ref().unwrap();
    let claim = |name: &str| {
        let volume = spec
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == name)
            .unwrap();
        volume
            .persistent_volume_claim
            .as_ref()
            .unwrap()
            .claim_name
            .clone()
    };
    let mounts = spec.containers[0].volume_mounts.iter().flatten();
    mounts
        .map(|mount| (mount.mount_path.clone(), claim(&mount.name)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_claims_are_taken_up_again_and_outlive_the_runner_pool() {
    let bed = Bed::start().await;
    let pvcs = json!([
        { "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" },
        { "name": "cache", "mountPath": "/cache", "storage": "1Gi", "deleteWithAgent": true },
    ]);
    bed.create("web", json!({ "pvcs": pvcs })).await;
    bed.ready("web").await;
    bed.queue(jobs(1, Duration::from_secs(5))).await;
    let pods = bed.pods_when("an agent", |pods| pods.len() == 1).await;
    assert_eq!(
        mounted(&pods[0]),
        [
            ("/workspace", "web-agent-0-workspace"),
            ("/cache", "web-agent-0-cache")
        ]
        .map(|(path, claim)| (path.to_owned(), claim.to_owned()))
    );
    let claims = bed
        .claims_when("both claims", |claims| claims.len() == 2)
        .await;
    let kept = claims
        .iter()
        .find(|claim| claim.name_any() == "web-agent-0-workspace")
        .unwrap();
    let label = |name: &str| kept.labels()[name].clone();
    assert_eq!(
        [
            "app",
            "runner-pool",
            "managed-by",
            "agent-index",
            "pvc-name"
        ]
        .map(label),
        [
            "azdo-runner",
            "web",
            "azdo-runner-operator",
            "0",
            "workspace"
        ]
    );
    assert!(
        kept.owner_references().is_empty(),
        "a kept claim has no owner"
    );
    let uid = kept.uid();
    bed.all_succeed().await;
    let left = bed
        .claims_when("the other claim goes with the agent", |claims| {
            claims.len() == 1
        })
        .await;
    assert_eq!(left[0].uid(), uid);
    bed.pods_when("the Pod is gone", <[_]>::is_empty).await;
    bed.queue(jobs(1, SHORT)).await;
    let ran = bed.all_succeed().await;
    assert_eq!(
        ran[1].agent.as_deref(),
        Some("web-agent-0"),
        "the index whose claims are free"
    );
    bed.delete("web").await;
    bed.gone("web").await;
    let left = bed
        .claims_when("only the kept claim is left", |claims| {
            names(claims) == ["web-agent-0-workspace"]
        })
        .await;
    assert_eq!(left[0].uid(), uid);
    assert_eq!(left[0].metadata.deletion_timestamp, None);
}

/// A claim as the former operator makes it: the RunnerPool owns it, whether it is to be kept or not.
pub(crate) async fn claim_of_the_former_operator(
    bed: &Bed,
    pool: &str,
    name: &str,
) -> PersistentVolumeClaim {
    let owner = bed.api::<RunnerPool>().get(pool).await.unwrap();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {
            "name": format!("{pool}-agent-7-{name}"),
            "labels": {
                "app": "azdo-runner", "runner-pool": pool, "managed-by": "azdo-runner-operator",
                "agent-index": "7", "pvc-name": name,
            },
            "ownerReferences": [owner.controller_owner_ref(&()).unwrap()],
        },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))
    .unwrap();
    let claims = bed.api::<PersistentVolumeClaim>();
    claims.create(&PostParams::default(), &claim).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_claims_of_the_former_operator_outlive_the_runner_pool_too() {
    let mut bed = Bed::make().await;
    let pvcs = json!([
        { "name": "workspace", "mountPath": "/workspace", "storage": "1Gi" },
        { "name": "cache", "mountPath": "/cache", "storage": "1Gi", "deleteWithAgent": true },
    ]);
    bed.create("web", json!({ "pvcs": pvcs })).await;
    let kept = claim_of_the_former_operator(&bed, "web", "workspace").await;
    let going = claim_of_the_former_operator(&bed, "web", "cache").await;
    // No entry of spec.pvcs tells that it may go.
    let unknown = claim_of_the_former_operator(&bed, "web", "former").await;
    bed.start_operator().await;
    let owners = |claims: &[PersistentVolumeClaim]| -> Vec<usize> {
        claims
            .iter()
            .map(|claim| claim.owner_references().len())
            .collect()
    };
    let claims = bed
        .claims_when("kept ones have no owner", |claims| {
            owners(claims).iter().sum::<usize>() == 1
        })
        .await;
    let owned = claims
        .iter()
        .find(|claim| !claim.owner_references().is_empty());
    assert_eq!(owned.unwrap().uid(), going.uid());
    bed.ready("web").await;

    // One that is met only while the RunnerPool goes, and whatever becomes of everything else.
    bed.stop_operator().await;
    let late = claim_of_the_former_operator(&bed, "web", "late").await;
    bed.delete("web").await;
    bed.start_operator().await;
    bed.gone("web").await;
    let left = [&unknown, &late, &kept];
    for claim in left {
        let found = bed
            .api::<PersistentVolumeClaim>()
            .get(&claim.name_any())
            .await
            .unwrap();
        assert_eq!(found.uid(), claim.uid());
        assert_eq!(
            (
                found.metadata.deletion_timestamp,
                found.metadata.owner_references
            ),
            (None, None)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_claim_keeps_agents_away_and_its_arrival_brings_them() {
    let bed = Bed::start().await;
    bed.create(
        "web",
        json!({ "pvcs": [{ "name": "shared", "mountPath": "/shared", "createPvc": false }] }),
    )
    .await;
    bed.ready("web").await;
    bed.queue(jobs(1, SHORT)).await;
    let status = bed
        .condition_when("web", "Degraded", "True", "ClaimMissing")
        .await;
    assert!(
        status
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("shared")),
        "{status:#?}"
    );
    assert!(bed.pods().await.is_empty());
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Queued);
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": "shared" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))
    .unwrap();
    bed.api()
        .create(&PostParams::default(), &claim)
        .await
        .unwrap();
    bed.all_succeed().await;
    bed.condition_when("web", "Degraded", "False", "AsExpected")
        .await;
    bed.delete("web").await;
    bed.gone("web").await;
    bed.claims_when("somebody else's claim stays", |claims| {
        names(claims) == ["shared"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_without_an_optional_claim() {
    let bed = Bed::start().await;
    let pvcs =
        json!([{ "name": "shared", "mountPath": "/shared", "createPvc": false, "optional": true }]);
    bed.create("web", json!({ "pvcs": pvcs })).await;
    bed.ready("web").await;
    bed.queue(jobs(1, Duration::from_secs(3))).await;
    let pods = bed.pods_when("an agent", |pods| pods.len() == 1).await;
    assert_eq!(mounted(&pods[0]), []);
    bed.all_succeed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_refused_agent_only_the_claims_that_were_made_for_it_go() {
    let bed = Bed::start().await;
    bed.quota(json!({ "pods": "0" })).await;
    // Made when its entry still had deleteWithAgent: false.
    let kept: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {
            "name": "web-agent-0-cache",
            "labels": {
                "app": "azdo-runner", "runner-pool": "web", "managed-by": "azdo-runner-operator",
                "agent-index": "0", "pvc-name": "cache",
            },
            "annotations": { api::names::ANNOTATION_DELETE_WITH_AGENT: "false" },
        },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))
    .unwrap();
    let kept = bed
        .api()
        .create(&PostParams::default(), &kept)
        .await
        .unwrap();
    let pvcs = json!([
        { "name": "cache", "mountPath": "/cache", "storage": "1Gi", "deleteWithAgent": true },
        { "name": "scratch", "mountPath": "/scratch", "storage": "1Gi", "deleteWithAgent": true },
    ]);
    bed.create("web", json!({ "pvcs": pvcs, "minAgents": 1 }))
        .await;
    bed.condition_when("web", "ScalingLimited", "True", "QuotaExceeded")
        .await;
    let is_kept = |claim: &PersistentVolumeClaim| {
        claim.uid() == kept.uid() && claim.metadata.deletion_timestamp.is_none()
    };
    bed.claims_when("only the one that was there is left", |claims| {
        claims.len() == 1 && is_kept(&claims[0])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_claim_is_not_taken() {
    let bed = Bed::start().await;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": "web-agent-0-cache" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))
    .unwrap();
    let created = bed
        .api()
        .create(&PostParams::default(), &claim)
        .await
        .unwrap();
    let pvcs = json!([{ "name": "cache", "mountPath": "/cache", "storage": "1Gi", "deleteWithAgent": true }]);
    bed.create("web", json!({ "pvcs": pvcs, "minAgents": 1 }))
        .await;
    bed.condition_when("web", "Degraded", "True", "ClaimMissing")
        .await;
    bed.delete("web").await;
    bed.gone("web").await;
    bed.claims_when("it is still there", |claims| {
        claims.len() == 1 && claims[0].uid() == created.uid()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_goes_although_somebody_elses_pod_has_the_name_of_its_agent() {
    let bed = Bed::start().await;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web-agent-7" },
        "spec": {
            "schedulingGates": [{ "name": "example.com/never" }],
            "containers": [{ "name": "agent", "image": "agent:base" }],
        },
    }))
    .unwrap();
    let pods = bed.api::<Pod>();
    let theirs = pods.create(&PostParams::default(), &pod).await.unwrap();
    let pvcs = json!([{ "name": "scratch", "mountPath": "/scratch", "storage": "1Gi", "deleteWithAgent": true }]);
    bed.create("web", json!({ "pvcs": pvcs })).await;
    claim_of_the_former_operator(&bed, "web", "scratch").await;
    bed.claims_when("it is gone", <[_]>::is_empty).await;
    let there = bed.pods().await;
    assert_eq!((there.len(), there[0].uid()), (1, theirs.uid()));
}
