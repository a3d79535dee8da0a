//! The program: `azdo-runner-operator run` and `azdo-runner-operator crd`.

use std::process::ExitCode;

use clap::Parser as _;
use operator::cli::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => operator::run::run(args).await,
        Command::Crd => operator::cli::print_crd(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            operator::telemetry::report_fatal(&error);
            ExitCode::FAILURE
        }
    }
}
