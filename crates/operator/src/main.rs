//! The program: `azdo-runner-operator run` and `azdo-runner-operator crd`.

use clap::Parser as _;
use operator::cli::{Cli, Command};

#[tokio::main]
async fn main() {
    let outcome = match Cli::parse().command {
        Command::Run(args) => operator::run::run(*args).await,
        Command::Crd => operator::cli::print_crd(),
    };
    let code = match outcome {
        Ok(()) => 0,
        Err(error) => {
            operator::telemetry::report_fatal(&error);
            if error.is::<operator::lease::Lost>() {
                operator::lease::EXIT_CODE
            } else {
                1
            }
        }
    };
    // At once: nothing of this process may go on, not even for as long as an answer takes to be read, or a name to be looked
    // up.
    std::process::exit(code)
}
