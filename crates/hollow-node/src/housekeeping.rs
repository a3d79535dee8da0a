//! Pods that have finished and are to be deleted, but stay: whoever deleted them was cut off in the middle, and the API
//! server left the rest to the node. A kubelet removes them, and so does this one; it looks at nothing else of a pod.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use tokio::time;

use crate::{api::PodId, pod::Node};

/// A kubelet's own period. Meanwhile nearly all of them are gone, as the API server carries a deletion out by itself.
const PERIOD: Duration = Duration::from_secs(2);

/// Removes such pods, for ever.
pub(crate) async fn keep(node: Arc<Node>) {
    let mut events = finished(&node);
    let mut going: HashMap<String, (PodId, Instant)> = HashMap::new();
    let mut period = time::interval(PERIOD);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    let uid = pod.uid().unwrap_or_default();
                    if pod.metadata.deletion_timestamp.is_some() {
                        let id = PodId {
                            namespace: pod.namespace().unwrap_or_default(),
                            name: pod.name_any(),
                            uid: uid.clone(),
                        };
                        going.entry(uid).or_insert((id, Instant::now()));
                    }
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    going.remove(&pod.uid().unwrap_or_default());
                }
                // One that went unheard of is no longer there to be removed.
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "The watch for finished pods failed, trying again");
                }
                None => return,
            },
            _ = period.tick() => {
                if *node.lost.borrow() {
                    continue;
                }
                let due: Vec<PodId> = going
                    .extract_if(|_, (_, since)| since.elapsed() >= PERIOD)
                    .map(|(_, (id, _))| id)
                    .collect();
                for id in due {
                    node.cluster.remove(&id).await;
                }
            }
        }
    }
}

/// Events of the node's pods that have finished.
fn finished(
    node: &Node,
) -> impl Stream<Item = watcher::Result<watcher::Event<PartialObjectMeta<Pod>>>> + Unpin + use<> {
    let client = &node.cluster.client;
    let apis: Vec<Api<PartialObjectMeta<Pod>>> = if node.settings.namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        let namespaces = node.settings.namespaces.iter();
        namespaces
            .map(|namespace| Api::namespaced(client.clone(), namespace))
            .collect()
    };
    let ours = format!("spec.nodeName={}", node.settings.name);
    // A field selector knows no "or".
    let watches = apis.into_iter().flat_map(|api| {
        ["Succeeded", "Failed"].map(|phase| {
            let fields = format!("{ours},status.phase={phase}");
            let config = watcher::Config::default().fields(&fields);
            watcher(api.clone(), config).default_backoff().boxed()
        })
    });
    stream::select_all(watches)
}
