//! The operator as a whole: a real API server, the simulator of Azure DevOps over HTTP, a hollow node with simulated
//! agents. Each test has a namespace, an organization and an operator of its own, and asserts on the state of the
//! cluster and of Azure DevOps.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![expect(
    clippy::print_stdout,
    reason = "figures are read off the runs of tests"
)]

mod bed;
mod chart;
mod connection;
mod crd;
mod demands;
mod failover;
mod frozen;
mod leadership;
mod lifecycle;
mod metrics;
mod mode;
mod naming;
mod pods;
mod proxy;
mod removals;
mod replica;
mod rights;
mod scaling;
mod schedules;
mod shutdown;
mod storage;
mod stuck;
mod webhooks;
