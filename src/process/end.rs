//! Ending a backend, whichever process started it.

use std::time::Duration;

use tokio::time::Instant;

use super::error::{ProcessError, off_thread_call};
use super::files::Files;
use super::identity::{Condition, ProcessIdentity};
use super::look::Sight;
use super::ready::Pause;
use super::record::{Record, State};
use super::sys::{self, Group};

/// The system ends a process that got SIGKILL by itself. On a busy machine that may take longer than a short grace time.
const LEAST_AFTER_KILL: Duration = Duration::from_secs(5);

/// How a backend is ended.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Whether it can end by itself if it is asked to.
    pub(super) can_be_asked: bool,
    pub(super) force: bool,
}

/// Ends a backend: asks its process alone, so that it can end its children itself; once that is gone, asks what it left behind in its
/// group; and ends by force the whole group. Returns, once nothing holds the lock, whether force was needed. `launch`, if known, tells
/// it from a later backend. One that cannot be asked gets no time for it.
pub(super) async fn end_process(
    files: &Files,
    process: &ProcessIdentity,
    launch: Option<u64>,
    grace: Duration,
    manner: Manner,
) -> Result<bool, ProcessError> {
    // As long as the process lives: it may not lead its group (a program started by a script, say).
    let group = process.group(files);
    process.ask_to_end();
    // A stopped process cannot react.
    let is_stopped = process.condition() == Condition::Stopped;
    let asked_for = if manner.force && (is_stopped || !manner.can_be_asked) {
        Duration::ZERO
    } else {
        grace
    };
    if is_gone(files, process, &group, launch, asked_for).await? {
        return Ok(false);
    }
    if manner.force {
        group.kill();
        process.kill();
        let limit = grace.max(LEAST_AFTER_KILL);
        if is_gone(files, process, &group, launch, limit).await? {
            return Ok(true);
        }
    }
    Err(ProcessError::NotEnded {
        pid: process.pid,
        after: grace,
        is_stopped: process.condition() == Condition::Stopped,
    })
}

/// Waits until it is gone. False if it is still there, or a process that it started and that holds the lock for its life.
async fn is_gone(
    files: &Files,
    process: &ProcessIdentity,
    group: &Group,
    launch: Option<u64>,
    limit: Duration,
) -> Result<bool, ProcessError> {
    let deadline = Instant::now() + limit;
    let mut pause = Pause::default();
    let mut has_told_group = false;
    loop {
        let sight = Sight::take(files).await?;
        if sys::READS_REQUESTS {
            ask_in_record(&sight, launch).await?;
        }
        if process.condition() == Condition::Gone && !has_told_group {
            // Also what does not hold the lock.
            group.ask_to_end();
            has_told_group = true;
        }
        if !sight.is_there()
            || process.condition() == Condition::Gone && is_another(&sight, process, launch)
        {
            return Ok(true);
        }
        if pause.is_over(deadline).await {
            return Ok(false);
        }
    }
}

/// Says in the record that the end is wanted, unless that stands there: the backend may have written something else meanwhile.
pub(super) async fn ask_in_record(sight: &Sight, launch: Option<u64>) -> Result<(), ProcessError> {
    let record = sight.record().filter(|record| {
        sight.is_there()
            && record.state != State::Leaving
            && launch.is_none_or(|launch| launch == record.launch)
    });
    let (Some(record), files) = (record.cloned(), sight.files.clone()) else {
        return Ok(());
    };
    let leaving = Record {
        state: State::Leaving,
        ..record.clone()
    };
    off_thread_call(move || leaving.replace(&record, &files)).await
}

/// Whether what is there was launched since. A process of the same launch is what the first one left behind.
fn is_another(sight: &Sight, process: &ProcessIdentity, launch: Option<u64>) -> bool {
    match (launch, sight.record()) {
        (Some(launch), Some(record)) => record.launch != launch,
        _ => sight.process().is_some_and(|found| found != process),
    }
}
