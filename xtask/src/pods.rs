//! What becomes of Pods, by a watch: every event counts, and its time is the moment at which it arrives here, since
//! Kubernetes' own times are whole seconds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use tokio::{sync::oneshot, task::AbortHandle, time};

/// Between two tries to watch.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// One Pod of a RunnerPool, from its creation on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodLife {
    pub(crate) namespace: String,
    pub(crate) runner_pool: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Uid of the RunnerPool that it belongs to, empty for none.
    pub(crate) owner: String,
    pub(crate) created: Timestamp,
    /// When it was finished (`Succeeded` or `Failed`) or gone, whichever came first: from then on it is no agent.
    pub(crate) ended: Option<Timestamp>,
    pub(crate) gone: Option<Timestamp>,
    /// `creationTimestamp`: the API server's own time, in whole seconds.
    pub(crate) created_at: Timestamp,
    /// Resource versions, which order all changes in the cluster: when it was first seen, when it was last seen, and when it
    /// ended. An end that went unseen while the watch was cut has the version at which the Pod was last seen.
    pub(crate) first_version: u64,
    pub(crate) last_version: u64,
    pub(crate) end_version: Option<u64>,
}

/// All Pods so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    lives: Vec<PodLife>,
    by_uid: HashMap<String, usize>,
    agents: BTreeMap<String, usize>,
    most: BTreeMap<String, usize>,
}

/// A watch that runs until it is dropped.
pub(crate) struct PodWatch {
    pods: Arc<Mutex<Pods>>,
    task: AbortHandle,
}

impl PodWatch {
    /// Begins to watch; returns once the watch is up, so that nothing that is made afterwards is missed.
    pub(crate) async fn start(client: Client) -> Self {
        let pods = Arc::new(Mutex::new(Pods::default()));
        let (sender, up) = oneshot::channel();
        let task = tokio::spawn(follow(client, pods.clone(), sender)).abort_handle();
        // It fails only with the task, and then there is nothing to wait for.
        let _ = up.await;
        Self { pods, task }
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Pods) -> T) -> T {
        read(&self.pods.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: Client, pods: Arc<Mutex<Pods>>, up: oneshot::Sender<()>) {
    let config = watcher::Config::default().labels(api::names::LABEL_RUNNER_POOL);
    // Without a wait that grows: what happens while the watch is down is seen less well.
    let mut events = std::pin::pin!(kube::runtime::watcher(Api::<Pod>::all(client), config));
    let (mut up, mut listed) = (Some(up), BTreeSet::new());
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            // The watch is taken up again by itself, and lists what there is if it must.
            Err(_) => {
                time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        let now = Timestamp::now();
        let mut pods = pods.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.insert(pod.uid().unwrap_or_default());
                pods.seen(&pod, now);
            }
            Event::InitDone => {
                pods.only(&listed, now);
                let _ = up.take().map(|up| up.send(()));
            }
            Event::Apply(pod) => pods.seen(&pod, now),
            Event::Delete(pod) => {
                pods.note_version(&pod);
                pods.gone(&pod.uid().unwrap_or_default(), now);
            }
        }
    }
}

impl Pods {
    pub(crate) fn lives(&self) -> &[PodLife] {
        &self.lives
    }

    /// The agents of a RunnerPool now: Pods that are not finished.
    pub(crate) fn agents(&self, runner_pool: &str) -> usize {
        self.agents.get(runner_pool).copied().unwrap_or_default()
    }

    /// The most agents that a RunnerPool had at any time.
    pub(crate) fn most(&self, runner_pool: &str) -> usize {
        self.most.get(runner_pool).copied().unwrap_or_default()
    }

    /// The Pods of a RunnerPool that exist, finished ones included.
    pub(crate) fn present(&self, runner_pool: &str) -> usize {
        self.lives
            .iter()
            .filter(|life| life.runner_pool == runner_pool && life.gone.is_none())
            .count()
    }

