//! An agent's package with the layout of the real one (`config.sh`, `run.sh`, `bin/Agent.Listener`, `bin/Agent.Worker`,
//! `externals/`), whose agent is the simulated one of `azure-devops-simulator`. Agent images are built and tested with it
//! where Microsoft's package cannot be had, or must not talk to Azure DevOps.
//!
//! It runs no pipeline. A job lasts as long as the simulator says; meanwhile a process `Agent.Worker` is there, as image
//! and operator expect it, and runs one command, the job's only step, if [`STEP`] names one.

pub mod listener;
mod package;
pub mod worker;

pub use package::{archive, lay_out};

/// Environment variable with a shell command that stands for the steps of every job.
pub const STEP: &str = "STAND_IN_STEP";

/// Environment variable that makes the agent update itself when it starts: `succeed`, once; `failed`, with an update that
/// fails; `endless`, again after each update.
pub const UPDATE: &str = "STAND_IN_UPDATE";

/// Environment variable `fast`: pauses as tests like them, rather than those of a real agent.
pub const PACE: &str = "STAND_IN_PACE";
