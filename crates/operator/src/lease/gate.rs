//! The gate that every write passes, to Kubernetes and to Azure DevOps: open only while the lease is surely held.
//!
//! It asks a monotonic clock, at the moment of sending and whenever a write that is under way comes to run again, so that
//! a process that was frozen refuses its writes before it has heard of anything else. It never asks anybody else, and
//! reads need no leave.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use futures::future::{BoxFuture, FutureExt as _};
use tokio_util::task::TaskTracker;

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Another process may hold the lease by now.
    #[error("this process does not hold the lease, so it may not write")]
    NotHeld,
    /// The lease is about to be released.
    #[error("this process is handing the lease over, so it begins no write")]
    HandingOver,
}

/// Clones are the same gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    held: Mutex<Held>,
    /// A token for each write that is under way.
    under_way: TaskTracker,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    until: Until,
    /// No write begins any more, whatever happens to the lease.
    shut: bool,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    Never,
    Instant(Instant),
    Always,
}

impl Gate {
    /// A gate that opens when the lease is held.
    pub(crate) fn closed() -> Self {
        Self::new(Until::Never)
    }

    /// A gate for a process that is the only one.
    pub(crate) fn open() -> Self {
        Self::new(Until::Always)
    }

    fn new(until: Until) -> Self {
        let held = Mutex::new(Held { until, shut: false });
        let under_way = TaskTracker::new();
        under_way.close();
        Self(Arc::new(State { held, under_way }))
    }

    /// The lease is held until this time at least.
    pub(super) fn extend(&self, until: Instant) {
        self.state().until = Until::Instant(until);
    }

    /// Lets no write begin any more; those that are under way go on for as long as the lease is held.
    pub(crate) fn shut(&self) {
        self.state().shut = true;
    }

    /// Ends when no write is under way.
    pub(crate) async fn quiet(&self) {
        self.0.under_way.wait().await;
    }

    /// Whether the lease is surely held now.
    pub(crate) fn held(&self) -> Result<(), Refused> {
        let until = self.state().until;
        match until {
            Until::Always => Ok(()),
            Until::Instant(until) if Instant::now() < until => Ok(()),
            Until::Instant(_) | Until::Never => Err(Refused::NotHeld),
        }
    }

    /// Whether a write may begin now.
    fn check(&self) -> Result<(), Refused> {
        self.held()?;
        if self.state().shut {
            return Err(Refused::HandingOver);
        }
        Ok(())
    }

    /// Carries a write out, if one may begin now.
    pub(crate) async fn carry_out<T>(&self, write: impl Future<Output = T>) -> Result<T, Refused> {
        let _under_way = self.0.under_way.token();
        self.check()?;
        self.while_held(write).await
    }

    /// Runs something for as long as the lease is held. A write that is refused midway may have been sent: nothing is
    /// known of it.
    pub(super) async fn while_held<T>(&self, write: impl Future<Output = T>) -> Result<T, Refused> {
        let mut write = pin!(write);
        std::future::poll_fn(|context: &mut Context<'_>| match self.held() {
            Ok(()) => write.as_mut().poll(context).map(Ok),
            Err(refused) => Poll::Ready(Err(refused)),
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate on the way to Azure DevOps.
impl azure_devops::WriteGate for Gate {
    fn carry_out(
        &self,
        write: azure_devops::Sending,
    ) -> BoxFuture<'static, Result<azure_devops::Sent, azure_devops::Withheld>> {
        let gate = self.clone();
        async move {
            let sent = Gate::carry_out(&gate, write).await;
            sent.map_err(|refused| azure_devops::Withheld(refused.to_string()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn writes_pass_only_while_the_lease_is_held() {
        let gate = Gate::closed();
        assert_eq!(gate.carry_out(async {}).await, Err(Refused::NotHeld));
        gate.extend(Instant::now() + Duration::from_secs(60));
        assert_eq!(gate.carry_out(async {}).await, Ok(()));
        gate.extend(Instant::now());
        assert_eq!(gate.carry_out(async {}).await, Err(Refused::NotHeld));
        assert_eq!(Gate::open().carry_out(async {}).await, Ok(()));
    }

    #[tokio::test]
    async fn a_write_that_waits_while_the_lease_expires_is_not_polled_again() {
        let gate = Gate::closed();
        gate.extend(Instant::now() + Duration::from_millis(50));
        let mut polls = 0;
        let write = std::future::poll_fn(|context: &mut Context<'_>| {
            polls += 1;
            // Comes to run again only when the lease has expired, as after a freeze.
            std::thread::sleep(Duration::from_millis(60));
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(gate.carry_out(write).await, Err(Refused::NotHeld));
        assert_eq!(polls, 1);
    }

    #[tokio::test]
    async fn a_gate_that_is_shut_lets_what_is_under_way_end() {
        let gate = Gate::open();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let under_way = tokio::spawn({
            let gate = gate.clone();
            async move { gate.carry_out(ended).await }
        });
        while gate.0.under_way.is_empty() {
            tokio::task::yield_now().await;
        }
        gate.shut();
        assert_eq!(gate.carry_out(async {}).await, Err(Refused::HandingOver));
        assert!(
            gate.quiet().now_or_never().is_none(),
            "a write is under way"
        );
        end.send(()).expect("the write waits for it");
        gate.quiet().await;
        assert!(under_way.await.expect("it did not panic").is_ok());
    }
}
