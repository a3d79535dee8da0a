//! What the webhooks answer, as a pure function of what the API server asks. It never looks at anything else, so that every
//! replica gives the same answer, also one that does not lead.
//!
//! Both webhooks judge a spec by the rules that passes judge it by. The API server asks the mutating one before it looks at
//! the schema and the validating one after it, so the first tells all violations at once, where the schema alone would tell
//! a part, and the second sees what other webhooks have made of the object.

use api::{RunnerPoolSpec, RunnerPoolStatus, Violation, names};
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
    response::{StatusCause, StatusDetails, reason},
};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// A webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Webhook {
    /// The one that may change the object.
    Mutating,
    /// The one that has the last word.
    Validating,
}

/// Why a body is no question that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not the JSON of an `AdmissionReview`.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// An `AdmissionReview` without a question.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

/// The answer to an `AdmissionReview`, from and to JSON.
pub fn answer(webhook: Webhook, body: &[u8]) -> Result<AdmissionReview<DynamicObject>, Unreadable> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)?;
    let request: AdmissionRequest<DynamicObject> =
        review.try_into().map_err(|_| Unreadable::NoRequest)?;
    Ok(respond(webhook, &request).into_review())
}

fn respond(webhook: Webhook, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let Some(object) = &request.object else {
        return response;
    };
    // Whatever is wrong with it, it must be able to go.
    if object.metadata.deletion_timestamp.is_some() {
        return response;
    }
    let spec = |object: &DynamicObject| object.data.get("spec").cloned().unwrap_or_default();
    let former = request.old_object.as_ref().map(spec);
    let spec = spec(object);
    // Labels, finalizers and annotations can be changed also where a spec got in that breaks a rule: while no webhook
    // answered, or before the rule existed.
    let judged = if former.as_ref() == Some(&spec) {
        Ok(Vec::new())
    } else {
        judge(webhook, spec, request.old_object.as_ref())
    };
    match (judged, webhook) {
        (Err(violations), _) => refuse(response, object, &violations),
        (Ok(_), Webhook::Mutating) => with_label(response, object),
        (Ok(warnings), Webhook::Validating) => with_warnings(response, warnings),
    }
}

/// Warnings of a spec, or all its violations. The status is that of the former object: what an update gives for it counts
/// for nothing.
fn judge(
    webhook: Webhook,
    spec: Value,
    former: Option<&DynamicObject>,
) -> Result<Vec<String>, Vec<Violation>> {
    let status =
        former.and_then(|former| RunnerPoolStatus::deserialize(&former.data["status"]).ok());
    match serde_json::from_value::<RunnerPoolSpec>(spec) {
        Ok(spec) => {
            let violations = api::validate_with(&spec, status.as_ref());
            if violations.is_empty() {
                Ok(api::warnings(&spec))
            } else {
                Err(violations)
            }
        }
        // A missing field or one of a wrong type: the schema names it.
        Err(_) if webhook == Webhook::Mutating => Ok(Vec::new()),
        // The schema let it pass, so it is newer than this program.
        Err(error) => Err(vec![Violation {
            field: "spec".to_owned(),
            message: format!("this version of the operator cannot read it: {error}"),
        }]),
    }
}

fn refuse(
    mut response: AdmissionResponse,
    object: &DynamicObject,
    violations: &[Violation],
) -> AdmissionResponse {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    let causes = violations.iter().map(|violation| StatusCause {
        reason: "FieldValueInvalid".to_owned(),
        message: violation.message.clone(),
        field: violation.field.clone(),
    });
    let details = StatusDetails {
        name: object.metadata.name.clone().unwrap_or_default(),
        group: "devops.opentools.mf".to_owned(),
        kind: "RunnerPool".to_owned(),
        uid: String::new(),
        causes: causes.collect(),
        retry_after_seconds: 0,
    };
    response.allowed = false;
    response.result = Status::failure(&texts.join("; "), reason::INVALID)
        .with_code(422)
        .with_details(details);
    response
}

fn with_warnings(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    response.warnings = (!warnings.is_empty()).then_some(warnings);
    response
}

