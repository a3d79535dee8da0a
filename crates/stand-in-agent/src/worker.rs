//! `Agent.Worker`: there as long as a job is, with the environment that its steps get.

use std::{io::Read as _, process::Command};

use anyhow::{Context as _, Result};

/// Runs the step, if there is one, and stays until the listener closes its standard input, as a job's end does. Gives the
/// exit code.
///
/// # Errors
/// Where the step cannot be started.
pub fn main() -> Result<u8> {
    if let Some(step) = std::env::var_os(crate::STEP) {
        Command::new("bash")
            .arg("-c")
            .arg(step)
            .status()
            .context("failed to run the step")?;
    }
    // The job is over when the pipe is closed; nothing is ever written to it.
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("failed to wait for the end of the job")?;
    Ok(0)
}
