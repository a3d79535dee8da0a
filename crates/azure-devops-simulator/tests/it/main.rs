//! The simulator from outside: the world at virtual times, the HTTP face, the agent end to end,
//! faults, and clients that we did not write.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, and says so best at once"
)]

mod agent;
mod bench;
mod faults;
mod foreign;
mod http;
mod world;
