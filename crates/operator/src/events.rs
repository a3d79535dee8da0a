//! Events: one for each agent created, removed, refused or lost, and for each change of a condition.
//!
//! They are written by a task of their own, so that a burst of agents does not wait for its own reports.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that may wait to be written. More than a burst makes; beyond it they are dropped, with a line in the log.
const CAPACITY: usize = 20_000;

#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<(ObjectReference, Event)>);

/// Longest wait for an answer to one Event.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Between the first two tries to write one. It doubles with each.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What an event says.
pub(crate) struct Report<'a> {
    pub(crate) warning: bool,
    pub(crate) reason: &'a str,
    pub(crate) action: &'a str,
    pub(crate) note: String,
    /// What else it is about. Events that differ in their notes only are counted as one for a few minutes, with the first
    /// note.
    pub(crate) related: Option<ObjectReference>,
}

/// Longest note that the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;

impl Events {
    /// Starts the writer; it ends when all clones are dropped or, after `cancelled`, as soon as nothing waits or one
    /// fails. It writes one event at a time: more would slow down the very burst that they report. While the API server
    /// cannot take one, all wait.
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
                let mut pause = SHORTEST_PAUSE;
                while let Err(failure) = write(&recorder, &event, &regarding).await {
                    let Failure { error, passes } = failure;
                    tracing::warn!(
                        reason = event.reason,
                        error,
                        passes,
                        "Failed to write an Event"
                    );
                    // Those that wait would fail as well, one after the other.
                    if cancelled.is_cancelled() {
                        return;
                    }
                    if !passes {
                        break;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = cancelled.cancelled() => {}
                    }
                    pause = LONGEST_PAUSE.min(pause * 2);
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
            related,
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
            secondary: related,
        };
        match self.0.try_send((regarding.clone(), event)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(reason, "Dropped an Event, as too many wait to be written");
            }
            Err(TrySendError::Closed(_)) => {
                tracing::warn!(reason, "Dropped an Event, as the operator ends");
            }
        }
    }
}

/// Why an Event could not be written.
struct Failure {
    error: String,
    /// Whether it may be written later: the API server could not be reached, or was not able to.
    passes: bool,
}

async fn write(
    recorder: &Recorder,
    event: &Event,
    regarding: &ObjectReference,
) -> Result<(), Failure> {
    match tokio::time::timeout(TIMEOUT, recorder.publish(event, regarding)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure {
            passes: !matches!(&error, kube::Error::Api(status) if is_final(status.code)),
            error: crate::telemetry::chain(&error),
        }),
        Err(late) => Err(Failure {
            error: late.to_string(),
            passes: true,
        }),
    }
}

/// Whether a status code is a verdict on the request, not a sign of trouble.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && code != 429
}
