//! The container runtime: what a hollow node runs for a container `agent`.

use std::collections::BTreeMap;

use azure_devops_simulator::agent::{self, Agent, Pace};
use futures::{FutureExt as _, future::BoxFuture};

/// What a container `agent` is started with, everything resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The environment of the container.
    pub env: BTreeMap<String, String>,
    /// The arguments of the container (`args`).
    pub args: Vec<String>,
    /// What is installed in the image: capability and its value.
    pub tools: BTreeMap<String, String>,
    /// The host name that the container sees, which is the pod's name.
    pub host_name: String,
}

/// Starts processes.
pub trait Runtime: Send + Sync + 'static {
    /// Starts one; it never fails, since an agent that cannot start is one that exits at once.
    fn launch(&self, launch: Launch) -> Box<dyn Process>;
}

/// A running agent. Dropping one that runs kills it.
pub trait Process: Send + Sync {
    /// SIGTERM.
    fn terminate(&self);
    /// SIGKILL: it ends without another word to anyone.
    fn kill(&self);
    /// Waits until no `Agent.Worker` runs, so that no job would be hit by a SIGTERM; also ends when the process does.
    fn worker_idle(&self) -> BoxFuture<'_, ()>;
    /// Waits for the exit code. Giving up a wait loses nothing.
    fn wait(&mut self) -> BoxFuture<'_, i32>;
}

/// The runtime of the simulated agents that come with the simulator of Azure DevOps.
#[derive(Clone, Debug)]
pub struct SimulatedAgents {
    /// How fast the agents go about their work.
    pub pace: Pace,
}

impl Runtime for SimulatedAgents {
    fn launch(&self, launch: Launch) -> Box<dyn Process> {
        let Launch {
            env,
            args,
            tools,
            host_name,
        } = launch;
        let pace = self.pace.clone();
        Box::new(Agent::spawn(agent::Launch {
            env,
            args,
            tools,
            host_name,
            pace,
        }))
    }
}

impl Process for Agent {
    fn terminate(&self) {
        Agent::terminate(self);
    }

    fn kill(&self) {
        Agent::kill(self);
    }

    fn worker_idle(&self) -> BoxFuture<'_, ()> {
        Agent::worker_idle(self).boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, i32> {
        Agent::wait(self).boxed()
    }
}
