//! Leadership: one replica acts, the others wait, by a Lease of `coordination.k8s.io/v1`.
//!
//! Every write of the Lease carries the resource version that it is based on. Expiry is measured by what was observed, on
//! a monotonic clock; wall clocks are never compared. A holder counts its time from before the request that renewed the
//! Lease last, and for less than others wait, so that it has stopped before anybody else may start. It never decides what
//! the leader does, only whether there is one here.

mod gate;
mod record;

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt as _, api::PostParams, runtime::watcher::watch_object};
use tokio::{sync::watch, time};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub(crate) use gate::Gate;
use record::{Observation, Seen, Turn};

use crate::telemetry::chain;

/// Who takes part in an election, and on what terms.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Name of this process, which no other process has or had.
    pub identity: String,
    /// The times.
    pub times: Times,
}

/// The times of a lease: renewed more often than the holder's deadline, which ends before others may take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    duration: Duration,
    renew_deadline: Duration,
    renew: Duration,
}

impl Times {
    /// Times in seconds; an error says which of them do not go together.
    pub fn new(duration: u16, renew_deadline: u16, renew: u16) -> Result<Self, String> {
        if renew == 0 {
            return Err("the lease must be renewed after a second at the earliest".into());
        }
        if renew_deadline >= duration {
            return Err(format!(
                "a holder of the lease must give up ({renew_deadline} s) before others may take it ({duration} s)"
            ));
        }
        if renew >= renew_deadline {
            return Err(format!(
                "the lease must be renewed ({renew} s) before its holder gives up ({renew_deadline} s)"
            ));
        }
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        Ok(Self {
            duration: seconds(duration),
            renew_deadline: seconds(renew_deadline),
            renew: seconds(renew),
        })
    }

    /// How long others wait for a holder that does not renew the lease.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// A name for this process: that of its Pod, with a suffix that tells it from the Pod's other containers and former
/// processes.
pub fn identity() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = set("POD_NAME").or_else(|| set("HOSTNAME"));
    let host = host.unwrap_or_else(|| api::names::OPERATOR.into());
    format!("{host}_{:08x}", random() >> 32)
}

/// Exit code of a process that lost the lease: `EX_TEMPFAIL` of sysexits.h, as it only needs to be started again.
pub const EXIT_CODE: i32 = 75;

/// The lease is held by this process no more.
#[derive(Debug, thiserror::Error)]
#[error("lost the lease: {0}")]
pub struct Lost(pub(crate) String);

/// What candidate and holder have in common.
struct Access {
    election: Election,
    gate: Gate,
    /// For looks and claims.
    leases: Api<Lease>,
    /// For renewals and the release, which are sent only while the lease is held.
    held: Api<Lease>,
    /// As the watch told it last.
    seen: watch::Receiver<Seen>,
    _watch: AbortOnDropHandle<()>,
}

/// How a write of the Lease failed.
enum Failure {
    /// It is not as it was thought to be; the API server changed nothing.
    Outdated,
    /// Anything else; it may have been written.
    Other(String),
}

impl Access {
    /// Creates the Lease, or replaces the very version that `lease` is based on.
    async fn write(
        &self,
        leases: &Api<Lease>,
        lease: &Lease,
        limit: Duration,
    ) -> Result<Lease, Failure> {
        let params = PostParams {
            field_manager: Some(api::names::OPERATOR.into()),
            ..PostParams::default()
        };
        let write = async {
            if lease.resource_version().is_some() {
                let name = &self.election.name;
                leases.replace(name, &params, lease).await
            } else {
                leases.create(&params, lease).await
            }
        };
        match time::timeout(limit, write).await {
            Ok(Ok(lease)) => Ok(lease),
            // Conflict and AlreadyExists; NotFound, where it was deleted.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                Err(Failure::Outdated)
            }
            Ok(Err(error)) => Err(Failure::Other(chain(&error))),
            Err(_) => Err(Failure::Other(no_answer(limit))),
        }
    }

    async fn read(&self, limit: Duration) -> Result<Option<Lease>, String> {
        match time::timeout(limit, self.leases.get_opt(&self.election.name)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(no_answer(limit)),
        }
    }

    fn new_lease(&self) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(self.election.name.clone());
        lease.metadata.namespace = Some(self.election.namespace.clone());
        lease
    }
}

/// One that waits for the lease.
pub(crate) struct Candidate {
    access: Access,
    observation: Observation,
}

