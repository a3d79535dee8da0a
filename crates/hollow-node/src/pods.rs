//! The pods that the node has: a watch finds them, and each gets a task.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    api::PodId,
    pod::{self, Command, Node},
};

/// The pods that the node has and that are not finished, by uid.
#[derive(Clone, Default)]
pub(crate) struct Pods(Arc<Mutex<HashMap<String, Entry>>>);

struct Entry {
    id: PodId,
    /// The grace period that the pod was last told of.
    grace: Option<i64>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Pods {
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends the tasks of all pods, and their processes.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is such a pod.
    pub(crate) fn tell(&self, namespace: &str, name: &str, command: Command) -> bool {
        let pods = self.lock();
        let entry = pods
            .values()
            .find(|entry| entry.id.namespace == namespace && entry.id.name == name);
        entry.is_some_and(|entry| entry.commands.send(command).is_ok())
    }

    pub(crate) fn tell_all(&self, command: Command) {
        for entry in self.lock().values() {
            let _ = entry.commands.send(command); // a pod that is just ending hears nothing
        }
    }

    fn gone(&self, uid: &str) {
        if let Some(entry) = self.lock().remove(uid) {
            let _ = entry.commands.send(Command::Gone);
        }
    }
}

/// Follows the pods of the node's namespaces and keeps a task for each.
pub(crate) async fn follow(node: Arc<Node>, pods: Pods, tasks: TaskTracker) {
    let addresses = AtomicU32::new(1);
    let mut events = pod_events(&node);
    let mut listed: HashMap<String, HashSet<String>> = HashMap::new();
    while let Some((namespace, event)) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listed.insert(namespace, HashSet::new());
            }
            Ok(watcher::Event::InitApply(pod)) => {
                listed.entry(namespace).or_default().extend(pod.uid());
                admit(&node, &pods, &tasks, &addresses, pod);
            }
            Ok(watcher::Event::InitDone) => {
                let listed = listed.remove(&namespace).unwrap_or_default();
                let missed = |entry: &&Entry| {
                    (namespace.is_empty() || entry.id.namespace == namespace)
                        && !listed.contains(&entry.id.uid)
                };
                let missed: Vec<String> = pods
                    .lock()
                    .values()
                    .filter(missed)
                    .map(|entry| entry.id.uid.clone())
                    .collect();
                for uid in missed {
                    pods.gone(&uid);
                }
            }
            Ok(watcher::Event::Apply(pod)) => admit(&node, &pods, &tasks, &addresses, pod),
            Ok(watcher::Event::Delete(pod)) => {
                pods.gone(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            Err(error) => tracing::warn!(%error, "The watch for pods failed, trying again"),
        }
    }
}

/// Events of the pods that are not finished, each with the namespace of its watch (empty: all).
fn pod_events(
    node: &Node,
) -> impl Stream<Item = (String, watcher::Result<watcher::Event<Pod>>)> + Unpin + use<> {
    let client = &node.cluster.client;
    let watch = |namespace: &str| {
        let pods: Api<Pod> = match namespace {
            "" => Api::all(client.clone()),
            namespace => Api::namespaced(client.clone(), namespace),
        };
        // A pod that finishes leaves the selection, and its entry goes: what is finished needs no node.
        let unfinished =
            watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let namespace = namespace.to_owned();
        let trimmed = watcher(pods, unfinished)
            .default_backoff()
            .map(move |event| {
                let event = event.map(|event| {
                    event.modify(|pod| {
                        pod.metadata.managed_fields = None;
                        pod.status = None; // it is this node that writes it
                    })
                });
                (namespace.clone(), event)
            });
        trimmed.boxed()
    };
    let namespaces = &node.settings.namespaces;
    let all = [String::new()];
    let namespaces = if namespaces.is_empty() {
        all.as_slice()
    } else {
        namespaces.as_slice()
    };
    stream::select_all(namespaces.iter().map(|namespace| watch(namespace)))
}

/// Takes a new pod, and tells a known one if it is being deleted.
fn admit(node: &Arc<Node>, pods: &Pods, tasks: &TaskTracker, addresses: &AtomicU32, pod: Pod) {
    let assigned = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if assigned.is_some_and(|assigned| assigned != node.settings.name) {
        return;
    }
    let Some(uid) = pod.uid() else { return };
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let grace = pod
        .metadata
        .deletion_grace_period_seconds
        .filter(|_| deleted);
    let mut entries = pods.lock();
    let entry = entries.entry(uid.clone()).or_insert_with(|| {
        let id = PodId {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid,
        };
        let address = pod_ip(addresses.fetch_add(1, Ordering::Relaxed));
        let (commands, inbox) = mpsc::unbounded_channel();
        tasks.spawn(pod::live(node.clone(), pod, id.clone(), address, inbox));
        Entry {
            id,
            grace: None,
            commands,
        }
    });
    if let Some(seconds) = grace.filter(|seconds| entry.grace != Some(*seconds)) {
        entry.grace = grace;
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let _ = entry.commands.send(Command::Delete(grace)); // a pod that has ended by itself needs no telling
    }
}

/// Addresses from 198.19.0.0/16, over again after 65 536 pods.
fn pod_ip(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("198.19.{high}.{low}")
}
