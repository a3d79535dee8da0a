//! Watching requests. What is made of them, metrics or a log, is no business of this crate.

use std::{fmt, time::Duration};

/// Hears of every request that was answered, failed, or was withheld by the gate; not of one whose caller gave up.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A request came to an end, or the head of its answer arrived: the status of that, or why there is none, and after
    /// how long.
    fn answered(&self, operation: &'static str, answer: Answer, after: Duration);
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An answer with this HTTP status.
    Status(u16),
    /// None: the connection failed, or nothing came in time.
    Failed,
    /// The gate withheld it.
    Withheld,
}
