//! The blocking part of a start: the files, and the process.

use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::error::ProcessError;
use super::files::{Files, LAUNCH, STEM, open_to_write};
use super::log;
use super::notify::{self, Notifications};
use super::record::{ProcessName, Record};
use super::spawn::{Order, Started, Tie};
use crate::lock::SpawnLockGuard;

/// What is made ready for a start, in one blocking call.
pub(super) struct Preparation {
    pub(super) files: Files,
    pub(super) record: Record,
    pub(super) uses_notify: bool,
    pub(super) log_limit: u64,
    pub(super) grace: Duration,
    pub(super) tie: Tie,
}

impl Preparation {
    pub(super) fn start(
        self,
        life: SpawnLockGuard,
        mut command: Command,
    ) -> Result<(Started, Record, Option<Notifications>), ProcessError> {
        let Self {
            files, mut record, ..
        } = self;
        let (log, log_start) = log::open(&files.log(), self.log_limit, record.launch)?;
        record.log_start = log_start;
        open_to_write(&files.in_use())?;
        let name = ProcessName::clear(&files)?;
        record.write(&files)?;
        let notifications = match self.uses_notify {
            true => Some(Notifications::bind(files.notify())?),
            false => None,
        };
        match &notifications {
            Some(notifications) => command.env(notify::VARIABLE, notifications.path()),
            // That of this process is not meant for it.
            None => command.env_remove(notify::VARIABLE),
        };
        command
            .env(LAUNCH, record.launch.to_string())
            .env(STEM, files.stem());
        let life_path = files.life();
        let life = life
            .hand_over()
            .map_err(|error| ProcessError::file(&life_path, "pass on", error))?;
        let held = life
            .try_clone()
            .map_err(|error| ProcessError::file(&life_path, "pass on", error))?;
        let order = Order {
            command,
            tie: self.tie,
            life,
            log,
            directory: files.directory().to_path_buf(),
            grace: self.grace,
        };
        let started = order.spawn().inspect_err(|_| {
            // A child of another thread, between fork and exec, may have a copy of the descriptor.
            let _ = flock(&held, FlockOperation::Unlock);
        })?;
        name.write(&started.process)?;
        Ok((started, record, notifications))
    }
}
