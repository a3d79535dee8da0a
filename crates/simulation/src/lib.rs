//! Seeded simulation: the operator's own logic against a model of the cluster and the simulator's Azure DevOps, under a
//! virtual clock, with trouble of every kind, and a judge that knows the truth.
//!
//! Shipped code runs here wherever no socket is needed: `planner`, its check, and through `operator::replica` the mirrors,
//! readers, subscriptions, resolving, observing, the Pods and claims as they are built and read back, and the order of
//! requests of each action. Azure DevOps is `azure_devops_simulator::World`. Models written for this crate are the API
//! server (`cluster`), nodes and agents (`simulation::agents`), strangers' agents (`simulation::hosts`), and what kube's
//! controller and watches do around passes (`simulation::operators`).
//!
//! A run never depends on real time, threads, the order of a hash map, or anything else than its seed.

mod book;
mod clock;
mod cluster;
mod control;
mod queue;
mod random;
mod scenario;
pub mod seeds;
mod simulation;
mod wire;

use azure_devops::{Connections, Sending, Sent, Withheld, WriteGate};
pub use book::{Breach, Counts, Failure};
pub use control::Control;
use futures::future::BoxFuture;
use simulation::Simulation;

/// How a seed is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Virtual hours of load and trouble, before everything has to come to rest.
    pub hours: i64,
    /// An operator that is to fail.
    pub control: Option<Control>,
    /// Tell the story on standard output.
    pub trace: bool,
    /// Leave out looks that cannot change anything.
    pub skip: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hours: 24,
            control: None,
            trace: false,
            skip: true,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// What happened.
    pub counts: Counts,
    /// RunnerPools.
    pub pools: u64,
    /// Equal for equal runs: a digest of all that took effect.
    pub digest: u64,
}

/// Withholds every write: nothing is ever sent.
#[derive(Clone, Copy, Debug)]
struct NoSockets;

impl WriteGate for NoSockets {
    fn carry_out(&self, _: Sending) -> BoxFuture<'static, Result<Sent, Withheld>> {
        let withheld = Withheld("a simulation has no sockets".into());
        Box::pin(std::future::ready(Err(withheld)))
    }
}

/// Runs seeds.
#[derive(Clone, Debug)]
pub struct Simulator {
    /// Never used to send anything: the operator's subscriptions ask for one.
    connections: Connections,
}

impl Simulator {
    /// One for all runs.
    pub fn new() -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            connections: Connections::new(NoSockets)?,
        })
    }

    /// Runs one seed.
    pub fn run(&self, seed: u64, options: Options) -> Run {
        let simulation = Simulation::new(seed, options, self.connections.clone());
        let pools = u64::try_from(simulation.scenario.pools.len()).unwrap_or_default();
        let book = simulation.run();
        Run {
            seed,
            pools,
            digest: book.digest(),
            failures: book.failures,
            counts: book.counts,
        }
    }
}
