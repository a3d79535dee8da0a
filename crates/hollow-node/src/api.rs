//! The API server as a node uses it: few calls, each naming what it wants, none beyond a limit at a time.

use std::{collections::BTreeMap, time::Duration};

use futures::TryFutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time};

use crate::environment::Data;

/// Requests under way at a time. An API server on two cores does most a second at about 32; more only wait in its queue,
/// and each needs a connection of its own.
const REQUESTS_AT_A_TIME: usize = 32;

/// Before a request that failed for no fault of its own is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Which pod is meant: never another one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodId {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

pub(crate) struct Cluster {
    pub(crate) client: Client,
    gate: Semaphore,
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            gate: Semaphore::new(REQUESTS_AT_A_TIME),
        }
    }

    /// Assigns the pod to the node; whether it is the node's now.
    pub(crate) async fn bind(&self, pod: &PodId, node: &str) -> bool {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let parameters = PostParams::default();
        let request =
            || pods.create_subresource::<Value, Value>("binding", &pod.name, &parameters, &binding);
        let bound = self.call(request).await.is_some();
        // A refusal may mean that an earlier attempt took effect and its answer was lost.
        bound || {
            let current = self.call(|| pods.get(&pod.name)).await;
            current.is_some_and(|current| {
                current.metadata.uid.as_ref() == Some(&pod.uid)
                    && current.spec.and_then(|spec| spec.node_name).as_deref() == Some(node)
            })
        }
    }

    /// Writes a part of the pod's status; nothing if the pod is gone. Whether the pod is to be deleted.
    pub(crate) async fn report(&self, pod: &PodId, status: Value) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        // The uid makes it a conflict to hit a namesake. Conditions merge by their type, as a kubelet's patch has it.
        let patch = Patch::Strategic(json!({ "metadata": { "uid": pod.uid }, "status": status }));
        let parameters = PatchParams::default();
        let written = self
            .call(|| pods.patch_status(&pod.name, &parameters, &patch))
            .await;
        written.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// Removes the pod object for good.
    pub(crate) async fn remove(&self, pod: &PodId) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.call(|| pods.delete(&pod.name, &parameters).map_ok(drop))
            .await;
    }

    /// The values of a Secret, if there is one.
    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Option<Data> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = self.call(|| secrets.get(name)).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(
            secret
                .data
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, text(&value.0)))
                .collect(),
        )
    }

    /// The values of a `ConfigMap`, if there is one.
    pub(crate) async fn config_map(&self, namespace: &str, name: &str) -> Option<Data> {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        self.call(|| config_maps.get(name))
            .await
            .map(|map| map.data.unwrap_or_else(BTreeMap::new))
    }

    /// The claim, if there is one.
    pub(crate) async fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        self.call(|| claims.get(name)).await
    }

    /// Sends a request until it is answered; none if there is no such thing (404), if it is no longer the one that was meant
    /// (409), or if no repetition would change the refusal.
    async fn call<T, F: Future<Output = kube::Result<T>>>(
        &self,
        request: impl Fn() -> F,
    ) -> Option<T> {
        loop {
            let answer = {
                // It is never closed, so there always is a permit in the end.
                let _permit = self.gate.acquire().await;
                // Boxed, since many pods wait here at a time and each request has a type, and a size, of its own.
                Box::pin(request()).await
            };
            match answer {
                Ok(answer) => return Some(answer),
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                    return None;
                }
                Err(error) if !is_passing(&error) => {
                    tracing::warn!(%error, "A request of the hollow node was refused");
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%error, "A request of the hollow node failed, trying again");
                    time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }
}

/// Whether the same request may succeed later: no connection, or a server that is busy or starting.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}
