//! Runs the seeded simulation, in a release build: a dev build takes ten times as long.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::repository;

/// Arguments of the program `simulate`; `cargo xtask simulate -- --help` lists them.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    let status = command(&arguments).status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The program with these arguments.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let program = [
        "run",
        "--release",
        "--quiet",
        "--package",
        "simulation",
        "--bin",
        "simulate",
        "--",
    ];
    repository::cargo(&[&program, arguments].concat())
}
