//! The examples as the demonstration uses them. The files stay as a user would write them; what has to differ here is
//! changed in memory, and told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use api::{RunnerPool, RunnerPoolSpec};
use serde_json::{Value, json};

use crate::repository;

/// The RunnerPools of the demonstration: one that runs each job in an agent of its own, one with a warm agent and
/// certificates, one whose agents stay for a while, one that chooses images by demand, and one with profiles.
const FILES: [&str; 5] = [
    "basic.yaml",
    "certificates.yaml",
    "advanced.yaml",
    "capability-aware.yaml",
    "profiles.yaml",
];

/// Instead of the five minutes of the advanced example, which nobody wants to watch: still longer than a few polls, so
/// that agents are seen to take a second job.
const IDLE_SECONDS: u32 = 20;

/// A RunnerPool from a file.
#[derive(Clone, Debug)]
pub(crate) struct Example {
    pub(crate) file: &'static str,
    /// As it is sent, without defaults.
    pub(crate) manifest: Value,
    pub(crate) pool: RunnerPool,
    /// What was changed, for people.
    pub(crate) changes: Vec<String>,
}

pub(crate) fn load() -> Result<Vec<Example>> {
    FILES.into_iter().map(Example::read).collect()
}

/// The basic example, with room for a burst.
pub(crate) fn burst(agents: u16) -> Result<Vec<Example>> {
    let mut example = Example::read("basic.yaml")?;
    example.manifest["spec"]["maxAgents"] = json!(agents);
    example.changes.push(format!("maxAgents: {agents}"));
    example.pool = parse(&example.manifest)?;
    Ok(vec![example])
}

impl Example {
    fn read(file: &'static str) -> Result<Self> {
        let path = repository::root().join("examples").join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut manifest: Value =
            serde_saphyr::from_str(&text).with_context(|| format!("examples/{file} is no YAML"))?;
        let mut changes = Vec::new();
        if parse(&manifest)?.spec.ttl_idle_seconds > IDLE_SECONDS {
            manifest["spec"]["ttlIdleSeconds"] = json!(IDLE_SECONDS);
            changes.push(format!("ttlIdleSeconds: {IDLE_SECONDS}"));
        }
        let pool = parse(&manifest).with_context(|| format!("examples/{file} is no RunnerPool"))?;
        Ok(Self {
            file,
            manifest,
            pool,
            changes,
        })
    }

    /// Agents that it keeps without need, of all profiles.
    pub(crate) fn least(&self) -> usize {
        let profiles = self.spec().all_profiles();
        let least: u32 = profiles.iter().map(|profile| profile.min_agents).sum();
        least as usize
    }

    /// The name of the RunnerPool.
    pub(crate) fn name(&self) -> &str {
        self.pool.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn spec(&self) -> &RunnerPoolSpec {
        &self.pool.spec
    }

    /// The organization that it names: the last part of its URL.
    pub(crate) fn organization(&self) -> &str {
        self.spec()
            .az_do_url
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default()
    }

    /// The manifest, pointed to the organization of that name at another root.
    pub(crate) fn at(&self, root: &str) -> Value {
        let mut manifest = self.manifest.clone();
        manifest["spec"]["azDoUrl"] = json!(format!("{root}{}", self.organization()));
        manifest
    }

    /// The Secrets that it refers to, with made-up values.
    pub(crate) fn secrets(&self, token: &str) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut secrets: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut add = |name: &str, key: &str, value: &str| {
            secrets
                .entry(name.to_owned())
                .or_default()
                .insert(key.to_owned(), value.to_owned());
        };
        let spec = self.spec();
        add(&spec.pat_secret_name, api::names::SECRET_TOKEN_KEY, token);
        for source in &spec.cert_trust_store {
            add(
                &source.secret_name,
                "tls.crt",
                "a certificate, which nobody looks at here\n",
            );
        }
        for variable in &spec.extra_env {
            let reference = variable
                .value_from
                .as_ref()
                .and_then(|source| source.secret_key_ref.as_ref());
            if let Some(reference) = reference {
                add(&reference.name, &reference.key, "a secret");
            }
        }
        secrets
    }

    /// The storage classes that its claims name.
    pub(crate) fn storage_classes(&self) -> BTreeSet<String> {
        self.spec()
            .pvcs
            .iter()
            .filter_map(|claim| claim.storage_class.clone())
            .collect()
    }

    /// What is installed in its images: capabilities by image.
    pub(crate) fn tools(&self) -> impl Iterator<Item = (String, String)> {
        self.spec()
            .capability_images
            .iter()
            .map(|(capability, image)| (image.clone(), capability.clone()))
    }
}

fn parse(manifest: &Value) -> Result<RunnerPool> {
    serde_json::from_value(manifest.clone()).context("not a RunnerPool")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_examples_name_what_they_need() {
        let examples = load().unwrap();
        let advanced = examples
            .iter()
            .find(|example| example.file == "advanced.yaml")
            .unwrap();
        assert_eq!(advanced.organization(), "my-org");
        assert_eq!(
            advanced.at("http://127.0.0.1:1/")["spec"]["azDoUrl"],
            "http://127.0.0.1:1/my-org"
        );
        let secrets = advanced.secrets("token");
        assert_eq!(secrets["pat-token"]["token"], "token");
        assert!(secrets["api-secrets"].contains_key("production-key"));
        assert!(secrets["internal-root-ca"].contains_key("tls.crt"));
        assert_eq!(
            advanced.storage_classes(),
            ["premium-ssd".to_owned()].into()
        );
        assert!(
            advanced
                .tools()
                .any(|tool| tool == ("my-registry/agent:k8s".to_owned(), "kubernetes".to_owned()))
        );
        assert_eq!(advanced.manifest["spec"]["ttlIdleSeconds"], IDLE_SECONDS);
        assert!(
            advanced.manifest["spec"].get("imagePullPolicy").is_none(),
            "defaults are the API server's"
        );
    }
}
