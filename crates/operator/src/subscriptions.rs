//! Which RunnerPool looks at which agent pool, through which credential; one reader for each combination. Also keeps
//! two RunnerPools of one agent pool from giving the same name to two agents.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use azure_devops::{Client, Connections};
use planner::Pool;
use secrecy::{ExposeSecret as _, SecretString};

use crate::{mirror::PoolKey, reader::Reader};

/// An agent pool: the organization or collection by its canonical URL, and the pool by its name in lower case, as Azure
/// DevOps has no regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AgentPoolKey {
    pub(crate) organization: String,
    pub(crate) pool: String,
}

/// What a RunnerPool subscribed to.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    /// The Secret that the token came from, and the generation of the RunnerPool that it was read for.
    pub(crate) secret: String,
    pub(crate) generation: Option<i64>,
    pub(crate) interval: Duration,
    pub(crate) agent_pool: AgentPoolKey,
    pub(crate) reader: Arc<Reader>,
    /// What it wished for in its last pass, for those that share the agent pool.
    pub(crate) wishes: Option<Wishes>,
}

/// What a RunnerPool wishes for.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    /// Uid of the RunnerPool.
    pub(crate) uid: String,
    pub(crate) pool: Arc<Pool>,
}

#[derive(Debug, Default)]
pub(crate) struct Subscriptions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    readers: HashMap<AgentPoolKey, Vec<(SecretString, Arc<Reader>)>>,
    subscriptions: HashMap<PoolKey, Subscription>,
    /// Names of agents that are being created, until their Pods are in the mirror.
    reserved: HashMap<(AgentPoolKey, String), PoolKey>,
}

impl State {
    /// The client of another agent pool of the organization under the same token: they share the pace that the service
    /// asks of a token.
    fn client_of(&self, wanted: &Wanted<'_>) -> Option<Client> {
        let same_organization = self
            .readers
            .iter()
            .filter(|(key, _)| key.organization == wanted.agent_pool.organization);
        let mut same_token = same_organization
            .flat_map(|(_, readers)| readers)
            .filter(|(token, _)| token.expose_secret() == wanted.token.expose_secret());
        same_token.next().map(|(_, reader)| reader.client().clone())
    }
}

impl Subscriptions {
    pub(crate) fn of(&self, pool: &PoolKey) -> Option<Subscription> {
        self.state().subscriptions.get(pool).cloned()
    }

    /// Subscribes a RunnerPool, ending its former subscription; gives the reader to start, if it is a new one.
    pub(crate) fn subscribe(
        &self,
        pool: &PoolKey,
        wanted: Wanted<'_>,
        connections: &Connections,
    ) -> (Subscription, Option<Arc<Reader>>) {
        let mut state = self.state();
        let mut created = None;
        let client = state.client_of(&wanted);
        let readers = state.readers.entry(wanted.agent_pool.clone()).or_default();
        let same =
            |(token, _): &&(SecretString, _)| token.expose_secret() == wanted.token.expose_secret();
        let known = readers.iter().find(same).map(|(_, reader)| reader.clone());
        let reader = known.unwrap_or_else(|| {
            let client = client.unwrap_or_else(|| {
                Client::new(
                    connections.clone(),
                    wanted.organization,
                    wanted.token.clone(),
                )
            });
            let reader = Arc::new(Reader::new(client, wanted.pool_name.to_owned()));
            readers.push((wanted.token.clone(), reader.clone()));
            created = Some(reader.clone());
            reader
        });
        // Subscribed before the former subscription ends and before the reader runs: it ends without subscribers.
        reader.subscribe(pool.clone(), wanted.interval);
        let subscription = Subscription {
            secret: wanted.secret.to_owned(),
            generation: wanted.generation,
            interval: wanted.interval,
            agent_pool: wanted.agent_pool,
            reader: reader.clone(),
            wishes: None,
        };
        let former = state
            .subscriptions
            .insert(pool.clone(), subscription.clone());
        if let Some(former) = former.filter(|former| !Arc::ptr_eq(&former.reader, &reader)) {
            former.reader.unsubscribe(pool);
        }
        (subscription, created)
    }

    /// Takes note of a RunnerPool's wishes; `None`: it cannot be worked on.
    pub(crate) fn describe(&self, pool: &PoolKey, wishes: Option<Wishes>) {
        if let Some(subscription) = self.state().subscriptions.get_mut(pool) {
            subscription.wishes = wishes;
        }
    }

    /// Forgets a RunnerPool.
    pub(crate) fn unsubscribe(&self, pool: &PoolKey) {
        let mut state = self.state();
        state.reserved.retain(|_, holder| holder != pool);
        if let Some(former) = state.subscriptions.remove(pool) {
            former.reader.unsubscribe(pool);
        }
    }

    /// Forgets a reader that ended for want of subscribers, with the RunnerPools that are gone from the cluster;
    /// `false`: somebody subscribed to it meanwhile.
    pub(crate) fn forget(&self, reader: &Arc<Reader>) -> bool {
        let mut state = self.state();
        state
            .subscriptions
            .retain(|pool, kept| !Arc::ptr_eq(&kept.reader, reader) || reader.is_subscribed(pool));
        if state
            .subscriptions
            .values()
            .any(|subscription| Arc::ptr_eq(&subscription.reader, reader))
        {
            return false;
        }
        state.readers.retain(|_, readers| {
            readers.retain(|(_, kept)| !Arc::ptr_eq(kept, reader));
            !readers.is_empty()
        });
        true
    }

    /// RunnerPools, other than this one, that look at the same agent pool.
    pub(crate) fn siblings(
        &self,
        pool: &PoolKey,
        agent_pool: &AgentPoolKey,
    ) -> Vec<(PoolKey, Subscription)> {
        let state = self.state();
        let others = state
            .subscriptions
            .iter()
            .filter(|(key, other)| *key != pool && other.agent_pool == *agent_pool);
        others
            .map(|(key, other)| (key.clone(), other.clone()))
            .collect()
    }

    /// Reserves a name for an agent that is about to be created; `false`: another RunnerPool is creating it.
    pub(crate) fn reserve(&self, pool: &PoolKey, agent_pool: &AgentPoolKey, name: &str) -> bool {
        let mut state = self.state();
        let holder = state
            .reserved
            .entry((agent_pool.clone(), name.to_owned()))
            .or_insert_with(|| pool.clone());
        *holder == *pool
    }

    /// Ends the reservations of a RunnerPool: its Pods are in the mirror by now, or were not created.
    pub(crate) fn release(&self, pool: &PoolKey) {
        self.state().reserved.retain(|_, holder| holder != pool);
    }

    /// Names that other RunnerPools have reserved in the agent pool.
    pub(crate) fn reserved_by_others(
        &self,
        pool: &PoolKey,
        agent_pool: &AgentPoolKey,
    ) -> BTreeSet<String> {
        let state = self.state();
        let others = state
            .reserved
            .iter()
            .filter(|((key, _), holder)| key == agent_pool && *holder != pool);
        others.map(|((_, name), _)| name.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a RunnerPool wants to look at.
pub(crate) struct Wanted<'a> {
    pub(crate) agent_pool: AgentPoolKey,
    /// URL of the organization as the user wrote it.
    pub(crate) organization: &'a str,
    pub(crate) pool_name: &'a str,
    pub(crate) token: SecretString,
    pub(crate) secret: &'a str,
    pub(crate) generation: Option<i64>,
    pub(crate) interval: Duration,
}
