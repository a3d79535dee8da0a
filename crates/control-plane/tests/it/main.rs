//! The control plane as its users see it: it works, and it leaves nothing behind.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod cluster;
mod left_behind;
mod restart;
