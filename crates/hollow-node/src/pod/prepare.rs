//! What comes before a pod runs: scheduling, the image, volumes, the environment.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use tokio::time;

use super::{Agent, Exited, Life, spec};
use crate::{
    Launch, What,
    environment::{self, Sources},
    status,
};

/// Between two looks for something that a pod waits for and that does not exist yet. A kubelet looks every second or two,
/// and this one is to be quick.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Life {
    /// Does everything up to the start of the containers, however long that takes. None if the pod is not for this node.
    /// It can be given up at any point and begun again.
    pub(super) async fn start(&mut self) -> Option<Agent> {
        // The sender is the node's and outlives this.
        let _ = self.node.lost.subscribe().wait_for(|lost| !lost).await;
        if !self.bound {
            self.schedule().await;
            if !self
                .node
                .cluster
                .bind(&self.id, &self.node.settings.name)
                .await
            {
                return None;
            }
            self.bound = true;
        }
        self.started = Timestamp::now();
        if !self.node.settings.start_delay.is_zero() {
            self.report_waiting("ContainerCreating", "").await;
            time::sleep(self.node.settings.start_delay).await;
        }
        if let Some((rule, What::ImagePullBackOff)) = self.fault {
            let image = self
                .agent_container()
                .and_then(|agent| agent.image.as_deref())
                .unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\"");
            self.report_waiting("ImagePullBackOff", &message).await;
            self.node.rules.retracted(rule).await;
        }
        self.mount().await;
        let agent = self.create_container().await;
        self.started = Timestamp::now();
        Some(agent)
    }

    /// Waits until a scheduler would have found a node.
    async fn schedule(&self) {
        if let Some((rule, What::HangPending)) = self.fault {
            let message = "0/1 nodes are available: 1 Insufficient cpu.";
            self.node
                .cluster
                .report(&self.id, status::unschedulable(message))
                .await;
            self.node.rules.retracted(rule).await;
        }
        let mut reported = None;
        while let Some(message) = self.unusable_claim().await {
            if reported.as_ref() != Some(&message) {
                self.node
                    .cluster
                    .report(&self.id, status::unschedulable(&message))
                    .await;
                reported = Some(message);
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What a scheduler says of the first claim that cannot be used yet.
    async fn unusable_claim(&self) -> Option<String> {
        for claim in volumes(&self.pod).filter_map(|volume| volume.persistent_volume_claim.as_ref())
        {
            let name = &claim.claim_name;
            let Some(found) = self.node.cluster.claim(&self.id.namespace, name).await else {
                return Some(format!(
                    "0/1 nodes are available: persistentvolumeclaim \"{name}\" not found."
                ));
            };
            if found.metadata.deletion_timestamp.is_some() {
                return Some(format!(
                    "0/1 nodes are available: persistentvolumeclaim \"{name}\" is being deleted."
                ));
            }
            if found.status.and_then(|status| status.phase).as_deref() != Some("Bound") {
                return Some(
                    "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
                        .into(),
                );
            }
        }
        None
    }

    /// Waits until all Secrets and config maps exist that the pod mounts, as `ContainerCreating`, like a kubelet.
    async fn mount(&self) {
        let mut reported = false;
        while self.missing_volume().await {
            if !reported {
                self.report_waiting("ContainerCreating", "").await;
                reported = true;
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn missing_volume(&self) -> bool {
        let (cluster, namespace) = (&self.node.cluster, &self.id.namespace);
        let (mut secrets, mut config_maps) = (BTreeSet::new(), BTreeSet::new());
        for volume in volumes(&self.pod) {
            let projected = || {
                volume
                    .projected
                    .iter()
                    .flat_map(|projected| projected.sources.iter().flatten())
            };
            let whole = volume
                .secret
                .as_ref()
                .map(|secret| (secret.secret_name.as_deref(), secret.optional));
            let parts = projected().filter_map(|source| source.secret.as_ref());
            let named = whole
                .into_iter()
                .chain(parts.map(|secret| (Some(secret.name.as_str()), secret.optional)));
            secrets.extend(
                named
                    .filter(|(_, optional)| *optional != Some(true))
                    .filter_map(|(name, _)| name),
            );

            let whole = volume
                .config_map
                .as_ref()
                .map(|map| (map.name.as_str(), map.optional));
            let parts = projected().filter_map(|source| source.config_map.as_ref());
            let named = whole
                .into_iter()
                .chain(parts.map(|map| (map.name.as_str(), map.optional)));
            config_maps.extend(
                named
                    .filter(|(_, optional)| *optional != Some(true))
                    .map(|(name, _)| name),
            );
        }
        for secret in secrets {
            if cluster.secret(namespace, secret).await.is_none() {
                return true;
            }
        }
        for config_map in config_maps {
            if cluster.config_map(namespace, config_map).await.is_none() {
                return true;
            }
        }
        false
    }

    /// Starts the agent as soon as its environment can be resolved.
    async fn create_container(&self) -> Agent {
        if let Some((_, What::CrashAtStart)) = self.fault {
            return Some(Box::new(Exited(1)));
        }
        let container = self.agent_container()?;
        let mut reported = None;
        loop {
            match self.resolve(container).await {
                Ok((env, args)) => {
                    let image = container.image.as_deref().unwrap_or_default();
                    let tools = self.node.settings.tools_of(image);
                    let launch = Launch {
                        env,
                        args,
                        tools,
                        host_name: self.id.name.clone(),
                    };
                    return Some(self.node.settings.runtime.launch(launch));
                }
                Err(message) if reported.as_ref() != Some(&message) => {
                    self.report_waiting("CreateContainerConfigError", &message)
                        .await;
                    reported = Some(message);
                }
                Err(_) => {}
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn resolve(
        &self,
        container: &Container,
    ) -> Result<(environment::Data, Vec<String>), String> {
        let mut sources = Sources {
            node_name: self.node.settings.name.clone(),
            pod_ip: self.addresses.pod.clone(),
            host_ip: self.addresses.host.clone(),
            ..Sources::default()
        };
        let (secrets, config_maps) = environment::references(container);
        for name in secrets {
            let found = self.node.cluster.secret(&self.id.namespace, name).await;
            sources
                .secrets
                .extend(found.map(|data| (name.to_owned(), data)));
        }
        for name in config_maps {
            let found = self.node.cluster.config_map(&self.id.namespace, name).await;
            sources
                .config_maps
                .extend(found.map(|data| (name.to_owned(), data)));
        }
        environment::resolve(&self.pod, container, &sources)
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    spec(pod)
        .into_iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
}
