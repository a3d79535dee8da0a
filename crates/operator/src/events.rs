//! Events: one for each agent created, removed, refused or lost, and for each change of a condition.
//!
//! They are written by a task of their own, so that a burst of agents does not wait for its own reports.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that may wait to be written. More than a burst makes; beyond it they are dropped, with a line in the log.
const CAPACITY: usize = 20_000;

#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<(ObjectReference, Event)>);

/// Longest wait for an answer to one Event.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What an event says.
pub(crate) struct Report<'a> {
    pub(crate) warning: bool,
    pub(crate) reason: &'a str,
    pub(crate) action: &'a str,
    pub(crate) note: String,
    pub(crate) pod: Option<ObjectReference>,
}

/// Longest note that the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;

impl Events {
    /// Starts the writer; it ends when all clones are dropped or, after `cancelled`, as soon as nothing waits or one
    /// fails. It writes one event at a time: more would slow down the very burst that they report.
    pub(crate) fn start(
        client: &kube::Client,
        tracker: &TaskTracker,
        cancelled: CancellationToken,
    ) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(ObjectReference, Event)>(CAPACITY);
        let reporter = Reporter {
            controller: api::names::OPERATOR.into(),
            instance: std::env::var("HOSTNAME").ok(),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        tracker.spawn(async move {
            loop {
                let waiting = tokio::select! {
                    biased;
                    waiting = receiver.recv() => waiting,
                    () = cancelled.cancelled() => None,
                };
                let Some((regarding, event)) = waiting else {
                    return;
                };
                let written = tokio::time::timeout(TIMEOUT, recorder.publish(&event, &regarding));
                let error = match written.await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => crate::telemetry::chain(&error),
                    Err(late) => late.to_string(),
                };
                tracing::warn!(reason = event.reason, error, "Failed to write an Event");
                // Those that wait would fail as well, one after the other.
                if cancelled.is_cancelled() {
                    return;
                }
            }
        });
        Self(sender)
    }

    pub(crate) fn emit(&self, regarding: &ObjectReference, report: Report<'_>) {
        let Report {
            warning,
            reason,
            action,
            mut note,
            pod,
        } = report;
        if note.len() > LONGEST_NOTE {
            note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        }
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.into(),
            note: Some(note),
            action: action.into(),
            secondary: pod,
        };
        if self.0.try_send((regarding.clone(), event)).is_err() {
            tracing::warn!(reason, "Dropped an Event, as too many wait to be written");
        }
    }
}
