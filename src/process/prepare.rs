//! The blocking part of a start: the files, and the process.

use std::process::Command;
use std::time::Duration;

use super::error::ProcessError;
use super::files::{Files, LAUNCH, STEM};
use super::log;
use super::order::Order;
use super::record::{ProcessName, Record};
use super::sys::{LifeLock, Notifications, Started, UseLock};
use super::tie::Tie;

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
        life: LifeLock,
        mut command: Command,
    ) -> Result<(Started, Record, Option<Notifications>), ProcessError> {
        let Self {
            files, mut record, ..
        } = self;
        let (log, log_start) = log::open(&files.log(), self.log_limit, record.launch)?;
        record.log_start = log_start;
        UseLock::make(&files)?;
        let name = ProcessName::clear(&files)?;
        record.write(&files)?;
        let notifications = match self.uses_notify {
            true => Some(Notifications::bind(&files, &record)?),
            false => None,
        };
        match &notifications {
            Some(notifications) => notifications.announce(&mut command),
            // The socket of this process is not meant for it.
            None => Notifications::hide(&mut command),
        }
        command
            .env(LAUNCH, record.launch.to_string())
            .env(STEM, files.stem());
        let order = Order {
            command,
            tie: self.tie,
            life,
            log,
            directory: files.directory().to_path_buf(),
            grace: self.grace,
        };
        let started = order.spawn()?;
        name.write(&started.process)?;
        Ok((started, record, notifications))
    }
}
