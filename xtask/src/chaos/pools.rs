//! The RunnerPools of the chaos: each lives in another way, and together they have what can get into each other's way.

use api::RunnerPool;
use serde_json::{Value, json};

use super::{random::Random, schedule::Kind};

/// Namespaces of the RunnerPools.
pub(crate) const NAMESPACES: [&str; 2] = ["red", "blue"];
/// The organization that has all agent pools.
pub(crate) const ORGANIZATION: &str = "chaos";
/// The Secret with the token, the same in each namespace.
pub(crate) const SECRET: &str = "pat-token";
/// The claim that outlives agents, as `spec.pvcs[].name`.
pub(crate) const KEPT_CLAIM: &str = "kept";

/// A RunnerPool of the chaos.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "agent pool is the term of Azure Pipelines, and not the RunnerPool"
)]
pub(crate) struct Pool {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) agent_pool: &'static str,
    /// What its jobs may demand.
    pub(crate) demands: &'static [&'static str],
    spec: Value,
}

/// Two of a name in two namespaces with one agent pool, two more that share one, and between them: one job per agent, warm
/// agents, agents that stay, claims of both kinds, images by demand.
pub(crate) fn all() -> Vec<Pool> {
    let pool = |namespace, name, agent_pool, demands, spec| Pool {
        namespace,
        name,
        agent_pool,
        demands,
        spec,
    };
    vec![
        pool("red", "once", "plain", &[], json!({ "maxAgents": 4 })),
        pool(
            "blue",
            "once",
            "plain",
            &[],
            json!({ "maxAgents": 3, "minAgents": 1 }),
        ),
        pool(
            "red",
            "lasting",
            "shared",
            &[],
            json!({
                "maxAgents": 3, "ttlIdleSeconds": 10,
                "pvcs": [
                    { "name": KEPT_CLAIM, "mountPath": "/kept", "storage": "1Gi" },
                    { "name": "gone", "mountPath": "/gone", "storage": "1Gi", "deleteWithAgent": true },
                ],
            }),
        ),
        pool(
            "blue",
            "able",
            "shared",
            &["java", "nodejs"],
            json!({
                "maxAgents": 4, "capabilityAware": true,
                "capabilityImages": { "java": "agent:java", "nodejs": "agent:nodejs" },
            }),
        ),
        pool(
            "blue",
            "warm",
            "warm",
            &[],
            json!({
                "maxAgents": 3, "minAgents": 1, "ttlIdleSeconds": 15,
                "pvcs": [{ "name": "gone", "mountPath": "/gone", "storage": "1Gi", "deleteWithAgent": true }],
            }),
        ),
    ]
}

impl Pool {
    /// For people: `namespace/name`.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// As a user would apply it.
    pub(crate) fn manifest(&self, root: &str) -> Value {
        let mut spec = json!({
            "azDoUrl": format!("{root}{ORGANIZATION}"),
            "pool": self.agent_pool,
            "patSecretName": SECRET,
            "image": "agent:1",
        });
        if let (Some(spec), Some(own)) = (spec.as_object_mut(), self.spec.as_object()) {
            spec.extend(own.clone());
        }
        json!({
            "apiVersion": "devops.opentools.mf/v1",
            "kind": "RunnerPool",
            "metadata": { "namespace": self.namespace, "name": self.name },
            "spec": spec,
        })
    }
}

/// What an edit of that kind changes, as a merge patch; none for a kind that is no edit.
pub(crate) fn edit(kind: Kind, pool: &RunnerPool, number: u64) -> Option<Value> {
    let mut random = Random::new(number);
    let spec = &pool.spec;
    let change = match kind {
        Kind::ImageEdited => json!({ "image": format!("agent:{}", random.between(2, 999)) }),
        // Never below two, so that some jobs run beside each other whatever is edited.
        Kind::MaximumEdited => {
            let least = spec.min_agents.max(2);
            json!({ "maxAgents": random.between(least, least + 3) })
        }
        Kind::MinimumEdited => json!({ "minAgents": random.between(0, spec.max_agents.min(2)) }),
        Kind::EnvironmentEdited => json!({
            "extraEnv": [{ "name": "BUILD", "value": random.between(1, 999).to_string() }],
        }),
        Kind::IdleTimeEdited => {
            // To and fro between the two ways of life, too.
            let choices = [0, 5, 10, 20];
            json!({ "ttlIdleSeconds": choices[random.below(choices.len())] })
        }
        _ => return None,
    };
    Some(json!({ "spec": change }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn manifests_are_valid_and_stay_so_whatever_is_edited() {
        for pool in all() {
            let manifest = pool.manifest("http://127.0.0.1:1/");
            let parsed: RunnerPool = serde_json::from_value(manifest).unwrap();
            for kind in Kind::ALL {
                for number in 0..50 {
                    let Some(patch) = edit(kind, &parsed, number) else {
                        continue;
                    };
                    let mut spec = serde_json::to_value(&parsed.spec).unwrap();
                    let changes = patch["spec"].as_object().unwrap().clone();
                    spec.as_object_mut().unwrap().extend(changes);
                    let spec: api::RunnerPoolSpec = serde_json::from_value(spec).unwrap();
                    assert!(
                        spec.min_agents <= spec.max_agents,
                        "{kind} of {}",
                        pool.title()
                    );
                }
            }
        }
    }
}
