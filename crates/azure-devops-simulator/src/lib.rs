//! A stand-in for the agent-pool side of Azure DevOps, and for the agents that talk to it.
//!
//! [`World`] is the service as a state machine without clock, network or tasks. [`Simulator`]
//! serves it over HTTP. [`Control`] queues jobs and causes trouble. [`agent::Agent`] is an agent
//! that speaks the agents' wire protocol and works by sleeping.
//!
//! The crate shares no type with any client: what it sends and expects is written out here, from
//! public sources, so that a misspelled field shows. It never runs a pipeline's steps, never
//! keeps state on disk, and its tokens guard nothing.

pub mod agent;
pub mod control;
mod http;
mod server;
pub mod world;

pub use control::Control;
pub use server::{Moment, Passing, Simulator};
pub use world::{
    AgentSpec, AgentView, Fault, FaultKind, JobResult, JobSpec, JobView, Outcome, PatSpec,
    RateLimit, RequestCounts, Scope, Settings, Summary, Switches, World,
};