impl Candidate {
    /// Begins to watch the Lease. `client`: one without the gate, as whoever takes the lease does not hold it yet;
    /// `while_held`: one that sends nothing while it is not held.
    pub(crate) fn new(
        client: kube::Client,
        while_held: kube::Client,
        election: Election,
        gate: Gate,
    ) -> Self {
        let leases: Api<Lease> = Api::namespaced(client, &election.namespace);
        let held = Api::namespaced(while_held, &election.namespace);
        let (told, seen) = watch::channel(Seen::NotYet);
        let (name, pause) = (election.name.clone(), election.times.renew);
        let watch = tokio::spawn(follow(leases.clone(), name, pause, told));
        Self {
            access: Access {
                election,
                gate,
                leases,
                held,
                seen,
                _watch: AbortOnDropHandle::new(watch),
            },
            observation: Observation::default(),
        }
    }

    /// Waits until the lease is free and takes it; from then on the gate is open. Where the API server fails, that is
    /// logged and tried again, for ever.
    pub(crate) async fn win(mut self) -> Holder {
        let Election {
            namespace,
            name,
            identity,
            times,
        } = self.access.election.clone();
        let mut told = None;
        loop {
            let holder = self.observation.holder().map(str::to_owned);
            if holder != told
                && let Some(holder) = &holder
            {
                tracing::info!(namespace, lease = name, holder, "Waiting for the lease");
            }
            told = holder;
            let now = Instant::now();
            match self.observation.turn(&identity, times.duration, now) {
                Turn::Look => self.change(now + times.renew).await,
                // The share keeps candidates that saw the same from asking at the same time.
                Turn::Wait(until) => self.change(until + jittered(times.renew / 10)).await,
                Turn::Take(from) => match self.take(from).await {
                    Ok(Some((lease, renewed))) => {
                        tracing::info!(namespace, lease = name, identity, "Acquired the lease");
                        return Holder {
                            access: self.access,
                            lease,
                            renewed,
                        };
                    }
                    Ok(None) => {}
                    Err(reason) => {
                        tracing::warn!(namespace, lease = name, reason, "Failed to take the lease");
                        time::sleep(jittered(times.renew / 2)).await;
                    }
                },
            }
        }
    }

    /// The lease and when the request for it began, or nothing: it was not free after all.
    async fn take(&mut self, from: Option<Box<Lease>>) -> Result<Option<(Lease, Instant)>, String> {
        let Election {
            identity, times, ..
        } = &self.access.election;
        let from = from.map_or_else(|| self.access.new_lease(), |from| *from);
        let lease = record::taken(from, identity, times.duration, Timestamp::now());
        let started = Instant::now();
        let failure = match self
            .access
            .write(&self.access.leases, &lease, times.renew_deadline)
            .await
        {
            Ok(lease) => {
                self.access.gate.extend(started + times.renew_deadline);
                if self.access.gate.held().is_ok() {
                    return Ok(Some((lease, started)));
                }
                // The answer came too late to rely on it; the next claim is made on top of this one.
                self.observation.note(Some(lease).into(), Instant::now());
                return Ok(None);
            }
            Err(Failure::Outdated) => None,
            Err(Failure::Other(reason)) => Some(reason),
        };
        let seen = self.access.read(self.access.election.times.renew).await?;
        self.observation.note(seen.into(), Instant::now());
        failure.map_or(Ok(None), Err)
    }

    /// Waits for a change, at the longest until then. Who has seen nothing yet looks for itself.
    async fn change(&mut self, until: Instant) {
        tokio::select! {
            Ok(()) = self.access.seen.changed() => {
                let seen = self.access.seen.borrow_and_update().clone();
                self.observation.note(seen, Instant::now());
            }
            () = time::sleep_until(until.into()) => {
                let times = self.access.election.times;
                let unseen = matches!(
                    self.observation.turn("", times.duration, Instant::now()),
                    Turn::Look
                );
                if unseen {
                    match self.access.read(times.renew).await {
                        Ok(lease) => self.observation.note(lease.into(), Instant::now()),
                        Err(reason) => tracing::warn!(reason, "Failed to read the Lease"),
                    }
                }
            }
        }
    }
}

/// The one that holds the lease. Dropping it leaves the lease as it is, as a crash does.
pub(crate) struct Holder {
    access: Access,
    lease: Lease,
    /// When the request that renewed it last began.
    renewed: Instant,
}

impl Holder {
    /// Keeps the lease until it is lost, or until `release`; then lets it go, so that others need not wait.
    pub(crate) async fn hold(mut self, release: CancellationToken) -> Result<(), Lost> {
        let times = self.access.election.times;
        loop {
            let due = self.renewed + times.renew;
            tokio::select! {
                () = release.cancelled() => return self.release().await,
                () = time::sleep_until(due.into()) => {}
                Ok(()) = self.access.seen.changed() => {
                    let seen = self.access.seen.borrow_and_update().clone();
                    let identity = &self.access.election.identity;
                    if matches!(seen, Seen::There(lease) if record::is_held_by(&lease, identity)) {
                        continue;
                    }
                    // The watch may lag behind; whether it is still ours is found out by a renewal.
                }
            }
            self.renew().await?;
        }
    }

