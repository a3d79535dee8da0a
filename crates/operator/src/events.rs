//! Events: one for each agent created, removed, refused or lost, and for each change of a condition.
//!
//! They are written by a task of their own, so that a burst of agents does not wait for its own reports.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that may wait to be written. More than a burst makes; beyond it they are dropped, with a line in the log.
const CAPACITY: usize = 20_000;
/// Events that are written at a time: few, as they must not slow down what they report.
const CONCURRENCY: usize = 4;

#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<(ObjectReference, Event)>);

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
    /// Starts the writers; they end when all clones are dropped or, after `cancelled`, as soon as nothing waits.
    pub(crate) fn start(
        client: &kube::Client,
        tracker: &TaskTracker,
        cancelled: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let reporter = Reporter {
            controller: api::names::OPERATOR.into(),
            instance: std::env::var("HOSTNAME").ok(),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(receiver));
        for _ in 0..CONCURRENCY {
            let (recorder, receiver, cancelled) =
                (recorder.clone(), receiver.clone(), cancelled.clone());
            tracker.spawn(async move {
                loop {
                    let next = async { receiver.lock().await.recv().await };
                    let waiting = tokio::select! {
                        biased;
                        waiting = next => waiting,
                        () = cancelled.cancelled() => None,
                    };
                    let Some((regarding, event)) = waiting else {
                        return;
                    };
                    if let Err(error) = recorder.publish(&event, &regarding).await {
                        tracing::warn!(
                            reason = event.reason,
                            error = crate::telemetry::chain(&error),
                            "Failed to write an Event"
                        );
                    }
                }
            });
        }
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