    fn seen(&mut self, pod: &Pod, now: Timestamp) {
        let Some(runner_pool) = pod.labels().get(api::names::LABEL_RUNNER_POOL) else {
            return;
        };
        let index = *self
            .by_uid
            .entry(pod.uid().unwrap_or_default())
            .or_insert_with(|| {
                let agents = self.agents.entry(runner_pool.clone()).or_default();
                *agents += 1;
                let most = self.most.entry(runner_pool.clone()).or_default();
                *most = (*most).max(*agents);
                self.lives.push(PodLife {
                    namespace: pod.namespace().unwrap_or_default(),
                    runner_pool: runner_pool.clone(),
                    name: pod.name_any(),
                    uid: pod.uid().unwrap_or_default(),
                    owner: owner(pod),
                    created: now,
                    created_at: pod.creation_timestamp().map_or(now, |time| time.0),
                    first_version: version(pod),
                    ..PodLife::default()
                });
                self.lives.len() - 1
            });
        self.note_version(pod);
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.end(index, now);
        }
    }

    fn note_version(&mut self, pod: &Pod) {
        if let Some(&index) = pod
            .metadata
            .uid
            .as_ref()
            .and_then(|uid| self.by_uid.get(uid))
        {
            self.lives[index].last_version = version(pod);
        }
    }

    fn gone(&mut self, uid: &str, now: Timestamp) {
        if let Some(&index) = self.by_uid.get(uid) {
            self.end(index, now);
            self.lives[index].gone.get_or_insert(now);
        }
    }

    /// A new list: whatever is not in it went unseen.
    fn only(&mut self, listed: &BTreeSet<String>, now: Timestamp) {
        let missing: Vec<String> = self
            .by_uid
            .keys()
            .filter(|uid| !listed.contains(*uid))
            .cloned()
            .collect();
        for uid in missing {
            self.gone(&uid, now);
        }
    }

    fn end(&mut self, index: usize, now: Timestamp) {
        let life = &mut self.lives[index];
        if life.ended.is_none() {
            life.ended = Some(now);
            life.end_version = Some(life.last_version);
            if let Some(agents) = self.agents.get_mut(&life.runner_pool) {
                *agents -= 1;
            }
        }
    }
}

/// Uid of the object that controls the Pod.
fn owner(pod: &Pod) -> String {
    let mut owners = pod.owner_references().iter();
    owners
        .find(|owner| owner.controller == Some(true))
        .map_or_else(String::new, |owner| owner.uid.clone())
}

/// Numbers that can be compared, as Kubernetes has promised since version 1.35.
fn version(pod: &Pod) -> u64 {
    let version = pod.metadata.resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn pod(uid: &str, phase: &str) -> Pod {
        let metadata =
            json!({ "name": format!("pod-{uid}"), "uid": uid, "labels": { "runner-pool": "a" } });
        serde_json::from_value(json!({ "metadata": metadata, "status": { "phase": phase } }))
            .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_most_agents_are_counted_at_every_event_and_finished_pods_are_none() {
        let mut pods = Pods::default();
        pods.seen(&pod("1", "Pending"), at(1));
        pods.seen(&pod("2", "Running"), at(2));
        pods.seen(&pod("2", "Succeeded"), at(3));
        pods.seen(&pod("3", "Pending"), at(4));
        pods.gone("1", at(5));
        pods.gone("2", at(6));
        assert_eq!(
            (pods.agents("a"), pods.most("a"), pods.present("a")),
            (1, 2, 1)
        );
        assert_eq!(
            pods.lives()[1].ended,
            Some(at(3)),
            "finished before it was gone"
        );
        assert_eq!(pods.lives()[1].gone, Some(at(6)));
        assert_eq!((pods.agents("b"), pods.most("b")), (0, 0));
    }

    #[test]
    fn a_pod_knows_its_place_in_the_order_of_changes() {
        let at_version = |version: &str, phase: &str| {
            let mut pod = pod("1", phase);
            pod.metadata.resource_version = Some(version.into());
            pod
        };
        let versions = |pods: &Pods| {
            let life = &pods.lives()[0];
            (life.first_version, life.last_version, life.end_version)
        };
        let mut pods = Pods::default();
        pods.seen(&at_version("7", "Pending"), at(1));
        pods.seen(&at_version("9", "Running"), at(2));
        assert_eq!(versions(&pods), (7, 9, None));
        let mut unseen_end = pods.clone();
        unseen_end.only(&BTreeSet::new(), at(3));
        assert_eq!(versions(&unseen_end), (7, 9, Some(9)));
        pods.seen(&at_version("12", "Failed"), at(3));
        pods.seen(&at_version("15", "Failed"), at(4));
        assert_eq!(versions(&pods), (7, 15, Some(12)));
    }

    #[test]
    fn a_pod_that_is_missing_from_a_new_list_is_gone() {
        let mut pods = Pods::default();
        pods.seen(&pod("1", "Running"), at(1));
        pods.seen(&pod("2", "Running"), at(1));
        pods.only(&["2".to_owned()].into(), at(9));
        assert_eq!(pods.present("a"), 1);
        assert_eq!(pods.lives()[0].gone, Some(at(9)));
    }
}