    /// Renews the lease, as often as it takes before the deadline.
    async fn renew(&mut self) -> Result<(), Lost> {
        let Election {
            identity, times, ..
        } = self.access.election.clone();
        let deadline = self.renewed + times.renew_deadline;
        let mut reason = String::from("the process did not come to run");
        loop {
            let started = Instant::now();
            let left = deadline.saturating_duration_since(started);
            if left.is_zero() {
                let limit = times.renew_deadline.as_secs();
                return Err(Lost(format!(
                    "it was not renewed within {limit} s: {reason}"
                )));
            }
            // Time for another attempt, where a connection has died without a word.
            let limit = times.renew.max(left / 2).min(left);
            let lease = record::renewed(
                self.lease.clone(),
                &identity,
                times.duration,
                Timestamp::now(),
            );
            let write = self.access.write(&self.access.held, &lease, limit);
            match self.access.gate.while_held(write).await {
                Ok(Ok(lease)) => {
                    self.lease = lease;
                    self.renewed = started;
                    self.access.gate.extend(started + times.renew_deadline);
                    return Ok(());
                }
                Ok(Err(Failure::Outdated)) => {
                    match self.access.read(limit).await {
                        Ok(Some(lease)) if record::is_held_by(&lease, &identity) => {
                            self.lease = lease;
                        }
                        // Others that saw it wait for us all the same, so it may be made anew.
                        Ok(None) => self.lease = self.access.new_lease(),
                        Ok(Some(lease)) => {
                            let holder = lease.spec.as_ref().and_then(record::holder);
                            let holder = holder.unwrap_or("nobody");
                            return Err(Lost(format!("it is held by {holder}")));
                        }
                        Err(unread) => reason = unread,
                    }
                }
                Ok(Err(Failure::Other(failed))) => {
                    tracing::warn!(error = failed, "Failed to renew the lease");
                    reason = failed;
                    time::sleep(jittered(times.renew / 4)).await;
                }
                Err(refused) => reason = refused.to_string(),
            }
        }
    }

    /// Lets the lease go. Where that fails, others wait for its end.
    async fn release(self) -> Result<(), Lost> {
        let times = self.access.election.times;
        let write = async {
            let lease = record::released(self.lease.clone());
            self.access
                .write(&self.access.held, &lease, times.renew)
                .await
        };
        match self.access.gate.while_held(write).await {
            Ok(Ok(_)) => {
                tracing::info!(lease = self.access.election.name, "Released the lease");
            }
            Ok(Err(Failure::Outdated)) => {
                tracing::warn!("Did not release the lease: it has changed");
            }
            Ok(Err(Failure::Other(error))) => {
                tracing::warn!(error, "Failed to release the lease");
            }
            Err(refused) => tracing::warn!(error = %refused, "Failed to release the lease"),
        }
        Ok(())
    }
}

/// Watches the Lease, for ever. Correctness does not hang on it: whoever missed a change finds out when it writes.
async fn follow(leases: Api<Lease>, name: String, pause: Duration, told: watch::Sender<Seen>) {
    let mut changes = std::pin::pin!(watch_object(leases, &name));
    while let Some(change) = changes.next().await {
        match change {
            Ok(lease) => {
                told.send_replace(lease.into());
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "Lost the watch of the Lease");
                time::sleep(jittered(pause)).await;
            }
        }
    }
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {:.1} s", limit.as_secs_f64())
}

/// From half of the time to all of it.
fn jittered(time: Duration) -> Duration {
    let share = f64::from(u32::try_from(random() >> 32).unwrap_or_default()) / f64::from(u32::MAX);
    time.mul_f64(0.5 + share / 2.0)
}

/// Differs from call to call and from process to process.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_do_not_go_together_are_refused_with_both_numbers() {
        assert!(Times::new(4, 3, 1).is_ok());
        for (duration, deadline, renew, said) in [
            (4, 4, 1, "(4 s) before others may take it (4 s)"),
            (4, 3, 3, "renewed (3 s) before its holder gives up (3 s)"),
            (4, 3, 0, "after a second"),
        ] {
            let error = Times::new(duration, deadline, renew).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn no_two_processes_have_one_identity() {
        assert_ne!(identity(), identity());
    }
}
