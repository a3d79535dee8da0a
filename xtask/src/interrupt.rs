//! The wish of whoever runs a task to end it early: then what is running is stopped in order, instead of dying in the middle.

use std::process::ExitCode;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT.
const EXIT_CODE: u8 = 130;

/// Carries a task out, on a runtime of its own. `None` from it: it was interrupted and has stopped what it started.
pub(crate) fn run(
    task: impl AsyncFnOnce(&mut Interrupt) -> Result<Option<ExitCode>>,
) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = Interrupt::listen()?;
        let end = task(&mut interrupt).await?;
        if end.is_none() {
            output::line("\nInterrupted; everything that was started is stopped and removed.");
        }
        Ok(end.unwrap_or(ExitCode::from(EXIT_CODE)))
    })
}

/// Ctrl-C or SIGTERM.
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    pub(crate) fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
