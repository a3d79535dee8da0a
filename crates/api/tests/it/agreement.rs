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

proptest! {
    #[test]
    fn the_schema_refuses_what_validate_refuses(
        (min, max) in (0_u32..4, 0_u32..4),
        env in vec(env(), 0..3),
        claims in vec(claim(), 0..3),
    ) {
        let mut spec = spec("{}");
        spec["minAgents"] = min.into();
        spec["maxAgents"] = max.into();
        spec["extraEnv"] = env.into();
        spec["pvcs"] = claims.into();
        let schema = schema();
        let object = object(&spec);
        let mut refused = structure(&schema, &object);
        refused.extend(cel(&schema, &object));
        let found = fields(&spec);
        prop_assert_eq!(found.is_empty(), refused.is_empty(), "{:?}\n{:?}", found, refused);
    }
}
