//! Mirrors of Pods and claims: a watch feeds each, in a compact form, and the operator adds what it wrote itself, so that it
//! never plans on a cluster that lacks its own last writes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
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
    /// When the last object of a RunnerPool that has none now was seen to go.
    emptied: HashMap<PoolKey, Timestamp>,
    /// When objects were seen to go, by name; until somebody says that it does not matter any more.
    gone: HashMap<PoolKey, HashMap<String, Timestamp>>,
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

impl<V> State<V> {
    /// Takes note of RunnerPools that have no object any more.
    fn drop_empty(&mut self, now: Timestamp) {
        let Self { pools, emptied, .. } = self;
        pools.retain(|pool, objects| {
            if objects.is_empty() {
                emptied.insert(pool.clone(), now);
            }
            !objects.is_empty()
        });
    }
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self(RwLock::new(State {
            pools: HashMap::new(),
            tombstones: Tombstones::default(),
            emptied: HashMap::new(),
            gone: HashMap::new(),
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

    /// When the last object of a RunnerPool that has none now was seen to go; `None`: there never was one.
    pub(crate) fn emptied_at(&self, pool: &PoolKey) -> Option<Timestamp> {
        self.state().emptied.get(pool).copied()
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

    /// Names of objects of a RunnerPool that were seen to go and that have no successor.
    pub(crate) fn gone_from(&self, pool: &PoolKey) -> Vec<String> {
        let state = self.state();
        let gone = state.gone.get(pool);
        gone.map(|gone| gone.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Forgets objects of a RunnerPool that were seen to go before this time.
    pub(crate) fn forget_gone(&self, pool: &PoolKey, before: Timestamp) {
        if self.state().gone.contains_key(pool)
            && let Some(gone) = self.state_mut().gone.get_mut(pool)
        {
            gone.retain(|_, at| *at >= before);
        }
    }

    /// Forgets a RunnerPool that is gone.
    pub(crate) fn forget(&self, pool: &PoolKey) {
        let mut state = self.state_mut();
        state.emptied.remove(pool);
        state.gone.remove(pool);
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
        if let Some(gone) = state.gone.get_mut(&pool) {
            gone.remove(&name);
        }
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
        let objects = state.pools.get_mut(&pool)?;
        if objects
            .get(&name)
            .is_some_and(|kept| kept.uid() == value.uid())
        {
            objects.remove(&name);
            let gone = state.gone.entry(pool.clone()).or_default();
            gone.insert(name, now);
        }
        state.drop_empty(now);
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
                    let gone = gone.entry(pool.clone()).or_default();
                    gone.insert(name.clone(), now);
                }
                kept
            });
            changed.extend((objects.len() != before).then(|| pool.clone()));
        }
        state.drop_empty(now);
        changed
    }

    fn state(&self) -> RwLockReadGuard<'_, State<V>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State<V>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
