//! Stopping a backend: what a user asks for, and what it came to.

use std::fmt;

use tokio::time::Instant;

use super::end::{Manner, ask_in_record, end_process};
use super::error::{ProcessError, Why};
use super::files::Files;
use super::launcher::ProcessLauncher;
use super::look::Sight;
use super::ready::Pause;
use super::sys;
use crate::admin::BackendEnd;
use crate::key::GateKey;

/// How a backend was ended, see [`ProcessLauncher::stop`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Stopped {
    /// None was there.
    NotRunning,
    /// It ended after it was asked to: by SIGTERM.
    Orderly {
        /// Its process id.
        pid: u32,
    },
    /// It was ended by force: SIGKILL.
    Forced {
        /// Its process id.
        pid: u32,
    },
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning => f.write_str("not running"),
            Self::Orderly { pid } => write!(f, "stopped process {pid}"),
            Self::Forced { pid } => write!(f, "killed process {pid}"),
        }
    }
}

/// How to end a backend, see [`ProcessLauncher::stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// SIGTERM. On Windows, only a backend with an [`Instance`](super::Instance) that waits in
    /// [`until_leave`](super::Instance::until_leave) can be asked to end.
    Orderly,
    /// SIGTERM, and SIGKILL for its process group if it has not ended after [`grace`](ProcessLauncher::grace). On Windows, its process
    /// and those that it started are terminated, but for other backends of the directory; at once, if it cannot be asked.
    Force,
}

impl<K: GateKey> ProcessLauncher<K> {
    /// Ends the backend of `key`, whichever process launched it, and returns how. Returns only once it is gone.
    ///
    /// A launch that is in progress is waited for first, up to [`start_timeout`](Self::start_timeout); with [`Stop::Force`] it
    /// is not. SIGTERM goes to the backend's process, and to its group once that is gone; SIGKILL, by force, to its group. The end
    /// is reported to the gate as orderly, so it does not count against the next launch.
    ///
    /// # Errors
    ///
    /// [`ProcessError::NotEnded`] if it did not end in time; it then counts as leaving. [`ProcessError::Unusable`] if something is
    /// there and it is unknown which process that is, or that process cannot be signalled or (on Windows) asked to end. Other errors
    /// if it cannot be told whether one is there.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the backend may have been told to end.
    pub async fn stop(&self, key: impl Into<K>, how: Stop) -> Result<Stopped, ProcessError> {
        let key = key.into();
        let files = Files::new(&self.directory, &key);
        let force = how == Stop::Force;
        let Some(sight) = self.once_launched(&files, force).await? else {
            return Ok(Stopped::NotRunning);
        };
        let process = match sight.process() {
            Some(process) => process.clone(),
            None => return Err(sight.no_process()),
        };
        // Before the record says that it is leaving.
        if process.is_out_of_reach() {
            return Err(sight.unusable(Why::OutOfReach));
        }
        let reads = sight.record().is_some_and(|record| record.reads_requests);
        let can_be_asked = reads || !sys::READS_REQUESTS;
        if !can_be_asked && !force {
            return Err(sight.unusable(Why::CannotBeAsked));
        }
        let manner = Manner {
            can_be_asked,
            force,
        };
        let launch = sight.record().map(|record| record.launch);
        // On a full disk the backend gets its signal all the same; where there is none, this is tried again, and an error is returned.
        let _ = ask_in_record(&sight, launch).await;
        // If that takes too long, it is still leaving: it may finish its work first, and refuse new.
        let forced = end_process(&files, &process, launch, self.grace, manner).await?;
        if let Some(launch) = launch {
            // Without it the next look reports it, from the record.
            let _ = self
                .gate
                .backend_ended(key, BackendEnd::orderly(launch))
                .await;
        }
        let pid = process.pid;
        Ok(match forced {
            true => Stopped::Forced { pid },
            false => Stopped::Orderly { pid },
        })
    }

    /// Waits for a launch in progress, and returns what is there then.
    async fn once_launched(
        &self,
        files: &Files,
        force: bool,
    ) -> Result<Option<Sight>, ProcessError> {
        let begun = Instant::now();
        let mut pause = Pause::default();
        loop {
            let sight = Sight::take(files).await?;
            if !sight.is_there() {
                return Ok(None);
            }
            let is_launched = sight.is_launched();
            if is_launched && !sight.process_may_live() {
                // Names the process to which a program has handed over, if there is one.
                let _ = sight.presence(&self.wanted).await;
            }
            // Right after a launch has begun, the record is still that of the last one, and then the process is not known yet.
            let may_end = sight.process_may_live() && (is_launched || force);
            let limit = match is_launched {
                true => self.wanted.limit,
                false => self.start_timeout,
            };
            if may_end || pause.is_over(begun + limit).await {
                return Ok(Some(sight));
            }
        }
    }
}
