//! The rules of `validate` and those of the schema refuse the same specs.

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use crate::{
    rules::{fields, spec},
    schema::{cel, object, schema, structure},
};

fn claim() -> impl Strategy<Value = Value> {
    let storage = prop_oneof![
        select(vec![
            "10Gi", "1e3", "lots", "", "5 Gi", "1.5G", ".5Ti", "5.", "-1", "+2k"
        ])
        .prop_map(String::from),
        // No blanks at the ends: the CEL of these tests trims them, the API server's refuses them (a test of the operator).
        "[+-]?[0-9]{0,3}(\\.[0-9]{0,2})?(|Ki|Mi|Gi|n|u|m|k|M|K|B|e3|E|E5|e|E-2|Kb)",
    ];
    (
        select(vec!["a", "b", "c", "A", ""]),
        select(vec!["/a", "/b", "/c", "d", "/e:f"]),
        option::weighted(0.8, storage),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(name, mount_path, storage, create, delete)| {
            let mut claim = json!({
                "name": name,
                "mountPath": mount_path,
                "createPvc": create,
                "deleteWithAgent": delete,
            });
            if let Some(storage) = storage {
                claim["storage"] = storage.into();
            }
            claim
        })
}

fn env() -> impl Strategy<Value = Value> {
    let name = select(vec![
        "A",
        "B",
        "b.c",
        "AZP_URL",
        "AZDO_RUNNER_OWNER",
        "1",
        "",
    ]);
    (name, any::<bool>(), any::<bool>()).prop_map(|(name, value, from)| {
        let mut env = json!({"name": name});
        if value {
            env["value"] = "x".into();
        }
        if from {
            env["valueFrom"] = json!({"secretKeyRef": {"name": "s", "key": "k"}});
        }
        env
    })
}

/// Without what only `validate` knows: cron, time zones.
fn schedule() -> impl Strategy<Value = Value> {
    let duration = prop_oneof![
        select(vec!["10h", "0s", "8784h", "8784h1s", "1.5h", "1d", "", "h"]).prop_map(String::from),
        "([0-9]{0,6}[hms]){1,3}",
    ];
    (
        select(vec!["a", "b", "c", "A"]),
        option::weighted(0.8, duration),
        option::weighted(0.2, select(vec!["0 6 * * *", "0 6 * *"])),
        option::of(0_u32..4),
        option::of(0_u32..4),
    )
        .prop_map(|(name, duration, end, min, max)| {
            let given = [
                ("duration", duration.map(Value::from)),
                ("end", end.map(Value::from)),
                ("minAgents", min.map(Value::from)),
                ("maxAgents", max.map(Value::from)),
            ];
            let mut schedule = json!({"name": name, "start": "0 8 * * *"});
            for (field, value) in given {
                if let Some(value) = value {
                    schedule[field] = value;
                }
            }
            schedule
        })
}

proptest! {
    #[test]
    fn the_schema_refuses_what_validate_refuses(
        (min, max) in (0_u32..4, 0_u32..4),
        env in vec(env(), 0..3),
        claims in vec(claim(), 0..3),
        schedules in vec(schedule(), 0..3),
    ) {
        let mut spec = spec("{}");
        spec["minAgents"] = min.into();
        spec["maxAgents"] = max.into();
        spec["extraEnv"] = env.into();
        spec["pvcs"] = claims.into();
        spec["schedules"] = schedules.into();
        let schema = schema();
        let object = object(&spec);
        let mut refused = structure(&schema, &object);
        refused.extend(cel(&schema, &object));
        let found = fields(&spec);
        prop_assert_eq!(found.is_empty(), refused.is_empty(), "{:?}\n{:?}", found, refused);
    }
}
