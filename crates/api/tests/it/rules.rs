//! Each rule, broken alone.

use api::{RunnerPoolSpec, validate};
use serde_json::Value;

use self::Also::{Cel, Nobody, Structure};

use crate::schema::{cel, object, schema, structure};

/// Who refuses a violation besides `validate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Also {
    /// The structure of the schema.
    Structure,
    /// A CEL rule of the schema.
    Cel,
    /// Nobody: only the webhook and the operator know.
    Nobody,
}

/// A spec that is valid, overlaid with `yaml`.
pub(crate) fn spec(yaml: &str) -> Value {
    let base =
        "{azDoUrl: https://dev.azure.com/acme, pool: linux, patSecretName: pat, image: agent:1}";
    let mut spec: Value = serde_saphyr::from_str(base).unwrap();
    let over: Value = serde_saphyr::from_str(yaml).unwrap();
    for (name, value) in over.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

pub(crate) fn fields(spec: &Value) -> Vec<String> {
    let spec: RunnerPoolSpec = serde_json::from_value(spec.clone()).unwrap();
    let violations = validate(&spec);
    violations.into_iter().map(|found| found.field).collect()
}

/// What a user may write, the field that is wrong with it, and who else says so.
const CASES: &[(&str, &str, Also)] = &[
    ("azDoUrl: dev.azure.com/acme", "azDoUrl", Structure),
    ("azDoUrl: ftp://dev.azure.com/acme", "azDoUrl", Structure),
    ("azDoUrl: 'https://dev.azure.com/'", "azDoUrl", Nobody),
    ("azDoUrl: https://u:p@dev.azure.com/acme", "azDoUrl", Nobody),
    (
        "azDoUrl: https://dev.azure.com/acme/project",
        "azDoUrl",
        Nobody,
    ),
    ("pool: ''", "pool", Structure),
    ("pool: '  '", "pool", Structure),
    ("patSecretName: ''", "patSecretName", Structure),
    ("image: ''", "image", Structure),
    ("image: 'agent: 1'", "image", Structure),
    ("image: \"agent\\t1\"", "image", Structure),
    ("maxAgents: 0", "maxAgents", Structure),
    ("{minAgents: 3, maxAgents: 2}", "minAgents", Cel),
    ("minAgents: 11", "minAgents", Cel),
    (
        "schedules: [{name: 'A b', start: 0 8 * * *, duration: 1h, minAgents: 1}]",
        "schedules[0].name",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, minAgents: 1}, {name: a, start: 0 9 * * *, duration: 1h, minAgents: 1}]",
        "schedules[1].name",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * *, duration: 1h, minAgents: 1}]",
        "schedules[0].start",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 0 8 * * *, duration: 1h, minAgents: 1}]",
        "schedules[0].start",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 24 * * *, duration: 1h, minAgents: 1}]",
        "schedules[0].start",
        Nobody,
    ),
    (
        "schedules: [{name: a, start: 0 0 30 2 *, duration: 1h, minAgents: 1}]",
        "schedules[0].start",
        Nobody,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, end: 0 8 * * FUN, minAgents: 1}]",
        "schedules[0].end",
        Nobody,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, minAgents: 1}]",
        "schedules[0]",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, end: 0 9 * * *, minAgents: 1}]",
        "schedules[0]",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1.5h, minAgents: 1}]",
        "schedules[0].duration",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1d, minAgents: 1}]",
        "schedules[0].duration",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: '', minAgents: 1}]",
        "schedules[0].duration",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 0h0m, minAgents: 1}]",
        "schedules[0].duration",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 8784h1s, minAgents: 1}]",
        "schedules[0].duration",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, timeZone: '', minAgents: 1}]",
        "schedules[0].timeZone",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, timeZone: Europe/Bonn, minAgents: 1}]",
        "schedules[0].timeZone",
        Nobody,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h}]",
        "schedules[0]",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, maxAgents: 0}]",
        "schedules[0].maxAgents",
        Structure,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, minAgents: 3, maxAgents: 2}]",
        "schedules[0].minAgents",
        Cel,
    ),
    (
        "schedules: [{name: a, start: 0 8 * * *, duration: 1h, minAgents: 11}]",
        "schedules[0].minAgents",
        Cel,
    ),
    (
        "{minAgents: 3, schedules: [{name: a, start: 0 8 * * *, duration: 1h, maxAgents: 2}]}",
        "schedules[0].maxAgents",
        Cel,
    ),
    ("pollIntervalSeconds: 4", "pollIntervalSeconds", Structure),
    (
        "capabilityImages: {'two words': a:1}",
        "capabilityImages[\"two words\"]",
        Cel,
    ),
    (
        "capabilityImages: {c++: a:1}",
        "capabilityImages[\"c++\"]",
        Cel,
    ),
    (
        "capabilityImages: {java: ''}",
        "capabilityImages[\"java\"]",
        Nobody,
    ),
    (
        "extraEnv: [{name: '', value: x}]",
        "extraEnv[0].name",
        Structure,
    ),
    (
        "extraEnv: [{name: 1A, value: x}]",
        "extraEnv[0].name",
        Structure,
    ),
    (
        "extraEnv: [{name: A=B, value: x}]",
        "extraEnv[0].name",
        Structure,
    ),
    (
        "extraEnv: [{name: .., value: x}]",
        "extraEnv[0].name",
        Nobody,
    ),
    (
        "extraEnv: [{name: A, value: x}, {name: A, value: z}]",
        "extraEnv[1].name",
        Structure,
    ),
    (
        "extraEnv: [{name: AZP_URL, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZP_POOL, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZP_TOKEN, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZP_TOKEN_FILE, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZP_AGENT_NAME, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZP_CAPABILITY, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    (
        "extraEnv: [{name: AZDO_RUNNER_OWNER, value: x}]",
        "extraEnv[0].name",
        Cel,
    ),
    ("extraEnv: [{name: A}]", "extraEnv[0]", Cel),
    (
        "extraEnv: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
        "extraEnv[0]",
        Cel,
    ),
    (
        "pvcs: [{name: '', mountPath: /a, storage: 1Gi}]",
        "pvcs[0].name",
        Structure,
    ),
    (
        "pvcs: [{name: A_b, mountPath: /a, storage: 1Gi}]",
        "pvcs[0].name",
        Structure,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, storage: 1Gi}, {name: a, mountPath: /b, storage: 1Gi}]",
        "pvcs[1].name",
        Structure,
    ),
    (
        "pvcs: [{name: a, mountPath: a, storage: 1Gi}]",
        "pvcs[0].mountPath",
        Structure,
    ),
    (
        "pvcs: [{name: a, mountPath: '/a:b', storage: 1Gi}]",
        "pvcs[0].mountPath",
        Structure,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, storage: 1Gi}, {name: b, mountPath: /a, storage: 1Gi}]",
        "pvcs[1].mountPath",
        Cel,
    ),
    ("pvcs: [{name: a, mountPath: /a}]", "pvcs[0].storage", Cel),
    (
        "pvcs: [{name: a, mountPath: /a, storage: ''}]",
        "pvcs[0].storage",
        Cel,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, storage: lots}]",
        "pvcs[0].storage",
        Cel,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, storage: 10GB}]",
        "pvcs[0].storage",
        Cel,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, storage: lots, createPvc: false}]",
        "pvcs[0].storage",
        Cel,
    ),
    (
        "pvcs: [{name: a, mountPath: /a, createPvc: false, deleteWithAgent: true}]",
        "pvcs[0].deleteWithAgent",
        Cel,
    ),
    (
        "certTrustStore: [{secretName: ''}]",
        "certTrustStore[0].secretName",
        Structure,
    ),
    (
        "certTrustStore: [{secretName: A B}]",
        "certTrustStore[0].secretName",
        Structure,
    ),
    (
        "certTrustStore: [{secretName: a}, {secretName: b}, {secretName: a}]",
        "certTrustStore[2].secretName",
        Structure,
    ),
    (
        "initContainer: {image: ''}",
        "initContainer.image",
        Structure,
    ),
    (
        "securityContext: {runAsUser: 0}",
        "securityContext.runAsUser",
        Structure,
    ),
    (
        "securityContext: {runAsGroup: -1}",
        "securityContext.runAsGroup",
        Structure,
    ),
    (
        "securityContext: {fsGroup: -1}",
        "securityContext.fsGroup",
        Structure,
    ),
];

