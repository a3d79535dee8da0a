//! Mirrors of Pods and claims: a watch feeds each, in a compact form, and the operator adds what it wrote itself, so that it
//! never plans on a cluster that lacks its own last writes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt, runtime::watcher};

/// Namespace and name of a RunnerPool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PoolKey {
    /// That of a RunnerPool, be it readable or not.
    pub fn of(pool: &impl ResourceExt) -> Self {
        Self {
            namespace: pool.namespace().unwrap_or_default(),
            name: pool.name_any(),
        }
    }
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a mirror keeps of an object.
pub(crate) trait Mirrored: Clone + Send + Sync + 'static {
    /// The object as Kubernetes tells it.
    type Object: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + serde::de::DeserializeOwned
        + 'static;

    /// `None` for objects that belong to no RunnerPool.
    fn read(object: &Self::Object) -> Option<(PoolKey, Self)>;
    /// Uid of the object.
    fn uid(&self) -> &str;
    /// Version of the object, which grows with every change (Kubernetes compares resource versions as numbers since 1.35).
    fn version(&self) -> Option<u64>;

    /// Until when its name matters if it goes now: a look that begins later shows all that it did. `watched`: its end was
    /// seen, not only found. `None`: it never matters.
    fn matters_until(&self, _now: Timestamp, _watched: bool) -> Option<Timestamp> {
        None
    }
}

/// Uids of deleted objects that are remembered: an answer to our own write may arrive after the watch told the end.
const TOMBSTONES: usize = 10_000;

/// A mirror of all objects of one kind that belong to RunnerPools.
#[derive(Debug)]
pub(crate) struct Mirror<V>(RwLock<State<V>>);

#[derive(Debug)]
struct State<V> {
    pools: HashMap<PoolKey, BTreeMap<String, V>>,
    tombstones: Tombstones,
    gone: Gone,
    /// Names of objects whose creation had no answer: they may be there.
    doubted: HashMap<PoolKey, BTreeSet<String>>,
}

/// The last deleted objects, by uid.
#[derive(Debug, Default)]
struct Tombstones {
    uids: HashSet<String>,
    /// In the order in which they were deleted.
    order: VecDeque<String>,
}

impl Tombstones {
    /// Remembers the end of an object.
    fn bury(&mut self, uid: &str) {
        if !self.uids.insert(uid.to_owned()) {
            return;
        }
        if self.order.len() == TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        self.order.push_back(uid.to_owned());
    }
}

/// For how long after it mattered the end of an object is remembered; longer than any session of an agent lasts.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(1);

/// Which objects went, and until when that matters.
#[derive(Debug, Default)]
struct Gone {
    names: HashMap<PoolKey, HashMap<String, Timestamp>>,
    /// The latest of each RunnerPool.
    latest: HashMap<PoolKey, Timestamp>,
    /// All names once, to be forgotten in turn.
    turn: VecDeque<(PoolKey, String)>,
}

impl Gone {
    /// Remembers the end of an object that matters until then.
    fn note(&mut self, pool: &PoolKey, name: &str, until: Timestamp, now: Timestamp) {
        let latest = self.latest.entry(pool.clone()).or_insert(until);
        *latest = until.max(*latest);
        let names = self.names.entry(pool.clone()).or_default();
        if let Some(known) = names.get_mut(name) {
            *known = until.max(*known);
        } else {
            names.insert(name.to_owned(), until);
            self.turn.push_back((pool.clone(), name.to_owned()));
        }
        // More than one is added.
        for _ in 0..2 {
            self.take_turn(now);
        }
    }

    /// Forgets the next name if it has not mattered for long.
    fn take_turn(&mut self, now: Timestamp) {
        let Some((pool, name)) = self.turn.pop_front() else {
            return;
        };
        let Some(names) = self.names.get_mut(&pool) else {
            return;
        };
        if names
            .get(&name)
            .is_some_and(|until| now.duration_since(*until) <= REMEMBERED)
        {
            self.turn.push_back((pool, name));
            return;
        }
        names.remove(&name);
        if names.is_empty() {
            self.names.remove(&pool);
        }
    }
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self(RwLock::new(State {
            pools: HashMap::new(),
            tombstones: Tombstones::default(),
            gone: Gone::default(),
            doubted: HashMap::new(),
        }))
    }
}

