//! How a backend learns that it is to end.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};
use tokio::time::sleep;

use crate::process::error::off_thread_call;
use crate::process::files::Files;
use crate::process::record::{Reading, Record, State};

/// Whether a backend reads in its record that it is to end: a process without a console gets no signal.
pub(in crate::process) const READS_REQUESTS: bool = true;

const LOOK_AFTER: Duration = Duration::from_millis(100);

/// The record that says "leaving", and the events of a console, if there is one.
#[derive(Debug)]
pub(in crate::process) struct Requests {
    c: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl Requests {
    /// Installs the handlers.
    pub(in crate::process) fn new() -> io::Result<Self> {
        Ok(Self {
            c: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// Returns once the backend of these files is to end.
    pub(in crate::process) async fn next(&mut self, files: &Files) {
        tokio::select! {
            () = told_by_record(files) => {}
            () = some(self.c.recv()) => {}
            () = some(self.r#break.recv()) => {}
            () = some(self.close.recv()) => {}
            () = some(self.shutdown.recv()) => {}
        }
    }
}

async fn some(event: impl Future<Output = Option<()>>) {
    if event.await.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn told_by_record(files: &Files) {
    loop {
        let files = files.clone();
        let reading = off_thread_call(move || Record::read(&files)).await;
        // Whose record it is, the backend finds out by itself.
        if matches!(reading, Ok(Reading::Found(record)) if record.state == State::Leaving) {
            return;
        }
        sleep(LOOK_AFTER).await;
    }
}
