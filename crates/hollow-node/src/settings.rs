//! What a hollow node is told at its start.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::Runtime;

/// Image tags that name a capability by themselves: `agent:java` has the tool `java`.
const TAGS: [&str; 8] = [
    "docker",
    "dotnet",
    "go",
    "gradle",
    "java",
    "kubernetes",
    "maven",
    "nodejs",
];

/// The settings of a [`crate::HollowNode`].
#[derive(Clone)]
pub struct Settings {
    /// The name of the Node object; nodes of one cluster need different ones.
    pub name: String,
    /// The namespaces whose pods it takes; empty means all. Nodes side by side in one cluster need disjoint ones.
    pub namespaces: Vec<String>,
    /// From the binding of a pod to the start of its containers: pulling images, mounting volumes and so on.
    pub start_delay: Duration,
    /// What is installed in an image, by the image's whole name: capability and its value, as the agent finds them in its
    /// PATH. An image that is not here has the tool that its tag names, if it is a known one (`agent:java`).
    pub tools: BTreeMap<String, BTreeMap<String, String>>,
    /// What runs in a container `agent`.
    pub runtime: Arc<dyn Runtime>,
}

impl Settings {
    /// A node that takes the pods of all namespaces and starts them at once.
    pub fn new(name: impl Into<String>, runtime: Arc<dyn Runtime>) -> Self {
        Self {
            name: name.into(),
            namespaces: Vec::new(),
            start_delay: Duration::ZERO,
            tools: BTreeMap::new(),
            runtime,
        }
    }

    /// The same, for the pods of one more namespace only.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespaces.push(namespace.into());
        self
    }

    /// The same, with a delay before containers start.
    #[must_use]
    pub fn start_delay(mut self, delay: Duration) -> Self {
        self.start_delay = delay;
        self
    }

    pub(crate) fn tools_of(&self, image: &str) -> BTreeMap<String, String> {
        if let Some(tools) = self.tools.get(image) {
            return tools.clone();
        }
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        TAGS.contains(&tag)
            .then(|| (tag.to_owned(), format!("/usr/bin/{tag}")))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Launch, Process};

    struct Nothing;

    impl Runtime for Nothing {
        fn launch(&self, _: Launch) -> Box<dyn Process> {
            unreachable!("nothing is launched here")
        }
    }

    #[test]
    fn an_image_has_the_tools_it_is_given_else_the_one_its_tag_names() {
        let mut settings = Settings::new("node", Arc::new(Nothing));
        settings.tools.insert(
            "agent:java".into(),
            [("java".into(), "/opt/java".into())].into(),
        );
        settings
            .tools
            .insert("agent:nodejs".into(), BTreeMap::new());
        let tools = |image: &str| settings.tools_of(image).into_iter().collect::<Vec<_>>();
        assert_eq!(tools("agent:java"), [("java".into(), "/opt/java".into())]);
        assert_eq!(
            tools("host:5000/agent:dotnet"),
            [("dotnet".into(), "/usr/bin/dotnet".into())]
        );
        assert_eq!(tools("agent:nodejs"), []);
        assert_eq!(tools("agent:latest"), []);
        assert_eq!(tools("java"), []);
    }
}
