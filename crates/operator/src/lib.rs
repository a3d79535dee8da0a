//! The operator: watches `RunnerPools`, looks at their agent pools and keeps the agents that their jobs need.
//!
//! It decides nothing itself: `planner` does. It keeps no state that a restart would lose: everything is read again
//! from the cluster and from Azure DevOps.

pub mod cli;
mod client;
pub mod decide;
pub mod decode;
mod events;
mod http;
pub mod lease;
mod manifest;
mod metrics;
mod mirror;
pub mod outside;
mod reader;
mod reconcile;
pub mod replica;
pub mod run;
mod subscriptions;
pub mod telemetry;
pub mod webhook;
