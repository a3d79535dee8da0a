//! What agents can do, as names and values that are compared without regard to case, as Azure DevOps compares them.

use std::collections::BTreeMap;

/// Capabilities whose values are an agent's own, in lower case. Azure DevOps compares them as any other, but no other
/// agent has them.
const OF_ONE_AGENT: [&str; 5] = [
    "agent.name",
    "agent.computername",
    "azp_agent_name",
    "computername",
    "hostname",
];

/// Whether the value of a capability, given by its name in lower case, is an agent's own.
pub(crate) fn is_of_one_agent(key: &str) -> bool {
    OF_ONE_AGENT.contains(&key)
}

/// Names and values. Of two names that differ in case only, the later one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(BTreeMap<String, Capability>);

/// One of them as it was written; it is found by its name in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Capability {
    name: String,
    value: String,
}

impl Capabilities {
    /// What an agent reports, without the values that are its own, so that agents of one image report the same.
    pub fn of_agent<N: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let mut capabilities: Self = pairs.into_iter().collect();
        for own in OF_ONE_AGENT {
            if let Some(capability) = capabilities.0.get_mut(own) {
                capability.value.clear();
            }
        }
        capabilities
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one has this name, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The value of the one of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let capability = match self.0.get(name) {
            // Most are asked for in lower case; no other key equals the name as it is.
            found @ Some(_) => found,
            None => self.0.get(&name.to_lowercase()),
        };
        capability.map(|capability| capability.value.as_str())
    }

    /// Adds one, in place of another of this name.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        self.0
            .insert(name.to_lowercase(), Capability { name, value });
    }

    /// All of them as they were written, in the order of their names in lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .values()
            .map(|capability| (capability.name.as_str(), capability.value.as_str()))
    }

    /// Takes away those whose names stand in the other.
    pub(crate) fn remove_all(&mut self, other: &Self) {
        self.0.retain(|name, _| !other.0.contains_key(name));
    }

    /// Each with its name in lower case, in the order of these.
    pub(crate) fn by_key(&self) -> impl Iterator<Item = (&str, (&str, &str))> {
        self.0.iter().map(|(key, capability)| {
            let pair = (capability.name.as_str(), capability.value.as_str());
            (key.as_str(), pair)
        })
    }

    /// Whether one has this name, given in lower case.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Capabilities {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut capabilities = Self::default();
        capabilities.extend(pairs);
        capabilities
    }
}

impl<N: Into<String>, V: Into<String>> Extend<(N, V)> for Capabilities {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, pairs: I) {
        for (name, value) in pairs {
            self.insert(name, value);
        }
    }
}
