//! The entry point of the agent's image, run for real: as the first process of namespaces of its own, as user 1000, with
//! this crate's package and the simulator over HTTP. No container engine and no root are needed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, and says so best at once"
)]

mod certificates;
mod container;
mod service;
mod start;
mod stop;
mod token;
mod update;
