//! The custom resource definition as the API server gets it.

use serde_json::{Value, json};

use crate::schema::schema;

fn crd() -> Value {
    serde_json::to_value(api::crd()).unwrap()
}

#[test]
fn it_is_the_kind_that_users_have() {
    let spec = &crd()["spec"];
    assert_eq!(spec["group"], "devops.opentools.mf");
    assert_eq!(spec["scope"], "Namespaced");
    assert_eq!(spec["names"]["kind"], "RunnerPool");
    assert_eq!(spec["names"]["plural"], "runnerpools");
    let version = &spec["versions"][0];
    assert_eq!(version["name"], "v1");
    assert_eq!(
        (&version["served"], &version["storage"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(version["subresources"], json!({"status": {}}));
    assert_eq!(spec["versions"].as_array().unwrap().len(), 1);
}

#[test]
fn the_printer_columns_are_the_documented_ones_in_their_order() {
    let crd = crd();
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array();
    let columns: Vec<_> = columns
        .unwrap()
        .iter()
        .map(|column| {
            (
                column["name"].as_str().unwrap(),
                column["jsonPath"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        columns,
        [
            ("Status", ".status.connectionStatus"),
            ("Pool", ".spec.pool"),
            ("Organization", ".status.organizationName"),
            ("Queued", ".status.queuedJobs"),
            ("Agents", ".status.agentsSummary"),
            ("Running", ".status.runningAgents"),
            ("Age", ".metadata.creationTimestamp"),
        ]
    );
}

#[test]
fn absent_fields_get_their_default_from_the_schema() {
    let spec = &schema()["properties"]["spec"];
    let default = |path: &str| {
        let path = format!("/properties/{}", path.replace('.', "/properties/"));
        let path = path.replace("[]", "/items");
        spec.pointer(&path).unwrap()["default"].clone()
    };
    for (path, value) in [
        ("imagePullPolicy", json!("IfNotPresent")),
        ("maxAgents", json!(10)),
        ("minAgents", json!(0)),
        ("ttlIdleSeconds", json!(0)),
        ("pollIntervalSeconds", json!(5)),
        ("capabilityAware", json!(false)),
        ("schedules[].timeZone", json!("Etc/UTC")),
        ("pvcs[].createPvc", json!(true)),
        ("pvcs[].optional", json!(false)),
        ("pvcs[].deleteWithAgent", json!(false)),
        ("initContainer.image", json!("busybox:latest")),
        ("securityContext.runAsUser", json!(1000)),
        ("securityContext.runAsGroup", json!(1000)),
        ("securityContext.fsGroup", json!(1000)),
    ] {
        assert_eq!(default(path), value, "{path}");
    }
    for absent in ["initContainer", "securityContext"] {
        assert_eq!(default(absent), Value::Null, "its presence means something");
    }
}

#[test]
fn exactly_the_fields_without_a_default_are_required() {
    let spec = &schema()["properties"]["spec"];
    let mut required: Vec<_> = spec["required"].as_array().unwrap().clone();
    required.sort_by_key(ToString::to_string);
    assert_eq!(
        json!(required),
        json!(["azDoUrl", "image", "patSecretName", "pool"])
    );
    let status = &schema()["properties"]["status"];
    assert_eq!(
        status["required"],
        Value::Null,
        "a status is written in steps"
    );
}

/// Calls `visit` with the path and the schema of every field below.
fn each_field(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    if let Some(fields) = schema["properties"].as_object() {
        for (name, field) in fields {
            let path = format!("{path}.{name}");
            visit(&path, field);
            each_field(field, &path, visit);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            each_field(&schema[inner], &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn every_field_has_a_description() {
    let mut bare = Vec::new();
    let mut seen = 0;
    each_field(&schema(), "", &mut |path, field| {
        seen += 1;
        let described = field["description"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        if !described {
            bare.push(path.to_owned());
        }
    });
    assert!(seen > 60, "only {seen} fields were visited");
    assert_eq!(bare, [""; 0]);
}

#[test]
fn every_format_is_one_that_the_api_server_knows() {
    let mut formats = Vec::new();
    each_field(&schema(), "", &mut |path, field| {
        if let Some(format) = field["format"].as_str() {
            formats.push((path.to_owned(), format.to_owned()));
        }
    });
    assert!(!formats.is_empty());
    for (path, format) in formats {
        assert!(
            ["int32", "int64", "date-time"].contains(&format.as_str()),
            "{path} has the format {format}"
        );
    }
    assert!(
        !crd().to_string().contains("uint"),
        "also outside of fields"
    );
}

#[test]
fn every_list_of_ours_merges_as_a_map() {
    let mut lists = Vec::new();
    each_field(&schema(), "", &mut |path, field| {
        let ours = path.starts_with(".spec") && !path.contains("valueFrom");
        if field["type"] == "array" && (ours || path == ".status.conditions") {
            let keys = field["x-kubernetes-list-map-keys"].to_string();
            let kind = field["x-kubernetes-list-type"].as_str().unwrap_or("none");
            lists.push(format!("{path} {kind} {keys}"));
        }
    });
    lists.sort();
    assert_eq!(
        lists,
        [
            r#".spec.certTrustStore map ["secretName"]"#,
            r#".spec.extraEnv map ["name"]"#,
            r#".spec.profiles map ["name"]"#,
            r#".spec.pvcs map ["name"]"#,
            r#".spec.schedules map ["name"]"#,
            r#".status.conditions map ["type"]"#,
        ]
    );
}

#[test]
fn lists_and_texts_under_cel_rules_are_bounded() {
    // The API server refuses a rule whose cost it cannot bound.
    let schema = schema();
    for list in ["pvcs", "extraEnv", "schedules", "profiles"] {
        let list = &schema["properties"]["spec"]["properties"][list];
        assert!(list["maxItems"].is_u64(), "{list}");
    }
    let claim = &schema["properties"]["spec"]["properties"]["pvcs"]["items"]["properties"];
    for text in ["mountPath", "storage"] {
        assert!(claim[text]["maxLength"].is_u64(), "{text}");
    }
    let schedule = &schema["properties"]["spec"]["properties"]["schedules"]["items"]["properties"];
    assert!(schedule["duration"]["maxLength"].is_u64());
}
