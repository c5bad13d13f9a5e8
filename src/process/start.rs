//! Starting a backend: from its command to one that is ready.

use std::process::{Command, ExitStatus};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};

use super::backend::{Backend, Presence};
use super::endpoint::Endpoint;
use super::error::{ProcessError, off_thread_call};
use super::files::Files;
use super::identity::{Condition, ProcessIdentity};
use super::launcher::ProcessLauncher;
use super::log;
use super::look::Sight;
use super::prepare::Preparation;
use super::ready::{Late, Pause, Ready, Sign, Start};
use super::record::{Reading, Record, State};
use super::sys::{LifeLock, Started, holder_of, holds};
use super::tie::Tie;
use crate::error::{BoxError, NotStarted};
use crate::flight::Launch;
use crate::key::GateKey;
use crate::lock::{FileSpawnLock, SpawnLockError};

/// How long the system may take to end a process that no longer answers.
const ENDING: Duration = Duration::from_millis(100);

/// The pause between looks at a program that has forked.
const FORKED_PAUSE: Duration = Duration::from_millis(20);

impl<K: GateKey> ProcessLauncher<K> {
    /// Starts the backend and waits until it is ready.
    pub(super) async fn start(
        &self,
        launch: Launch<K>,
        command: Command,
        ready: Ready,
    ) -> Result<Backend, BoxError> {
        if let Some(endpoint @ Endpoint::Unix(path)) = &ready.endpoint {
            if cfg!(windows) {
                return Err(before_start(ProcessError::Connect {
                    endpoint: endpoint.clone(),
                    source: std::io::ErrorKind::Unsupported.into(),
                }));
            }
            if let Some(limit) = Endpoint::excess(path) {
                let path = path.clone();
                return Err(before_start(ProcessError::SocketPathTooLong {
                    path,
                    limit,
                }));
            }
        }
        let files = Files::new(&self.directory, &launch.key);
        let life = self.take_life(&files).await.map_err(before_start)?;
        let life = match life {
            Life::Taken(life) => life,
            Life::Lives(backend) => return Ok(backend),
        };
        let is_taken = match (&ready.sign, &ready.endpoint) {
            (Sign::Accepts, Some(endpoint)) => endpoint.probe().await.is_ok(),
            _ => false,
        };
        let preparation = Preparation {
            files: files.clone(),
            record: self.record(&launch, &ready),
            uses_notify: matches!(ready.sign, Sign::Notify),
            log_limit: self.wanted.log_limit,
            grace: self.grace,
            tie: self.tie,
        };
        let (mut started, record, notifications) =
            off_thread_call(move || preparation.start(life, command))
                .await
                .map_err(before_start)?;
        let begun = Instant::now();
        let mut start = Start {
            started: started.process.clone(),
            files: files.clone(),
            record,
            begun,
            limit: self.start_timeout,
            deadline: begun + self.start_timeout,
            notifications,
            is_taken,
            main_pid: None,
        };
        let became_ready = self
            .until_ready(&mut started, &mut start, &ready.sign)
            .await;
        let became_ready = match became_ready {
            Ok(()) => publish(start).await,
            Err(error) => Err(error),
        };
        match became_ready {
            Ok(backend) => {
                let has_forked = backend.process != started.process;
                self.supervise(launch, files, started, has_forked);
                Ok(backend)
            }
            Err(error) => {
                let pid = started.process.pid;
                // Before it is told to end here, which a backend may note in its record.
                let was_stopped = was_stopped(&files, launch.fencing_token).await;
                started.give_up().await;
                match was_stopped {
                    true => Err(NotStarted::new(ProcessError::Stopped { pid }, true).into()),
                    false => Err(error.into()),
                }
            }
        }
    }

    fn record(&self, launch: &Launch<K>, ready: &Ready) -> Record {
        Record {
            state: State::Starting,
            launch: launch.fencing_token,
            launcher: ProcessIdentity::of_this_process(),
            process: None,
            endpoint: ready.endpoint.clone(),
            version: self.wanted.version.clone(),
            since: SystemTime::now(),
            log_start: 0,
            ready_line: match &ready.sign {
                Sign::Line(words) => Some(words.clone()),
                _ => None,
            },
            ready_by_connection: matches!(ready.sign, Sign::Accepts),
            is_attached: self.tie == Tie::Attached,
            was_ready: false,
            reads_requests: false,
            status: None,
        }
    }

