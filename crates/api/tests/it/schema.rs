//! What an API server would say of an object: the part of structural schemas that the CRD uses, and its CEL rules.

use kube::core::cel::Validator;
use regex::Regex;
use serde_json::Value;

/// The schema that the API server gets.
pub(crate) fn schema() -> Value {
    let crd = serde_json::to_value(api::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// A RunnerPool with this spec, as a user would send it.
pub(crate) fn object(spec: &Value) -> Value {
    serde_json::json!({
        "apiVersion": "devops.opentools.mf/v1",
        "kind": "RunnerPool",
        "metadata": {"name": "web", "namespace": "team"},
        "spec": spec,
    })
}

/// Why CEL refuses the object; empty: it does not. Defaults are applied first, as the API server does.
pub(crate) fn cel(schema: &Value, object: &Value) -> Vec<String> {
    match Validator::new().validate(schema, object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|error| format!("{error:?}"))
            .collect(),
    }
}

/// Why the structure is refused; empty: it is not.
pub(crate) fn structure(schema: &Value, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, object, "", &mut found);
    found
}

fn walk(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for required in list(schema, "required") {
                if !fields.contains_key(required.as_str().unwrap()) {
                    found.push(format!("{path}.{required} is missing"));
                }
            }
            for (name, field) in fields {
                let inner = schema["properties"]
                    .get(name)
                    .unwrap_or(&schema["additionalProperties"]);
                walk(inner, field, &format!("{path}.{name}"), found);
            }
            above(schema, "maxProperties", fields.len(), path, found);
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(&schema["items"], item, &format!("{path}[{i}]"), found);
            }
            above(schema, "maxItems", items.len(), path, found);
            let keys = list(schema, "x-kubernetes-list-map-keys");
            let key = |item: &Value| -> Vec<Value> {
                let keys = keys.iter().map(|key| item[key.as_str().unwrap()].clone());
                keys.collect()
            };
            for (i, item) in items.iter().enumerate() {
                if !keys.is_empty() && items[..i].iter().any(|former| key(former) == key(item)) {
                    found.push(format!("{path}[{i}] is there twice"));
                }
            }
        }
        Value::String(text) => {
            if let Some(pattern) = schema["pattern"].as_str()
                && !Regex::new(pattern).unwrap().is_match(text)
            {
                found.push(format!("{path} does not match {pattern}"));
            }
            let length = text.chars().count();
            above(schema, "maxLength", length, path, found);
            let least = schema["minLength"].as_u64().unwrap_or(0);
            if u64::try_from(length).unwrap() < least {
                found.push(format!("{path} is too short"));
            }
            if schema["enum"]
                .as_array()
                .is_some_and(|all| !all.contains(value))
            {
                found.push(format!("{path} is none of the known values"));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap();
            let least = schema["minimum"].as_f64();
            let most = schema["maximum"].as_f64();
            if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
                found.push(format!("{path} is out of range"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn list<'a>(schema: &'a Value, keyword: &str) -> &'a [Value] {
    schema[keyword].as_array().map_or(&[], Vec::as_slice)
}

fn above(schema: &Value, keyword: &str, count: usize, path: &str, found: &mut Vec<String>) {
    let most = schema[keyword].as_u64().unwrap_or(u64::MAX);
    if u64::try_from(count).unwrap() > most {
        found.push(format!("{path} breaks {keyword}"));
    }
}