#[test]
fn each_rule_broken_alone_names_its_field_and_the_schema_agrees() {
    let schema = schema();
    let mut wrong = Vec::new();
    for (yaml, field, also) in CASES {
        let spec = spec(yaml);
        let found = fields(&spec);
        if found != [format!("spec.{field}")] {
            wrong.push(format!("{yaml}: validate finds {found:?}"));
        }
        let object = object(&spec);
        let structure = structure(&schema, &object);
        let cel = cel(&schema, &object);
        let agrees = match also {
            Structure => !structure.is_empty(),
            Cel => structure.is_empty() && !cel.is_empty(),
            Nobody => structure.is_empty() && cel.is_empty(),
        };
        if !agrees {
            wrong.push(format!("{yaml}: {also:?}, but {structure:?} and {cel:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_allowed_is_allowed_by_all() {
    let schema = schema();
    for yaml in [
        "azDoUrl: ' https://acme.visualstudio.com/ '",
        "azDoUrl: http://127.0.0.1:8080/acme",
        "pool: My Linux Pool",
        "{minAgents: 2, maxAgents: 2}",
        "ttlIdleSeconds: 0",
        "schedules: [{name: a, start: ' 0  8 * * MON-FRI ', duration: 8784h, timeZone: europe/berlin, minAgents: 10}]",
        "schedules: [{name: a, start: 0 0 29 2 *, end: 59 23 L * 5#2, minAgents: 11, maxAgents: 11}]",
        "{minAgents: 3, schedules: [{name: a, start: 0 8 * * *, duration: 8h30m, minAgents: 0, maxAgents: 2}]}",
        "pollIntervalSeconds: 5",
        "capabilityImages: {java: a:java, node.js: a:node}",
        "extraEnv: [{name: A, value: ''}, {name: a.b-c_d, valueFrom: {configMapKeyRef: {name: c, key: k}}}]",
        "extraEnv: [{name: AZP_WORK, value: /work}]",
        "pvcs: [{name: a, mountPath: /a, storage: 1.5Gi}, {name: b, mountPath: /b, createPvc: false, optional: true}]",
        "pvcs: [{name: a, mountPath: /a, storage: '1e9'}, {name: b, mountPath: /b, storage: '1073741824'}]",
        "certTrustStore: [{secretName: corporate-ca}, {secretName: proxy.cert}]",
        "{initContainer: {}, securityContext: {}}",
        "securityContext: {runAsUser: 1, runAsGroup: 0, fsGroup: 0}",
    ] {
        let spec = spec(yaml);
        assert_eq!(fields(&spec), [""; 0], "{yaml}");
        let object = object(&spec);
        assert_eq!(structure(&schema, &object), [""; 0], "{yaml}");
        assert_eq!(cel(&schema, &object), [""; 0], "{yaml}");
    }
}

#[test]
fn a_name_that_does_not_fit_into_a_label_is_refused() {
    let schema = schema();
    let mut pool = object(&spec("{}"));
    pool["metadata"]["name"] = "a".repeat(63).into();
    assert_eq!(cel(&schema, &pool), [""; 0]);
    pool["metadata"]["name"] = "a".repeat(64).into();
    assert_eq!(cel(&schema, &pool).len(), 1);
}