impl<V: Mirrored> Mirror<V> {
    /// The objects of a RunnerPool, by name.
    pub(crate) fn of(&self, pool: &PoolKey) -> Vec<V> {
        self.state()
            .pools
            .get(pool)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Whether a RunnerPool has an object of this name, or may have one, as its creation had no answer.
    pub(crate) fn may_have(&self, pool: &PoolKey, name: &str) -> bool {
        let state = self.state();
        let objects = state.pools.get(pool);
        let doubted = state.doubted.get(pool);
        objects.is_some_and(|objects| objects.contains_key(name))
            || doubted.is_some_and(|doubted| doubted.contains(name))
    }

    /// Takes note that the creation of an object is sent, and has no answer yet.
    pub(crate) fn doubt(&self, pool: &PoolKey, name: &str) {
        let mut state = self.state_mut();
        let doubted = state.doubted.entry(pool.clone()).or_default();
        doubted.insert(name.to_owned());
    }

    /// Names of objects whose creation had no answer.
    pub(crate) fn doubted(&self, pool: &PoolKey) -> Vec<String> {
        let state = self.state();
        let doubted = state.doubted.get(pool);
        doubted.into_iter().flatten().cloned().collect()
    }

    /// Takes note that the API server said what became of an object.
    pub(crate) fn settle(&self, pool: &PoolKey, name: &str) {
        if let Some(doubted) = self.state_mut().doubted.get_mut(pool) {
            doubted.remove(name);
        }
    }

    /// Names of objects that went, as far as that matters to a look that began at this time.
    pub(crate) fn gone_from(&self, pool: &PoolKey, look: Timestamp) -> Vec<String> {
        let state = self.state();
        let gone = state.gone.names.get(pool).into_iter().flatten();
        gone.filter(|&(_, until)| *until >= look)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Until when it matters that objects of a RunnerPool went; `None`: none did.
    pub(crate) fn gone_until(&self, pool: &PoolKey) -> Option<Timestamp> {
        self.state().gone.latest.get(pool).copied()
    }

    /// Forgets a RunnerPool that is gone. Its names are remembered, in case that another one takes its place.
    pub(crate) fn forget(&self, pool: &PoolKey) {
        let mut state = self.state_mut();
        state.gone.latest.remove(pool);
        state.doubted.remove(pool);
    }

    /// Adds the answer to a write of ours, unless the watch has told something later, or the object's end.
    pub(crate) fn wrote(&self, object: &V::Object) {
        let Some((pool, value)) = V::read(object) else {
            return;
        };
        let mut state = self.state_mut();
        if state.tombstones.uids.contains(value.uid()) {
            return;
        }
        let objects = state.pools.entry(pool).or_default();
        let kept = objects.get(&object.name_any());
        let later = |kept: &V| kept.uid() == value.uid() && kept.version() >= value.version();
        if !kept.is_some_and(later) {
            objects.insert(object.name_any(), value);
        }
    }

    /// Follows a watch of one namespace, or of all, for ever; tells the RunnerPool of each change, and the first time
    /// that everything has been read.
    pub(crate) async fn follow(
        &self,
        watch: impl Stream<Item = watcher::Result<watcher::Event<V::Object>>> + Send,
        namespace: Option<&str>,
        changed: impl Fn(PoolKey) + Send,
        ready: impl FnOnce() + Send,
    ) {
        let mut watch = std::pin::pin!(watch);
        let mut listed = HashSet::new();
        let mut ready = Some(ready);
        while let Some(event) = watch.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(object.uid());
                    self.apply(&object).into_iter().for_each(&changed);
                }
                Ok(watcher::Event::InitDone) => {
                    self.retain(namespace, &std::mem::take(&mut listed), Timestamp::now())
                        .into_iter()
                        .for_each(&changed);
                    if let Some(ready) = ready.take() {
                        ready();
                    }
                }
                Ok(watcher::Event::Apply(object)) => {
                    self.apply(&object).into_iter().for_each(&changed);
                }
                Ok(watcher::Event::Delete(object)) => {
                    self.delete(&object, Timestamp::now())
                        .into_iter()
                        .for_each(&changed);
                }
                Err(error) => {
                    let kind = V::Object::kind(&());
                    tracing::warn!(%kind, error = crate::telemetry::chain(&error), "Lost a watch and began it again");
                }
            }
        }
    }

    /// Takes over an object that a watch told of.
    pub(crate) fn apply(&self, object: &V::Object) -> Option<PoolKey> {
        let (pool, value) = V::read(object)?;
        let name = object.name_any();
        let mut state = self.state_mut();
        let objects = state.pools.entry(pool.clone()).or_default();
        objects.insert(name, value);
        Some(pool)
    }

    /// Drops an object whose end a watch told of.
    pub(crate) fn delete(&self, object: &V::Object, now: Timestamp) -> Option<PoolKey> {
        let (pool, value) = V::read(object)?;
        let name = object.name_any();
        let mut state = self.state_mut();
        state.tombstones.bury(value.uid());
        let State { pools, gone, .. } = &mut *state;
        let objects = pools.get_mut(&pool)?;
        if let Some(kept) = objects.get(&name)
            && kept.uid() == value.uid()
        {
            if let Some(until) = kept.matters_until(now, true) {
                gone.note(&pool, &name, until, now);
            }
            objects.remove(&name);
        }
        if objects.is_empty() {
            pools.remove(&pool);
        }
        Some(pool)
    }

    /// Drops what a complete list no longer has.
    pub(crate) fn retain(
        &self,
        namespace: Option<&str>,
        listed: &HashSet<String>,
        now: Timestamp,
    ) -> Vec<PoolKey> {
        let mut state = self.state_mut();
        let State {
            pools,
            tombstones,
            gone,
            ..
        } = &mut *state;
        let mut changed = Vec::new();
        let watched =
            |pool: &PoolKey| namespace.is_none_or(|namespace| namespace == pool.namespace);
        for (pool, objects) in pools.iter_mut().filter(|(pool, _)| watched(pool)) {
            let before = objects.len();
            objects.retain(|name, value| {
                let kept = listed.contains(value.uid());
                if !kept {
                    tombstones.bury(value.uid());
                    if let Some(until) = value.matters_until(now, false) {
                        gone.note(pool, name, until, now);
                    }
                }
                kept
            });
            changed.extend((objects.len() != before).then(|| pool.clone()));
        }
        pools.retain(|_, objects| !objects.is_empty());
        changed
    }

    fn state(&self) -> RwLockReadGuard<'_, State<V>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State<V>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
    use serde_json::{Value, json};

    use super::*;
    use crate::manifest::pod::AgentPod;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A Pod whose agent's container is in this state.
    fn pod(phase: &str, state: &Value) -> Pod {
        let pod = json!({
            "metadata": { "name": "web-agent-0", "namespace": "ci", "uid": "2", "ownerReferences": [{
                "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": "web", "uid": "1", "controller": true,
            }] },
            "spec": { "containers": [{ "name": "agent" }] },
            "status": { "phase": phase, "containerStatuses": [{
                "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }] },
        });
        serde_json::from_value(pod).expect("a Pod")
    }

    #[test]
    fn a_name_matters_until_a_look_shows_what_its_agent_did() {
        let key = PoolKey {
            namespace: "ci".into(),
            name: "web".into(),
        };
        // Until when it matters that a Pod goes at 100.
        let until = |pod: &Pod, watched: bool| {
            let mirror = Mirror::<AgentPod>::default();
            mirror.apply(pod);
            if watched {
                // As the API server tells of each deletion, be it by force.
                let mut stopping = pod.clone();
                stopping.metadata.deletion_timestamp = Some(Time(at(100)));
                mirror.apply(&stopping);
                mirror.delete(&stopping, at(100));
            } else {
                mirror.retain(None, &HashSet::new(), at(100));
            }
            let until = mirror.gone_until(&key).expect("it went");
            let matters = |look: i64| !mirror.gone_from(&key, at(look)).is_empty();
            assert!(matters(until.as_second()) && !matters(until.as_second() + 1));
            until.as_second()
        };
        let ended = |code: i32, second: i64| {
            let state = json!({ "terminated": { "exitCode": code, "finishedAt": at(second) } });
            pod(if code == 0 { "Succeeded" } else { "Failed" }, &state)
        };
        let running = pod("Running", &json!({ "running": { "startedAt": at(50) } }));
        let pending = pod("Pending", &json!({ "waiting": {} }));
        for (pod, seen, found) in [
            // Its agent may have registered a moment ago.
            (&running, 130, 130),
            (&pending, 100, 130),
            // One that was killed does not take leave, one that was asked to end does.
            (&ended(137, 90), 120, 120),
            (&ended(137, 60), 100, 100),
            (&ended(137, 9000), 130, 130), // by a clock that is ahead
            (&ended(143, 90), 100, 100),
            (&ended(0, 90), 100, 100),
        ] {
            assert_eq!((until(pod, true), until(pod, false)), (seen, found));
        }
    }

    #[test]
    fn names_are_forgotten_long_after_they_mattered() {
        let pool = |name: usize| PoolKey {
            namespace: "ci".into(),
            name: format!("web-{name}"),
        };
        let mut gone = Gone::default();
        for index in 0..100 {
            gone.note(&pool(index), "web-agent-0", at(100), at(100));
            gone.note(&pool(0), &format!("web-agent-{index}"), at(100), at(100));
        }
        gone.note(&pool(0), "web-agent-7", at(200), at(200));
        assert_eq!((gone.names.len(), gone.turn.len()), (100, 199));
        let then = at(200 + 3600);
        for _ in 0..200 {
            gone.note(&pool(0), "web-agent-0", then, then);
        }
        let left = |name: &str| gone.names[&pool(0)].contains_key(name);
        assert!(left("web-agent-0") && left("web-agent-7"));
        assert_eq!((gone.names.len(), gone.turn.len()), (1, 2));
    }
}
