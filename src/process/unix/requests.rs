//! How a backend learns that it is to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::files::Files;

/// Whether a backend reads in its record that it is to end. It gets a signal.
pub(in crate::process) const READS_REQUESTS: bool = false;

/// SIGTERM, SIGINT and SIGHUP of this process.
#[derive(Debug)]
pub(in crate::process) struct Requests {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Requests {
    /// Installs the handlers.
    pub(in crate::process) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns once the backend of these files is to end.
    pub(in crate::process) async fn next(&mut self, _files: &Files) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
