//! Tasks of developers, as `cargo xtask …`. They need cargo, Go and git, and nothing else.
//!
//! Nothing here ships with the operator, and nothing here is needed to build it.

mod chaos;
mod chart;
mod check;
mod cluster;
mod demo;
mod e2e;
mod fuzz;
mod generate;
mod image;
mod interrupt;
mod operator;
mod output;
mod pods;
mod repository;
mod sbom;
mod simulate;
mod stages;
mod test;
mod tools;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::stages::Stages;

/// Tasks of developers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Show the operator at work: a real Kubernetes API server, a simulated Azure DevOps, simulated agents.
    Demo(demo::Args),
    /// Run the operator while everything around it goes wrong, and check what came of it.
    Chaos(chaos::Args),
    /// Install the operator on a real node with real containers, as users do, and tell what they go through.
    E2e(e2e::Args),
    /// Run the fuzz targets under libFuzzer.
    Fuzz(fuzz::Args),
    /// Run the operator's logic against models of Azure DevOps and Kubernetes, with trouble from seeds.
    Simulate(simulate::Args),
    /// Run all tests, with a line per stage and a summary.
    Test,
    /// Write the files that are generated from the code.
    Generate,
    /// Build an image: the operator's, or a variant of the agent's.
    Image(image::Args),
    /// Write the operator's bill of materials, as `CycloneDX` JSON.
    Sbom {
        /// The file to write.
        file: PathBuf,
    },
    /// Check style, lints, documentation, dependencies, the chart and generated files.
    Check,
    /// What continuous integration runs: check and test.
    Ci,
}

fn main() -> Result<ExitCode> {
    match Task::parse() {
        Task::Demo(args) => demo::run(&args),
        Task::Chaos(args) => chaos::run(&args),
        Task::E2e(args) => e2e::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Simulate(args) => simulate::run(&args),
        Task::Test => Ok(stages(&[test::run])),
        Task::Generate => generate::write().map(|()| ExitCode::SUCCESS),
        Task::Image(args) => image::run(&args),
        Task::Sbom { file } => sbom::write(&file).map(|()| ExitCode::SUCCESS),
        Task::Check => Ok(stages(&[check::run])),
        Task::Ci => Ok(stages(&[check::run, test::run])),
    }
}

fn stages(parts: &[fn(&mut Stages)]) -> ExitCode {
    let mut stages = Stages::start();
    for part in parts {
        part(&mut stages);
    }
    stages.finish()
}
