//! What becomes of Pods, by a watch: every event counts, and its time is the moment at which it arrives here, since
//! Kubernetes' own times are whole seconds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::{sync::oneshot, task::AbortHandle};

/// One Pod of a RunnerPool, from its creation on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodLife {
    pub(crate) runner_pool: String,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    /// When it was finished (`Succeeded` or `Failed`) or gone, whichever came first: from then on it is no agent.
    pub(crate) ended: Option<Timestamp>,
    pub(crate) gone: Option<Timestamp>,
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
    let events = kube::runtime::watcher(Api::<Pod>::all(client), config).default_backoff();
    let mut events = std::pin::pin!(events);
    let (mut up, mut listed) = (Some(up), BTreeSet::new());
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            // The watch is taken up again by itself, and lists what there is.
            Err(_) => continue,
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
            Event::Delete(pod) => pods.gone(&pod.uid().unwrap_or_default(), now),
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
                    runner_pool: runner_pool.clone(),
                    name: pod.name_any(),
                    created: now,
                    ended: None,
                    gone: None,
                });
                self.lives.len() - 1
            });
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.end(index, now);
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
            if let Some(agents) = self.agents.get_mut(&life.runner_pool) {
                *agents -= 1;
            }
        }
    }
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
    fn a_pod_that_is_missing_from_a_new_list_is_gone() {
        let mut pods = Pods::default();
        pods.seen(&pod("1", "Running"), at(1));
        pods.seen(&pod("2", "Running"), at(1));
        pods.only(&["2".to_owned()].into(), at(9));
        assert_eq!(pods.present("a"), 1);
        assert_eq!(pods.lives()[0].gone, Some(at(9)));
    }
}
