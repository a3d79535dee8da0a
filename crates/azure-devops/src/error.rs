//! What can go wrong with a call, classed by what to do next.

use std::time::Duration;

use reqwest::StatusCode;

/// What to do about an error. Callers match on this, never on texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Nothing is known; ask again later.
    Transient,
    /// Ask again, but not before the wait is over.
    Throttled,
    /// The token is missing, wrong, expired or has too few rights.
    Unauthorized,
    /// What was asked for does not exist, or the token may not see it.
    NotFound,
    /// The name is in use, or an agent that was to be deleted runs a job.
    Conflict,
    /// The service will not take this request, however often it is sent.
    Invalid,
}

impl Class {
    /// A static name for logs, events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
        }
    }
}

/// A call that failed. Displays as a fragment that fits after "failed to"; never holds a token or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer: connection, TLS, time-out, or an answer that broke off.
    #[error("{operation}: no complete answer")]
    Transport {
        /// The call.
        operation: &'static str,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that is not what the call promises.
    #[error("{operation}: the answer cannot be read")]
    Unreadable {
        /// The call.
        operation: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A list that is not whole.
    #[error("{operation}: the list is not whole: {detail}")]
    Incomplete {
        /// The call.
        operation: &'static str,
        /// What is missing.
        detail: String,
    },
    /// The service wants to be left alone; the request was refused, or not even sent.
    #[error("{operation}: throttled for {:.0} s", retry_after.as_secs_f64().ceil())]
    Throttled {
        /// The call.
        operation: &'static str,
        /// How long to wait.
        retry_after: Duration,
    },
    /// A write that the gate of this process did not let through.
    #[error("{operation}: {reason}")]
    Withheld {
        /// The call.
        operation: &'static str,
        /// Why.
        reason: String,
    },
    /// A sign-in page, a redirect to one, 401 or 403.
    #[error("{operation}: {detail}")]
    Unauthorized {
        /// The call.
        operation: &'static str,
        /// What the service said, and the remedy.
        detail: String,
    },
    /// Any other status.
    #[error("{operation}: HTTP {status}: {message}")]
    Status {
        /// The call.
        operation: &'static str,
        /// The status.
        status: StatusCode,
        /// Microsoft's short name of the exception, like `TaskAgentNotFoundException`; empty when there is none.
        type_key: String,
        /// What the service said.
        message: String,
    },
}

impl Error {
    /// What to do next. Microsoft's exception names count before the status, which differs between versions.
    pub fn class(&self) -> Class {
        match self {
            Self::Transport { .. }
            | Self::Unreadable { .. }
            | Self::Incomplete { .. }
            | Self::Withheld { .. } => Class::Transient,
            Self::Throttled { .. } => Class::Throttled,
            Self::Unauthorized { .. } => Class::Unauthorized,
            Self::Status { type_key, .. } if type_key.ends_with("NotFoundException") => {
                Class::NotFound
            }
            Self::Status { type_key, .. } if CONFLICTS.contains(&type_key.as_str()) => {
                Class::Conflict
            }
            Self::Status {
                status, message, ..
            } => match status.as_u16() {
                _ if message.contains("is running a job") => Class::Conflict,
                404 | 410 => Class::NotFound,
                409 => Class::Conflict,
                408 | 500.. => Class::Transient,
                _ => Class::Invalid,
            },
        }
    }

    /// How long the service wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

const CONFLICTS: [&str; 3] = [
    "TaskAgentExistsException",
    "TaskAgentJobStillRunningException",
    "TaskAgentSessionConflictException",
];
