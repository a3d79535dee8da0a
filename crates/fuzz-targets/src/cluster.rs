//! Objects as the API server tells them: Pods, claims and Secrets, whoever made them, and what it asks of webhooks.

use std::collections::BTreeMap;

use api::{RunnerPool, RunnerPoolSpec, names};
use k8s_openapi::{
    ByteString,
    api::core::v1::{PersistentVolumeClaim, Pod},
};
use kube::ResourceExt as _;
use operator::{
    decode,
    webhook::admission::{self, Webhook},
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

/// A Pod: read is only what a RunnerPool owns, under its own name and uid.
pub(crate) fn pods(data: &[u8]) {
    let Ok(pod) = serde_json::from_slice::<Pod>(data) else {
        return;
    };
    let Some(read) = decode::pod(&pod) else {
        return;
    };
    assert_eq!(
        (Some(&read.uid), &read.name),
        (pod.metadata.uid.as_ref(), &pod.name_any())
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

/// The Secret of the operator's own certificates, its values as text: what is taken is written as it reads.
pub(crate) fn certificates(data: &[u8]) {
    let Ok(texts) = serde_json::from_slice::<BTreeMap<String, String>>(data) else {
        return;
    };
    let entry = |(name, text): (String, String)| (name, ByteString(text.into_bytes()));
    let secret = texts.into_iter().map(entry).collect();
    match decode::certificates(&secret) {
        Ok(written) => {
            assert_eq!(written.len(), 4);
            let again = decode::certificates(&written).expect("it was read before");
            assert_eq!(again, written);
        }
        Err(useless) => assert!(!useless.to_string().is_empty()),
    }
}

/// A question to the webhooks: refused is only what breaks a rule and is no harm to anybody who deletes it, and what is
/// added is a label that was not there.
pub(crate) fn admission_reviews(data: &[u8]) {
    for webhook in [Webhook::Mutating, Webhook::Validating] {
        let Ok(review) = admission::answer(webhook, data) else {
            continue;
        };
        let response = review.response.expect("an answer");
        // Of a field that nobody reads, it does not matter whether it is text at all.
        let Ok(asked) = serde_json::from_slice::<Value>(data) else {
            continue;
        };
        let request = &asked["request"];
        assert_eq!(request["uid"], response.uid);
        let (object, old) = (&request["object"], &request["oldObject"]);
        if !response.allowed {
            assert!(!response.result.message.is_empty());
            assert!(object["metadata"]["deletionTimestamp"].is_null());
            assert!(old.is_null() || object["spec"] != old["spec"]);
            let spec = serde_json::from_value::<RunnerPoolSpec>(object["spec"].clone());
            assert!(
                spec.is_ok_and(|spec| !api::validate(&spec).is_empty())
                    || webhook == Webhook::Validating
            );
        }
        let Some(patch) = response.patch else {
            continue;
        };
        assert!(response.allowed && webhook == Webhook::Mutating);
        let patch: Value = serde_json::from_slice(&patch).expect("a JSON patch");
        let labels = &object["metadata"]["labels"];
        assert!(labels.get(names::LABEL_MANAGED_BY_RECOMMENDED).is_none());
        let (place, value) = match labels {
            Value::Null => (
                "/metadata/labels",
                json!({ "app.kubernetes.io/managed-by": names::OPERATOR }),
            ),
            _ => (
                "/metadata/labels/app.kubernetes.io~1managed-by",
                json!(names::OPERATOR),
            ),
        };
        assert_eq!(
            patch,
            json!([{ "op": "add", "path": place, "value": value }])
        );
    }
}
