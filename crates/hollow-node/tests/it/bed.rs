//! What each test lies in: a namespace of its own, and a hollow node for it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use control_plane::{ControlPlane, User};
use hollow_node::{HollowNode, Settings};
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::wait::{Condition, await_condition},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::puppet::Puppets;

/// Far more than anything here takes, also on a machine that compiles at the same time.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Bed {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) node: HollowNode,
    pub(crate) puppets: Puppets,
    pub(crate) pods: Api<Pod>,
}

impl Bed {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        Self::with(|settings| settings).await
    }

    pub(crate) async fn with(change: impl FnOnce(Settings) -> Settings) -> anyhow::Result<Self> {
        let control_plane = ControlPlane::shared().await?;
        let namespace = control_plane.namespace("hollow").await?;
        let client = control_plane.client()?;
        let puppets = Puppets::default();
        let settings = Settings::new(format!("node-of-{namespace}"), Arc::new(puppets.clone()))
            .namespace(&namespace);
        let node =
            HollowNode::start(control_plane.client_as(User::HollowNode)?, change(settings)).await?;
        let pods = Api::namespaced(client.clone(), &namespace);
        Ok(Self {
            client,
            namespace,
            node,
            puppets,
            pods,
        })
    }

    /// Creates a pod with a container `agent`, changed by the pieces given.
    pub(crate) async fn create(
        &self,
        name: &str,
        changes: &[(&str, Value)],
    ) -> anyhow::Result<Pod> {
        let mut pod = json!({
            "metadata": { "name": name },
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 3600,
                "containers": [{ "name": "agent", "image": "agent:java", "args": ["--once"] }],
            },
        });
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').context("no pointer")?;
            pod.pointer_mut(parent)
                .with_context(|| format!("nothing at {parent}"))?[key] = value.clone();
        }
        Ok(self
            .pods
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?)
    }

    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.pods.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until the pod is so, and returns it.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        so: impl Fn(&Pod) -> bool,
    ) -> anyhow::Result<Pod> {
        let found = self
            .wait(name, what, |pod: Option<&Pod>| pod.is_some_and(&so))
            .await?;
        found.with_context(|| format!("{name} disappeared"))
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: &str) -> anyhow::Result<Pod> {
        self.until(name, phase, |pod| self::phase(pod) == phase)
            .await
    }

    pub(crate) async fn until_waiting(&self, name: &str, reason: &str) -> anyhow::Result<Pod> {
        let waiting = |pod: &Pod| agent_state(pod)?.waiting?.reason;
        self.until(name, reason, |pod| waiting(pod).as_deref() == Some(reason))
            .await
    }

    pub(crate) async fn until_gone(&self, name: &str) -> anyhow::Result<()> {
        self.wait(name, "gone", |pod: Option<&Pod>| pod.is_none())
            .await
            .map(drop)
    }

    async fn wait(
        &self,
        name: &str,
        what: &str,
        so: impl Condition<Pod>,
    ) -> anyhow::Result<Option<Pod>> {
        let waited = timeout(LONG, await_condition(self.pods.clone(), name, so)).await;
        let Ok(found) = waited else {
            panic!(
                "{name} did not become {what}: {:#?}",
                self.pods.get_opt(name).await?
            );
        };
        Ok(found?)
    }
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub(crate) fn agent_state(pod: &Pod) -> Option<ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|status| status.name == "agent")?
        .state
        .clone()
}

pub(crate) fn exit_code(pod: &Pod) -> Option<i32> {
    Some(agent_state(pod)?.terminated?.exit_code)
}

/// The status of a condition, with its reason.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == kind)?;
    Some((
        condition.status.as_str(),
        condition.reason.as_deref().unwrap_or_default(),
    ))
}