    /// Takes the lock for the backend's life. A backend of a launch that was given up gets its grace time to end.
    async fn take_life(&self, files: &Files) -> Result<Life, ProcessError> {
        let directory = files.directory().to_path_buf();
        off_thread_call(move || {
            // Makes the directory, with the checks of a lock directory.
            FileSpawnLock::new(directory)
                .map(drop)
                .map_err(ProcessError::Directory)
        })
        .await?;
        let deadline = Instant::now() + self.grace + Duration::from_secs(1);
        let mut pause = Pause::default();
        loop {
            let of = files.clone();
            let taken = off_thread_call(move || LifeLock::try_take(&of)).await?;
            if let Some(life) = taken {
                // One that closed its descriptors has let go of the lock.
                if !Sight::take(files).await?.process_lives() {
                    return Ok(Life::Taken(life));
                }
            }
            if pause.is_over(deadline).await {
                let sight = Sight::take(files).await?;
                let presence = sight.presence(&self.wanted).await?;
                return match presence {
                    // The launcher of an earlier one was killed, and it became ready by itself meanwhile.
                    Presence::Ready(backend) => Ok(Life::Lives(backend)),
                    // Something other than a backend has the lock.
                    Presence::Gone => {
                        let path = files.life();
                        let locked = SpawnLockError::AlreadyLocked { path };
                        Err(ProcessError::Directory(locked))
                    }
                    presence => Err(sight.still(&presence)),
                };
            }
        }
    }

    /// Waits until the backend is ready, or has ended, or its time is over.
    async fn until_ready(
        &self,
        started: &mut Started,
        start: &mut Start,
        sign: &Sign,
    ) -> Result<(), ProcessError> {
        let pid = start.started.pid;
        let (files, log_start) = (start.files.clone(), start.record.log_start);
        let words = async || log::last_words(&files, log_start).await;
        let ended = |status, words| ProcessError::Ended {
            pid,
            status,
            words,
            log: files.log(),
        };
        let became_ready = tokio::select! {
            // A backend that says it is ready and ends has been ready.
            biased;
            ready = start.wait(sign) => ready,
            status = end_of(started, &files) => match sign {
                Sign::Line(line) if log::has_line(&files, log_start, line).await => Ok(Ok(())),
                _ => return Err(ended(status, words().await)),
            },
        };
        match became_ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Late)) => Err(ProcessError::NotReady {
                pid,
                after: start.deadline - start.begun,
                status: start.record.status.take(),
                words: words().await,
                log: files.log(),
            }),
            // The probe may have failed because the backend ended.
            Err(error @ ProcessError::Probe { .. }) => {
                match timeout(ENDING, end_of(started, &files)).await {
                    Ok(status) => Err(ended(status, words().await)),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

/// The error of a launch that has started nothing. It is not charged if the backend is not to blame.
fn before_start(error: ProcessError) -> BoxError {
    match error.is_of_environment() {
        true => {
            let retry_helps = error.retry_helps();
            NotStarted::new(error, retry_helps).into()
        }
        false => error.into(),
    }
}

/// Whether somebody stopped the backend of this launch.
async fn was_stopped(files: &Files, launch: u64) -> bool {
    let sight = Sight::take(files).await.ok();
    let record = sight.as_ref().and_then(Sight::record);
    record.is_some_and(|record| record.launch == launch && record.state == State::Leaving)
}

/// Waits for the end of a backend that is not ready yet.
async fn end_of(started: &mut Started, files: &Files) -> Option<ExitStatus> {
    let status = started.ended().await;
    // A program may fork and exit: its child has the lock for its life, and goes on.
    while status.is_some_and(|status| status.success()) {
        match Sight::take(files).await {
            Ok(sight) if sight.is_there() => tokio::time::sleep(FORKED_PAUSE).await,
            _ => break,
        }
    }
    status
}

/// Says in the record that the backend is ready, unless the backend has said so itself, or more.
async fn publish(start: Start) -> Result<Backend, ProcessError> {
    let Start {
        files,
        record,
        main_pid,
        started,
        ..
    } = start;
    let of = files.clone();
    off_thread_call(move || {
        // It may say what it likes, but only a process of this launch has the lock.
        let main = main_pid.filter(|&pid| holds(pid, &files));
        let main = main.map(ProcessIdentity::of);
        let ready = Record {
            state: State::Ready,
            // A program that forked and exited has another process now. The lock file may be deleted, so it stands here, too.
            process: main
                .or_else(|| forked(&started, &files, record.launch))
                .or(Some(started)),
            ..record
        };
        match Record::read(&files)? {
            Reading::Found(found)
                if found.launch == ready.launch && found.state != State::Starting =>
            {
                Ok(())
            }
            _ => ready.write(&files),
        }
    })
    .await?;
    let sight = Sight::take(&of).await?;
    sight.backend().ok_or_else(|| sight.no_process())
}

/// The backend's process, if the one that was started has ended.
fn forked(started: &ProcessIdentity, files: &Files, launch: u64) -> Option<ProcessIdentity> {
    let has_ended = started.condition() == Condition::Gone;
    has_ended.then(|| holder_of(files, Some(launch))).flatten()
}

/// The lock for a backend's life.
enum Life {
    Taken(LifeLock),
    /// A backend has it, and is ready.
    Lives(Backend),
}