/// Adds the label that names the operator, unless the author gave one. Nothing else is left to be filled in: the API server
/// has put in the defaults of the schema before it asks, and the schema has them all.
fn with_label(response: AdmissionResponse, object: &DynamicObject) -> AdmissionResponse {
    const LABEL: &str = names::LABEL_MANAGED_BY_RECOMMENDED;
    let patch = match &object.metadata.labels {
        Some(labels) if labels.contains_key(LABEL) => return response,
        Some(_) => {
            let path = format!("/metadata/labels/{}", LABEL.replace('/', "~1"));
            json!([{ "op": "add", "path": path, "value": names::OPERATOR }])
        }
        None => {
            let labels = json!({ LABEL: names::OPERATOR });
            json!([{ "op": "add", "path": "/metadata/labels", "value": labels }])
        }
    };
    let patch = serde_json::from_value(patch).expect("it is a JSON patch, written above");
    response
        .with_patch(patch)
        .expect("a JSON patch always serialises")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn spec() -> Value {
        json!({ "azDoUrl": "https://dev.azure.com/acme", "pool": "p", "patSecretName": "s", "image": "i" })
    }

    fn pool(spec: &Value, metadata: Value) -> Value {
        let mut pool = json!({
            "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "metadata": { "name": "web" }, "spec": spec,
        });
        let Value::Object(metadata) = metadata else {
            unreachable!("metadata are an object");
        };
        pool["metadata"].as_object_mut().unwrap().extend(metadata);
        pool
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "objects are made where they are asked about"
    )]
    fn asked(webhook: Webhook, object: Value, old: Value) -> Value {
        let kind = json!({ "group": "devops.opentools.mf", "version": "v1", "kind": "RunnerPool" });
        let resource =
            json!({ "group": "devops.opentools.mf", "version": "v1", "resource": "runnerpools" });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "1", "kind": kind, "resource": resource, "name": "web", "namespace": "ci", "userInfo": {},
                "operation": if old.is_null() { "CREATE" } else { "UPDATE" }, "object": object, "oldObject": old,
            },
        });
        let answer = answer(webhook, review.to_string().as_bytes()).unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        assert_eq!(
            (&answer["kind"], &answer["response"]["uid"]),
            (&json!("AdmissionReview"), &json!("1"))
        );
        answer["response"].clone()
    }

    fn patched(object: &Value) -> Value {
        let response = asked(Webhook::Mutating, object.clone(), Value::Null);
        assert_eq!(response["allowed"], true, "{response}");
        let mut object = object.clone();
        if let Some(patch) = response.get("patch") {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch: Vec<u8> = serde_json::from_value(patch.clone()).unwrap();
            let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
            for change in patch {
                assert_eq!(change["op"], "add");
                let pointer = change["path"].as_str().unwrap();
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                let parent = object.pointer_mut(parent).unwrap();
                parent[key.replace("~1", "/")] = change["value"].clone();
            }
        }
        object
    }

    #[test]
    fn the_label_is_added_once_and_never_taken_from_somebody_else() {
        for (labels, expected) in [
            (json!({}), "azdo-runner-operator"),
            (json!({ "labels": {} }), "azdo-runner-operator"),
            (
                json!({ "labels": { "team": "web" } }),
                "azdo-runner-operator",
            ),
            (
                json!({ "labels": { "app.kubernetes.io/managed-by": "Helm" } }),
                "Helm",
            ),
            (
                json!({ "labels": { "app.kubernetes.io/managed-by": "" } }),
                "",
            ),
        ] {
            let object = pool(&spec(), labels);
            let once = patched(&object);
            let labels = &once["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/managed-by"], expected);
            for (key, value) in object["metadata"]["labels"]
                .as_object()
                .into_iter()
                .flatten()
            {
                assert_eq!(labels[key], *value);
            }
            assert_eq!(once["spec"], object["spec"]);
            assert_eq!(patched(&once), once);
        }
    }

    #[test]
    fn both_webhooks_refuse_with_all_violations_and_their_fields() {
        let mut bad = spec();
        bad["image"] = json!("two words");
        bad["minAgents"] = json!(11);
        for webhook in [Webhook::Mutating, Webhook::Validating] {
            for old in [Value::Null, pool(&spec(), json!({}))] {
                let response = asked(webhook, pool(&bad, json!({})), old);
                assert_eq!(response["allowed"], false);
                let status = &response["status"];
                assert_eq!(
                    (&status["code"], &status["reason"]),
                    (&json!(422), &json!("Invalid"))
                );
                let message = status["message"].as_str().unwrap();
                assert!(
                    message.starts_with("spec.image: ") && message.contains("; spec.minAgents: "),
                    "{message}"
                );
                let causes = status["details"]["causes"].as_array().unwrap();
                let fields: Vec<_> = causes.iter().map(|cause| &cause["field"]).collect();
                assert_eq!(fields, ["spec.image", "spec.minAgents"]);
                assert!(response.get("patch").is_none());
            }
        }
    }

    #[test]
    fn what_was_invalid_before_can_still_be_labelled_and_deleted() {
        let mut bad = spec();
        bad["pollIntervalSeconds"] = json!(1);
        let mut worse = bad.clone();
        worse["image"] = json!("");
        for webhook in [Webhook::Mutating, Webhook::Validating] {
            let old = || pool(&bad, json!({}));
            let allowed = |object| asked(webhook, object, old())["allowed"] == true;
            assert!(allowed(pool(
                &bad,
                json!({ "annotations": { "note": "x" } })
            )));
            assert!(allowed(pool(&bad, json!({ "finalizers": ["a/b"] }))));
            assert!(!allowed(pool(&worse, json!({}))));
            let deletion = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
            assert!(allowed(pool(&worse, deletion)));
            assert!(allowed(Value::Null), "a deletion");
        }
    }

    #[test]
    fn another_agent_pool_than_before_is_refused_whatever_status_comes_with_it() {
        let found = |pool: &Value| {
            let spec = serde_json::from_value(pool["spec"].clone()).unwrap();
            let mut pool = pool.clone();
            pool["status"] =
                json!({ "queuedJobs": -1, "agentPool": api::AgentPoolStatus::of(&spec) });
            pool
        };
        let former = found(&pool(&spec(), json!({})));
        let changed = |field: &str, value: &str| {
            let mut spec = spec();
            spec[field] = json!(value);
            pool(&spec, json!({}))
        };
        for webhook in [Webhook::Mutating, Webhook::Validating] {
            for moved in [changed("pool", "q"), found(&changed("pool", "q"))] {
                let response = asked(webhook, moved, former.clone());
                assert_eq!(response["allowed"], false, "{response}");
                let cause = &response["status"]["details"]["causes"][0];
                assert_eq!(cause["field"], "spec.pool");
                assert!(
                    cause["message"].as_str().unwrap().contains("put it back"),
                    "{cause}"
                );
            }
            for same in [
                changed("pool", " P "),
                changed("azDoUrl", "https://acme.visualstudio.com"),
                changed("patSecretName", "other"),
            ] {
                assert_eq!(asked(webhook, same, former.clone())["allowed"], true);
            }
            // It got there while no webhook answered.
            let mut strayed = former.clone();
            strayed["spec"]["pool"] = json!("q");
            let back = pool(&spec(), json!({}));
            assert_eq!(asked(webhook, back, strayed)["allowed"], true);
            // What was never found can be corrected.
            let unfound = pool(&spec(), json!({}));
            let corrected = asked(webhook, changed("pool", "q"), unfound);
            assert_eq!(corrected["allowed"], true);
        }
    }

    #[test]
    fn what_the_schema_refuses_anyway_is_left_to_it() {
        let mut odd = spec();
        odd["maxAgents"] = json!("ten");
        let odd = pool(&odd, json!({}));
        assert_eq!(
            asked(Webhook::Mutating, odd.clone(), Value::Null)["allowed"],
            true
        );
        // And what it lets pass all the same cannot be carried out.
        let response = asked(Webhook::Validating, odd, Value::Null);
        assert_eq!(response["allowed"], false);
        assert!(
            response["status"]["message"]
                .as_str()
                .unwrap()
                .contains("cannot read it")
        );
    }

    #[test]
    fn warnings_come_once_and_only_with_a_change() {
        let mut risky = spec();
        risky["azDoUrl"] = json!("http://tfs.example.com/Collection");
        let risky = pool(&risky, json!({}));
        let warned = |webhook, old| asked(webhook, risky.clone(), old).get("warnings").cloned();
        let warnings = warned(Webhook::Validating, Value::Null).unwrap();
        assert!(
            warnings[0].as_str().unwrap().starts_with("spec.azDoUrl: "),
            "{warnings}"
        );
        assert_eq!(warned(Webhook::Mutating, Value::Null), None);
        assert_eq!(warned(Webhook::Validating, risky.clone()), None);
    }

    #[test]
    fn no_question_is_no_answer() {
        assert!(matches!(
            answer(Webhook::Mutating, b"{"),
            Err(Unreadable::Json(_))
        ));
        let empty = br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#;
        assert!(matches!(
            answer(Webhook::Validating, empty),
            Err(Unreadable::NoRequest)
        ));
    }
}
