//! Client of the few Azure DevOps REST calls that an autoscaler of agents needs, named as Microsoft names them.
//!
//! It sends what it is told and says what came back, classed by what to do next. It never decides about agents, keeps
//! no lists and knows no Kubernetes. Facts of the protocol: Microsoft's `azure-devops` Python client 7.1, the agent
//! (`microsoft/azure-pipelines-agent`) and "Rate and usage limits" of the Azure DevOps documentation.

mod client;
pub mod decode;
mod error;
mod gate;
mod observer;
mod pacing;
mod types;

pub use client::{Client, Connections};
pub use error::{Class, Error};
pub use gate::{Sending, Sent, Withheld, WriteGate};
pub use observer::{Answer, Observer};
pub use pacing::RateLimit;
pub use types::{
    NewAgent, TaskAgent, TaskAgentJobRequest, TaskAgentPool, TaskAgentReference, TaskAgentStatus,
};
