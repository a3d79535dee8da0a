//! A hollow node: the kubelet and the scheduler of a cluster that has neither, for tests and demonstrations.
//!
//! It binds pods, starts them after a delay, reports their status, honours deletion with pre-stop hook and grace period,
//! and runs a simulated Azure Pipelines agent for each container `agent`, with that pod's own environment and arguments.
//! It can misbehave on demand ([`Rule`], [`HollowNode::vanish`], [`HollowNode::lose`], …). Thousands of pods on one machine
//! are its purpose: one process, a few watches, one task per pod and two writes per start.
//!
//! To the API server it is a real node; what it never does is run an image, mount a volume, probe a container, restart one
//! (every pod is played as `restartPolicy: Never`), weigh resources or taints, serve logs and exec, or write events.

mod api;
mod environment;
mod housekeeping;
mod misbehaviour;
mod node;
mod pod;
mod pods;
mod quantity;
mod runtime;
mod settings;
mod status;

pub use misbehaviour::{Rule, RuleId, What};
pub use node::HollowNode;
pub use runtime::{Launch, Process, Runtime, SimulatedAgents};
pub use settings::Settings;
