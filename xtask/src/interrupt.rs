//! The wish of whoever runs a task to end it early: then what is running is stopped in order, instead of dying in the middle.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

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
