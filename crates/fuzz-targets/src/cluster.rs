//! Objects as the API server tells them: Pods, claims and Secrets, whoever made them.

use api::{RunnerPool, names};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use operator::decode;
use secrecy::ExposeSecret as _;
use serde_json::json;

/// A Pod: read is only what a RunnerPool owns, under its own name and uid.
pub(crate) fn pods(data: &[u8]) {
    let Ok(pod) = serde_json::from_slice::<Pod>(data) else {
        return;
    };
    let Some(read) = decode::pod(&pod) else {
        return;
    };
    assert_eq!(
        (Some(&read.uid), read.name),
        (pod.metadata.uid.as_ref(), pod.name_any())
    );
    let owners = pod.owner_references();
    assert!(owners.iter().any(|owner| owner.kind == "RunnerPool"));
    assert_eq!(read.stopping, pod.metadata.deletion_timestamp.is_some());
}

/// A claim: what is kept is never taken for one that goes.
pub(crate) fn claims(data: &[u8]) {
    let Ok(claim) = serde_json::from_slice::<PersistentVolumeClaim>(data) else {
        return;
    };
    let keeps: RunnerPool = serde_json::from_value(json!({
        "apiVersion": "devops.opentools.mf/v1",
        "kind": "RunnerPool",
        "metadata": { "name": "web", "namespace": "ci", "uid": "1" },
        "spec": { "azDoUrl": "https://dev.azure.com/a", "pool": "p", "patSecretName": "s", "image": "i" },
    }))
    .expect("a RunnerPool");
    let Some(read) = decode::claim(&claim, &keeps) else {
        return;
    };
    let annotation = claim.annotations().get(names::ANNOTATION_DELETE_WITH_AGENT);
    assert_eq!(annotation.map(String::as_str), Some("true"));
    assert_eq!(
        (Some(&read.uid), read.name),
        (claim.metadata.uid.as_ref(), claim.name_any())
    );
}

/// The bytes of a token: what is taken is fit for a header, and nothing but blanks was cut.
pub(crate) fn tokens(data: &[u8]) {
    let Some(token) = decode::token(data) else {
        return;
    };
    let token = token.expose_secret();
    assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    let given = std::str::from_utf8(data).expect("a token is text");
    assert_eq!(token, given.trim());
}
