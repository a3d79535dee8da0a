//! `spec.profiles`: kinds of agents of one RunnerPool.
#![expect(
    unreachable_pub,
    reason = "the derive of KubeSchema repeats each type inside a function"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{PodTemplate, RunnerPoolSpec, names};

/// A kind of agent: an image and what it can do. A job goes to the first profile that meets all its demands; jobs that
/// demand nothing that a profile declares go to the RunnerPool's own `image`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.name != 'base'")
        .message("base is the profile of spec.image; choose another name")
        .field_path(".name"),
    validation = Rule::new("!has(self.maxAgents) || self.minAgents <= self.maxAgents")
        .message("minAgents must not be above maxAgents")
        .field_path(".minAgents")
)]
pub struct ProfileSpec {
    /// Its name: value of the label `capability` and of the variable `AZP_CAPABILITY`, and part of its placeholder's name.
    #[schemars(
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"),
        length(max = 63)
    )]
    pub name: String,
    /// What its agents can do, beside what they report themselves. Those whose name can be one become environment
    /// variables, which agents report.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(
        validation = Rule::new("self.all(name, size(name) <= 256 && name.matches('^[^\\\\s-]\\\\S*$'))")
            .message("a capability is named by one word, which does not begin with -")
    )]
    pub capabilities: BTreeMap<String, String>,
    /// Image of its agents; absent: the RunnerPool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\S+$"), length(max = 1024))]
    pub image: Option<String>,
    /// Agents of it that are kept whether or not there is work for them, beside the RunnerPool's `minAgents`.
    #[serde(default)]
    #[schemars(range(max = 10_000))]
    pub min_agents: u32,
    /// Most agents of it that exist at any time; absent: as many as the RunnerPool may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_agents: Option<u32>,
    /// Merged over the Pod of its agents, after the RunnerPool's `podTemplate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

/// A profile as agents are made from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile<'a> {
    /// Its name.
    pub name: &'a str,
    /// What the user says that its agents can do; an empty value stands for any.
    pub capabilities: BTreeMap<&'a str, &'a str>,
    /// Whether its capabilities become environment variables.
    pub in_environment: bool,
    /// Its image.
    pub image: &'a str,
    /// Agents that are kept without need.
    pub min_agents: u32,
    /// Its own maximum.
    pub max_agents: Option<u32>,
    /// What is merged over its Pods, in this order.
    pub templates: Vec<&'a PodTemplate>,
}

impl RunnerPoolSpec {
    /// Every profile: the base, those of `profiles`, and one for each entry of `capabilityImages`.
    pub fn all_profiles(&self) -> Vec<Profile<'_>> {
        let base = Profile {
            name: names::BASE,
            image: &self.image,
            min_agents: self.min_agents,
            templates: self.pod_template.iter().collect(),
            ..Profile::default()
        };
        let listed = self.profiles.iter().map(|profile| Profile {
            name: &profile.name,
            capabilities: profile
                .capabilities
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            in_environment: true,
            image: profile.image.as_deref().unwrap_or(&self.image),
            min_agents: profile.min_agents,
            max_agents: profile.max_agents,
            templates: self
                .pod_template
                .iter()
                .chain(&profile.pod_template)
                .collect(),
        });
        // The base has its image in the spec itself; an entry of that name in the map never had an effect.
        let capable = self.capability_images.iter();
        let capable = capable.filter(|(name, _)| self.capability_aware && *name != names::BASE);
        let capable = capable.map(|(name, image)| Profile {
            name,
            capabilities: BTreeMap::from([(name.as_str(), "")]),
            image,
            templates: self.pod_template.iter().collect(),
            ..Profile::default()
        });
        std::iter::once(base).chain(listed).chain(capable).collect()
    }

    /// The profile of this name; the base if there is none.
    pub fn profile(&self, name: &str) -> Profile<'_> {
        let mut profiles = self.all_profiles();
        let position = profiles.iter().position(|profile| profile.name == name);
        profiles.swap_remove(position.unwrap_or(0))
    }
}

impl<'a> Profile<'a> {
    /// Whether its agents run on Windows: as the last template says that names an operating system.
    pub fn is_windows(&self) -> bool {
        let mut templates = self.templates.iter().rev();
        let named = templates.find_map(|template| template.is_windows());
        named.unwrap_or(false)
    }

    /// Environment variables that tell its agents, and so Azure DevOps, what they can do: names that a shell keeps.
    pub fn environment(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let capabilities = self.capabilities.iter().filter(|_| self.in_environment);
        let capabilities = capabilities.map(|(name, value)| (*name, *value));
        capabilities.filter(|(name, _)| is_variable(name))
    }
}

/// A name that a POSIX shell hands on.
fn is_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit())
}
