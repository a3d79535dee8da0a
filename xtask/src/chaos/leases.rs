//! Who leads, by a watch of Leases: seen from outside, as every other check.

use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt as _, runtime::watcher};
use tokio::{task::AbortHandle, time};

use super::LOOK_AGAIN;

/// Where the operator's Lease is: the namespace of the kubeconfig.
pub(crate) const NAMESPACE: &str = "default";
/// The Lease that the operator is known to have.
pub(crate) const NAME: &str = "azdo-runner-operator";

/// A change of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) time: Timestamp,
    /// The new holder, empty after a release.
    pub(crate) holder: String,
}

/// A watch that runs until it is dropped.
pub(crate) struct LeaseWatch {
    changes: Arc<Mutex<Vec<Change>>>,
    task: AbortHandle,
}

impl LeaseWatch {
    pub(crate) fn start(client: Client) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(follow(client, changes.clone())).abort_handle();
        Self { changes, task }
    }

    /// Who leads now; none after a release.
    pub(crate) fn holder(&self) -> Option<String> {
        let holder = self.lock().last().map(|change| change.holder.clone());
        holder.filter(|holder| !holder.is_empty())
    }

    /// How often another one took the lead; the first leader is none.
    pub(crate) fn leader_changes(&self) -> usize {
        let changes = self.lock();
        let leaders = changes.iter().filter(|change| !change.holder.is_empty());
        leaders.count().saturating_sub(1)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LeaseWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: Client, changes: Arc<Mutex<Vec<Change>>>) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut leases = std::pin::pin!(kube::runtime::watcher(leases, watcher::Config::default()));
    loop {
        let lease = match leases.try_next().await {
            Ok(Some(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease))) => lease,
            Ok(Some(_)) => continue,
            Ok(None) => return,
            Err(_) => {
                time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        if lease.name_any() != NAME {
            continue;
        }
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        let holder = holder.unwrap_or_default();
        let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.last().is_none_or(|last| last.holder != holder) {
            changes.push(Change {
                time: Timestamp::now(),
                holder,
            });
        }
    }
}
