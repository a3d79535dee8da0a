//! The hollow node on a real control plane.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod agents;
mod bed;
mod deletion;
mod misbehaviour;
mod puppet;
mod start;
