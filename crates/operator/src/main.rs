//! The program: `azdo-runner-operator run` and `azdo-runner-operator crd`.

use std::process::ExitCode;

use clap::Parser as _;
use operator::cli::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => operator::run::run(*args).await,
        Command::Crd => operator::cli::print_crd(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            operator::telemetry::report_fatal(&error);
            if error.is::<operator::lease::Lost>() {
                // At once: nothing of this process may go on, not even for as long as an answer takes to be read.
                std::process::exit(operator::lease::EXIT_CODE);
            }
            ExitCode::FAILURE
        }
    }
}
