//! What a starting backend says: by its record, since the notify protocol takes a kind of socket that Windows does not have.

use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

use crate::process::error::{ProcessError, off_thread_call};
use crate::process::files::Files;
use crate::process::notify::Message;
use crate::process::record::{Reading, Record, State};

const PAUSE: Duration = Duration::from_millis(10);

/// What a backend in Rust writes to its record.
#[derive(Debug)]
pub(in crate::process) struct Notifications {
    files: Files,
    launch: u64,
}

impl Notifications {
    pub(in crate::process) fn bind(files: &Files, record: &Record) -> Result<Self, ProcessError> {
        Ok(Self {
            files: files.clone(),
            launch: record.launch,
        })
    }

    /// Does nothing: the backend knows its record.
    pub(in crate::process) fn announce(&self, _command: &mut Command) {}

    /// Does nothing, see [`announce`](Self::announce).
    pub(in crate::process) fn hide(_command: &mut Command) {}

    /// Waits until the backend is ready. Cancel safe. (What it says with a status stands in the record already.)
    pub(in crate::process) async fn next(&self) -> Result<Message, ProcessError> {
        loop {
            let files = self.files.clone();
            let reading = off_thread_call(move || Record::read(&files)).await;
            if let Ok(Reading::Found(record)) = reading {
                // One that was asked to end may have been ready before.
                let is_ready = record.state == State::Ready || record.was_ready;
                if record.launch == self.launch && is_ready {
                    return Ok(Message {
                        is_ready: true,
                        status: record.status,
                        endpoint: record.endpoint,
                        ..Message::default()
                    });
                }
            }
            sleep(PAUSE).await;
        }
    }
}

/// Does nothing: the record says it.
pub(in crate::process) fn send(_message: &Message) {}
