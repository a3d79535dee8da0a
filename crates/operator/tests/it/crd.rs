//! What the API server itself makes of a `RunnerPool`.

use api::RunnerPool;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::bed::Bed;

/// The API server's refusal of a `RunnerPool` with these fields; `None`: it takes it.
async fn refusal(bed: &Bed, fields: Value) -> Option<String> {
    let pool = serde_json::to_value(bed.runner_pool("web", json!({}))).unwrap();
    let mut pool = pool;
    for (key, value) in fields.as_object().unwrap() {
        pool["spec"][key] = value.clone();
    }
    let resource = kube::api::ApiResource::erase::<RunnerPool>(&());
    let pools: Api<kube::api::DynamicObject> =
        Api::namespaced_with(bed.client.clone(), &bed.namespace, &resource);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match pools
        .create(&params, &serde_json::from_value(pool).unwrap())
        .await
    {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => unreachable!("{error}"),
    }
}

/// The API server refuses a `RunnerPool` with these fields, and says so.
async fn refused(bed: &Bed, fields: Value, named: &str) {
    let refusal = refusal(bed, fields.clone()).await;
    let message = refusal.as_ref();
    assert!(
        message.is_some_and(|message| message.contains(named)),
        "{fields}: {refusal:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_refuses_what_breaks_a_rule_and_names_the_field() {
    let bed = Bed::make().await;
    assert_eq!(refusal(&bed, json!({})).await, None);
    let claim = |fields: Value| {
        let mut claim = json!({ "name": "a", "mountPath": "/a", "storage": "1Gi" });
        for (key, value) in fields.as_object().unwrap() {
            claim[key] = value.clone();
        }
        json!({ "pvcs": [claim] })
    };
    let env = |entry: Value| json!({ "extraEnv": [entry] });
    for (fields, named) in [
        (json!({ "azDoUrl": "ftp://x" }), "spec.azDoUrl"),
        (json!({ "pool": " " }), "spec.pool"),
        (json!({ "image": "two words" }), "spec.image"),
        (
            json!({ "imagePullPolicy": "Sometimes" }),
            "spec.imagePullPolicy",
        ),
        (json!({ "maxAgents": 0 }), "spec.maxAgents"),
        (json!({ "minAgents": -1 }), "spec.minAgents"),
        (
            json!({ "minAgents": 3, "maxAgents": 2 }),
            "minAgents must not be above maxAgents",
        ),
        (json!({ "ttlIdleSeconds": -1 }), "spec.ttlIdleSeconds"),
        (
            json!({ "pollIntervalSeconds": 4 }),
            "spec.pollIntervalSeconds",
        ),
        (
            env(json!({ "name": "A" })),
            "exactly one of value and valueFrom",
        ),
        (
            env(json!({ "name": "AZP_TOKEN", "value": "x" })),
            "is set by the operator",
        ),
        (
            env(json!({ "name": "1A", "value": "x" })),
            "spec.extraEnv[0].name",
        ),
        (
            json!({ "extraEnv": [{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }] }),
            "Duplicate value",
        ),
        (
            claim(json!({ "mountPath": "relative" })),
            "spec.pvcs[0].mountPath",
        ),
        (claim(json!({ "storage": null })), "storage is required"),
        (
            claim(json!({ "storage": "1Gi " })),
            "storage must be a quantity",
        ),
        (
            claim(json!({ "storage": "ten" })),
            "storage must be a quantity",
        ),
        (
            claim(json!({ "createPvc": false, "deleteWithAgent": true })),
            "deleteWithAgent needs createPvc",
        ),
        (
            json!({ "pvcs": [
                { "name": "a", "mountPath": "/a", "storage": "1Gi" }, { "name": "b", "mountPath": "/a", "storage": "1Gi" },
            ] }),
            "mountPath must differ",
        ),
        (
            json!({ "certTrustStore": [{ "secretName": "a" }, { "secretName": "a" }] }),
            "Duplicate value",
        ),
        (
            json!({ "securityContext": { "runAsUser": 0 } }),
            "spec.securityContext.runAsUser",
        ),
    ] {
        refused(&bed, fields, named).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_refuses_schedules_that_break_a_rule() {
    let bed = Bed::make().await;
    let schedule = |fields: Value| {
        let mut schedule =
            json!({ "name": "a", "start": "0 8 * * *", "duration": "10h", "minAgents": 1 });
        for (key, value) in fields.as_object().unwrap() {
            schedule[key] = value.clone();
        }
        json!({ "schedules": [schedule] })
    };
    assert_eq!(refusal(&bed, schedule(json!({}))).await, None);
    for (fields, named) in [
        (
            schedule(json!({ "start": "0 8 * *" })),
            "spec.schedules[0].start",
        ),
        (
            schedule(json!({ "duration": "1d" })),
            "spec.schedules[0].duration",
        ),
        (
            schedule(json!({ "duration": "0h" })),
            "duration must be longer than zero",
        ),
        (schedule(json!({ "duration": "99999h" })), "at most 8784h"),
        (
            schedule(json!({ "end": "0 9 * * *" })),
            "exactly one of duration and end",
        ),
        (
            schedule(json!({ "duration": null })),
            "exactly one of duration and end",
        ),
        (
            schedule(json!({ "minAgents": null })),
            "at least one of minAgents and maxAgents",
        ),
        (
            schedule(json!({ "minAgents": 11 })),
            "while a schedule is in force, minAgents must not be above maxAgents",
        ),
    ] {
        refused(&bed, fields, named).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_fields_get_their_documented_defaults_and_nothing_is_pruned() {
    let bed = Bed::make().await;
    let spec = json!({
        "azDoUrl": bed.organization_url(), "pool": "p", "patSecretName": "pat", "image": "agent:1",
        "pvcs": [{ "name": "a", "mountPath": "/a", "storage": "1Gi" }],
        "schedules": [{ "name": "a", "start": "0 8 * * *", "end": "0 18 * * *", "maxAgents": 20 }],
        "initContainer": {}, "securityContext": {},
        "extraEnv": [{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
    });
    let resource = kube::api::ApiResource::erase::<RunnerPool>(&());
    let pools: Api<kube::api::DynamicObject> =
        Api::namespaced_with(bed.client.clone(), &bed.namespace, &resource);
    let pool = json!({
        "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "metadata": { "name": "web" }, "spec": spec,
    });
    let created = pools
        .create(
            &PostParams::default(),
            &serde_json::from_value(pool).unwrap(),
        )
        .await
        .unwrap();
    let seen = &created.data["spec"];
    for (pointer, expected) in [
        ("/maxAgents", json!(10)),
        ("/minAgents", json!(0)),
        ("/ttlIdleSeconds", json!(0)),
        ("/pollIntervalSeconds", json!(5)),
        ("/imagePullPolicy", json!("IfNotPresent")),
        ("/capabilityAware", json!(false)),
        (
            "/schedules/0",
            json!({
                "name": "a", "start": "0 8 * * *", "end": "0 18 * * *", "timeZone": "Etc/UTC", "maxAgents": 20,
            }),
        ),
        ("/initContainer/image", json!("busybox:latest")),
        (
            "/securityContext",
            json!({ "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000 }),
        ),
        ("/pvcs/0/createPvc", json!(true)),
        ("/pvcs/0/optional", json!(false)),
        ("/pvcs/0/deleteWithAgent", json!(false)),
        (
            "/extraEnv/0/valueFrom/fieldRef/fieldPath",
            json!("metadata.name"),
        ),
    ] {
        assert_eq!(seen.pointer(pointer), Some(&expected), "{pointer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_the_columns_that_scripts_rely_on() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    let request = kube::core::Request::new(format!(
        "/apis/devops.opentools.mf/v1/namespaces/{}/runnerpools",
        bed.namespace
    ));
    let mut request = request.list(&ListParams::default()).unwrap();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io"
        .parse()
        .unwrap();
    request.headers_mut().insert("accept", table);
    let table: Value = bed.client.request(request).await.unwrap();
    let columns: Vec<_> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["name"])
        .collect();
    assert_eq!(
        columns,
        [
            "Name",
            "Status",
            "Pool",
            "Organization",
            "Queued",
            "Agents",
            "Running",
            "Age"
        ]
    );
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    let shown = [
        json!("web"),
        json!("Connected"),
        json!("Linux Pool"),
        json!("acme"),
        json!(0),
        json!("0/10"),
        json!(0),
    ];
    assert_eq!(cells[..7], shown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_of_others_are_kept_and_an_invalid_object_is_a_condition() {
    let bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.condition_when("web", "Ready", "True", "AsExpected")
        .await;
    let pools: Api<RunnerPool> = bed.api();
    let foreign = json!({
        "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool",
        "status": { "conditions": [{
            "type": "Audited", "status": "True", "reason": "Checked", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] },
    });
    pools
        .patch_status(
            "web",
            &PatchParams::apply("auditor").force(),
            &Patch::Apply(foreign),
        )
        .await
        .unwrap();
    bed.change("web", json!({ "patSecretName": "missing" }))
        .await;
    let status = bed
        .condition_when("web", "Connected", "False", "SecretUnusable")
        .await;
    assert!(
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Audited"),
        "{status:#?}"
    );
    // What a Pod may have is not in the schema.
    let template =
        json!({ "spec": { "containers": [{ "name": "agent", "image": "x" }], "nodename": "y" } });
    bed.change("web", json!({ "podTemplate": template })).await;
    let says = async |said: &str| {
        bed.status_when("web", said, |status| {
            let conditions = &mut status.conditions.iter();
            let invalid = conditions.any(|condition| {
                condition.type_ == "Degraded" && condition.reason == "InvalidSpec"
            });
            let error = status.last_error.as_ref();
            invalid && error.is_some_and(|error| error.contains(said))
        })
        .await
    };
    says("spec.podTemplate.spec.nodename: is no field of a Pod").await;
    bed.change("web", json!({ "podTemplate": null })).await;
    // The schema lets a URL through that names no organization; the operator says so.
    bed.change("web", json!({ "azDoUrl": "https://dev.azure.com" }))
        .await;
    let status = says("spec.azDoUrl").await;
    let generation = pools.get("web").await.unwrap().metadata.generation;
    assert_eq!(status.observed_generation, generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_are_accepted() {
    let bed = Bed::make().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for document in text.split("\n---\n") {
            let Ok(value) = serde_saphyr::from_str::<Value>(document) else {
                unreachable!("{}", path.display())
            };
            if value["kind"] != "RunnerPool" {
                continue;
            }
            let pool: RunnerPool = serde_json::from_value(value).unwrap();
            assert_eq!(api::validate(&pool.spec), [], "{}", path.display());
            let strict = PatchParams {
                field_manager: Some("test".into()),
                ..PatchParams::default().validation_strict()
            };
            let name = pool.name_any();
            let pools: Api<RunnerPool> = bed.api();
            pools
                .patch(&name, &strict, &Patch::Apply(&pool))
                .await
                .unwrap();
            seen.push(name);
        }
    }
    for name in ["basic-runners", "corporate-runners", "advanced-runners"] {
        assert!(
            seen.iter().any(|seen| seen == name),
            "{name} is not among {seen:?}"
        );
    }
    let pods: Api<Pod> = bed.api();
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty(),
        "no operator runs here"
    );
}
