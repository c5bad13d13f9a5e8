//! The launcher: from a permit to a backend that is ready.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::backend::{Backend, Presence};
use super::end::end_process;
use super::endpoint::{Endpoint, PROBE_LIMIT};
use super::error::{ProcessError, Why, off_thread_call};
use super::files::{Files, LAUNCH, STEM, open_to_write};
use super::holder::{KNOWS_HOLDERS, holder_of, holds};
use super::identity::{Condition, ProcessIdentity};
use super::log;
use super::look::{Found, Sight, Wanted, look};
use super::notify::{self, Notifications};
use super::ready::{Late, Pause, Ready, Sign, Start};
use super::record::{ProcessName, Reading, Record, State};
use super::spawn::{Order, Started, Tie};
use crate::admin::BackendEnd;
use crate::error::{BoxError, NotStarted};
use crate::flight::{BackendLauncher, Launch, LaunchPermit};
use crate::gate::SpawnGate;
use crate::key::GateKey;
use crate::lock::{FileSpawnLock, SpawnLockError, SpawnLockGuard, acquire_spawn_lock};
use crate::util::at_most_a_year;

/// Launches backends that are processes, finds running ones, and ends them.
///
/// A [`BackendLauncher`]: pass a clone of it to [`SpawnGate::launch`]. It is made from the gate, a directory for the files of the
/// backends, and a function that returns, for a [`Launch`], the command to run and what says that it is [`Ready`].
///
/// # What a launch does
///
/// It takes the lock for the backend's life (`NAME.life`), which the process inherits and holds as long as it lives; writes a
/// record (`NAME.backend`); starts the command; and waits until it is ready. A process that ends before, or takes longer than
/// [`start_timeout`](Self::start_timeout), is an error with the last lines that it wrote. A launch that is given up ends the whole
/// process group: SIGTERM, [`grace`](Self::grace), SIGKILL.
///
/// By default the backend is *detached*: it gets a session of its own, no standard input, a log (`NAME.log`) as standard output
/// and standard error, default signal dispositions, an empty signal mask, and no descriptor of this process but the lock for its
/// life. Its working directory is the launcher's directory, unless the command names another one, or its program by a relative path.
/// It lives on when this process ends; [`attached`](Self::attached) ties it to this process.
///
/// The environment of the process has `SPAWN_GATE_LAUNCH` (the launch's fencing token), `SPAWN_GATE_BACKEND` (the common part of
/// its files' paths), and `NOTIFY_SOCKET` if it is to use the notify protocol. A Rust program reads them with
/// [`Instance`](super::Instance). Children of the backend inherit them, unless it removes them.
///
/// # How one is found
///
/// While the lock for its life is held, a backend is there, whatever the record says, and no second one is started. (A program
/// that closes all descriptors gives the lock up; as long as its process lives, it counts as there all the same.) A backend that
/// says it is ready must accept a connection at its endpoint. One that is there and cannot be used is an error, see
/// [`Why`](super::Why), after [`look_timeout`](Self::look_timeout). Looking needs no right to write.
///
/// # Panics
///
/// Launching, finding and ending need a tokio runtime with I/O and time enabled.
///
/// # Inherited state
///
/// Right before each start, all descriptors of this process above 2 are set to close on exec, and signals that this process
/// ignores get a handler that does nothing (Linux only), since exec keeps what is ignored.
///
/// # Examples
///
/// ```no_run
/// use std::process::Command;
/// use spawn_gate::SpawnGate;
/// use spawn_gate::process::{Backend, Endpoint, ProcessLauncher, Ready};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), spawn_gate::BoxError> {
/// let gate: SpawnGate<String, Backend> = SpawnGate::new("/run/user/1000/tool")?;
/// let cache = ProcessLauncher::new(&gate, "/run/user/1000/tool", |_launch| {
///     let socket = Endpoint::Unix("/run/user/1000/tool/redis.sock".into());
///     let mut redis = Command::new("redis-server");
///     redis.args(["--port", "0", "--unixsocket", "redis.sock"]);
///     Ok((redis, Ready::accepts(socket)))
/// });
/// let backend = gate.launch("redis", cache.clone()).await?.value;
/// println!("process {} at {:?}", backend.pid, backend.endpoint);
/// # Ok(())
/// # }
/// ```
pub struct ProcessLauncher<K: GateKey = String> {
    gate: SpawnGate<K, Backend>,
    directory: PathBuf,
    command: CommandFn<K>,
    tie: Tie,
    start_timeout: Duration,
    grace: Duration,
    wanted: Wanted,
}

type CommandFn<K> = Arc<dyn Fn(&Launch<K>) -> Result<(Command, Ready), BoxError> + Send + Sync>;

const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Below the gate's discover timeout, so that the error is one of this module.
const DEFAULT_LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a launch may take from the lock for the backend's life to the record: well below a millisecond, and a probe if the
/// backend is ready by a connection.
const WRITE_LIMIT: Duration = PROBE_LIMIT.saturating_add(Duration::from_millis(500));

/// How long the system may take to end a process that no longer answers.
const ENDING: Duration = Duration::from_millis(100);

/// The pause between looks at a program that has forked.
const FORKED_PAUSE: Duration = Duration::from_millis(20);

const DEFAULT_LOG_LIMIT: u64 = 1024 * 1024;

/// How a backend was ended, see [`ProcessLauncher::stop`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Stopped {
    /// None was there.
    NotRunning,
    /// It ended after SIGTERM.
    Orderly {
        /// Its process id.
        pid: u32,
    },
    /// It was ended by SIGKILL.
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
    /// SIGTERM.
    Orderly,
    /// SIGTERM, and SIGKILL for its process group if it has not ended after [`grace`](ProcessLauncher::grace).
    Force,
}

impl<K: GateKey> ProcessLauncher<K> {
    /// Creates a launcher. `directory` may be the gate's lock directory. `command` is called once for each launch, in the
    /// flight's task: it must not block. An error of it fails the launch.
    ///
    /// The standard input and outputs of the command are replaced. It must not ask for a process group: it gets a session. A command
    /// that runs as another user needs a working directory that this user may enter; the launcher's own is private. All processes that share the gate's locks must use the same
    /// directory. A launch makes the directory (mode 0700) if it does not exist.
    pub fn new(
        gate: &SpawnGate<K, Backend>,
        directory: impl Into<PathBuf>,
        command: impl Fn(&Launch<K>) -> Result<(Command, Ready), BoxError> + Send + Sync + 'static,
    ) -> Self {
        let directory = directory.into();
        Self {
            gate: gate.clone(),
            // A backend has another working directory. Without one of its own, this process has no absolute path.
            directory: std::path::absolute(&directory).unwrap_or(directory),
            command: Arc::new(command),
            tie: Tie::Detached,
            start_timeout: DEFAULT_START_TIMEOUT,
            grace: DEFAULT_GRACE,
            wanted: Wanted {
                version: None,
                limit: DEFAULT_LOOK_TIMEOUT,
                log_limit: DEFAULT_LOG_LIMIT,
            },
        }
    }

    /// Ties backends to this process: each ends when this process ends, also if that is killed, and when its runtime ends.
    ///
    /// A backend gets a process group instead of a session. A small shell (`/bin/sh`) leads the group and waits for the end of a
    /// pipe from this process; then it ends the group with SIGTERM, [`grace`](Self::grace), and SIGKILL. The group also ends with the
    /// process that was started, so a program that forks and exits cannot be attached.
    #[must_use]
    pub fn attached(mut self) -> Self {
        self.tie = Tie::Attached;
        self
    }

    /// Sets the version of backends, which tells those of an older program from those of this one. A running backend of another
    /// version is [`Why::OtherVersion`](super::Why::OtherVersion).
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.wanted.version = Some(version.into());
        self
    }

    /// Sets how long a backend may take until it is ready (60 s by default). Keep it below the gate's launch timeout.
    #[must_use]
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = at_most_a_year(limit);
        self
    }

    /// Sets how long a backend may take to end after SIGTERM (5 s by default).
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = at_most_a_year(grace);
        self
    }

    /// Sets how long a look may take (5 s by default) for a backend that is there and cannot be used: one that is leaving, does
    /// not accept connections, or is starting although its launcher is gone. Keep it below the gate's discover timeout.
    #[must_use]
    pub fn look_timeout(mut self, limit: Duration) -> Self {
        self.wanted.limit = at_most_a_year(limit);
        self
    }

    /// Sets how long a log may be, in bytes (1 MiB by default). A longer one is cut to half of that, at a launch or when its
    /// backend is found. What a backend writes while nobody asks for it is not cut.
    #[must_use]
    pub fn log_limit(mut self, bytes: u64) -> Self {
        self.wanted.log_limit = bytes;
        self
    }

    /// Returns the gate.
    pub fn gate(&self) -> &SpawnGate<K, Backend> {
        &self.gate
    }

    /// Returns the directory of the backends' files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a backend's log, whether or not it exists.
    pub fn log_path(&self, key: impl Into<K>) -> PathBuf {
        Files::new(&self.directory, &key.into()).log()
    }

    /// Looks whether a backend is there, and whether it can be reached. Needs no right to write. Does not wait for one that is
    /// starting or leaving.
    ///
    /// # Errors
    ///
    /// [`ProcessError`] if that cannot be told, or if it is there and cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn find(&self, key: impl Into<K>) -> Result<Presence, ProcessError> {
        let files = Files::new(&self.directory, &key.into());
        let deadline = Instant::now() + WRITE_LIMIT;
        let mut pause = Pause::default();
        loop {
            let found = Sight::take(&files).await?.presence(&self.wanted).await;
            let is_unknown = matches!(&found, Err(ProcessError::Unusable(unusable))
                if matches!(unusable.why, Why::NoRecord { .. } | Why::NoProcess { .. }));
            // A launch that has just begun is about to write them.
            if !is_unknown || pause.is_over(deadline).await {
                return found;
            }
        }
    }

    /// Ends the backend of `key`, whichever process launched it, and returns how. Returns only once it is gone.
    ///
    /// A launch that is in progress is waited for first, up to [`start_timeout`](Self::start_timeout); with [`Stop::Force`] it
    /// is not. SIGTERM goes to the backend's process, and to its group once that is gone; SIGKILL, by force, to its group. The end
    /// is reported to the gate as orderly, so it does not count against the next launch.
    ///
    /// # Errors
    ///
    /// [`ProcessError::NotEnded`] if it did not end in time; then it counts as before. [`ProcessError::Unusable`] if something is there and it is unknown
    /// which process that is, or that process cannot be signalled. Other errors if it cannot be told whether one is there.
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
        let launch = sight.record().map(|record| record.launch);
        let record = sight.record().cloned();
        let leaving = record.clone().map(|record| Record {
            state: State::Leaving,
            ..record
        });
        // It only says that the end is wanted. On a full disk the backend ends all the same.
        replace_record(&files, record.clone(), leaving.clone()).await;
        let ended = end_process(&files, &process, launch, self.grace, force).await;
        let forced = match ended {
            Ok(forced) => forced,
            Err(error) => {
                // If it goes on, it can be used again.
                if process.condition() != Condition::Gone {
                    replace_record(&files, leaving, record).await;
                }
                return Err(error);
            }
        };
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

    /// How long a backend that is leaving is waited for.
    pub(super) fn leave_limit(&self) -> Duration {
        self.wanted.limit + self.grace
    }

    /// Starts the backend and waits until it is ready.
    async fn start(
        &self,
        launch: Launch<K>,
        command: Command,
        ready: Ready,
    ) -> Result<Backend, BoxError> {
        if let Some(Endpoint::Unix(path)) = &ready.endpoint {
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
                started.give_up().await;
                match was_stopped(&files, launch.fencing_token).await {
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
            let path = files.life();
            let taken =
                off_thread_call(move || acquire_spawn_lock(path).map_err(ProcessError::Directory))
                    .await;
            match taken {
                Err(ProcessError::Directory(
                    SpawnLockError::AlreadyLocked { .. }
                    | SpawnLockError::DeletedOrRecreated { .. },
                )) => {}
                Ok(life) => {
                    // One that closed its descriptors has let go of the lock.
                    if !Sight::take(files).await?.process_lives() {
                        return Ok(Life::Taken(life));
                    }
                }
                Err(error) => return Err(error),
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

    /// Reports the end of the backend to the gate, as long as this process and its runtime live.
    fn supervise(&self, launch: Launch<K>, files: Files, started: Started, has_forked: bool) {
        let gate = self.gate.clone();
        let settled = started.settle();
        tokio::spawn(async move {
            let status = settled.ended().await;
            let sight = Sight::take(&files).await.ok();
            let seen = sight.as_ref().filter(|sight| {
                let record = sight.record();
                record.is_some_and(|record| record.launch == launch.fencing_token)
            });
            let is_wanted = seen
                .and_then(Sight::record)
                .is_some_and(|record| record.state == State::Leaving);
            // A program that forked and exited goes on as another process, whose end nobody can wait for.
            let is_of_another = status.is_some_and(|status| status.success())
                && (has_forked || seen.is_some_and(Sight::is_there) && goes_on(&files).await);
            let end = match status {
                _ if is_wanted => BackendEnd::orderly(launch.fencing_token),
                _ if is_of_another => return,
                Some(status) if is_orderly(status) => BackendEnd::orderly(launch.fencing_token),
                Some(status) => BackendEnd::failed(launch.fencing_token, status.to_string()),
                // How it ended is not known.
                None => return,
            };
            // If it cannot be written, the next refusal does not say why.
            let _ = gate.backend_ended(launch.key, end).await;
        });
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

/// Writes a record in place of the one that was seen, as far as that is possible.
async fn replace_record(files: &Files, seen: Option<Record>, new: Option<Record>) {
    if let (Some(seen), Some(new)) = (seen, new) {
        let files = files.clone();
        let _ = off_thread_call(move || new.replace(&seen, &files)).await;
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

/// Whether what holds the lock for a backend's life is of that backend, and not a launch that has just begun. If the system does
/// not tell, it is assumed to be.
async fn goes_on(files: &Files) -> bool {
    let files = files.clone();
    let found = off_thread_call(move || Ok(holder_of(&files))).await;
    found.is_ok_and(|holder| holder.is_some()) || !KNOWS_HOLDERS
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
            process: main.or_else(|| forked(&started, &files)).or(Some(started)),
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
fn forked(started: &ProcessIdentity, files: &Files) -> Option<ProcessIdentity> {
    let has_ended = started.condition() == Condition::Gone;
    has_ended.then(|| holder_of(files)).flatten()
}

/// The lock for a backend's life.
enum Life {
    Taken(SpawnLockGuard),
    /// A backend has it, and is ready.
    Lives(Backend),
}

/// Whether a process ended as it was asked to.
fn is_orderly(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    let asked = [Signal::TERM, Signal::INT, Signal::HUP].map(Signal::as_raw);
    status.success()
        || status
            .signal()
            .is_some_and(|signal| asked.contains(&signal))
}

#[async_trait]
impl<K: GateKey> BackendLauncher<K, Backend> for ProcessLauncher<K> {
    async fn discover(&self, key: &K) -> Result<Option<Backend>, BoxError> {
        let files = Files::new(&self.directory, key);
        Ok(match look(&files, &self.wanted).await? {
            Found::Ready(backend) => Some(backend),
            Found::BeingLaunched => None,
            Found::None { left } => {
                if let Some(launch) = left {
                    // It was idle or was stopped, and could not report that itself.
                    let end = BackendEnd::orderly(launch);
                    let _ = self.gate.backend_ended(key.clone(), end).await;
                }
                None
            }
        })
    }

    async fn launch(&self, permit: &LaunchPermit<K, Backend>) -> Result<Backend, BoxError> {
        let launch = Launch::of(permit);
        let (command, ready) = (self.command)(&launch)?;
        self.start(launch, command, ready).await
    }

    async fn discard(&self, key: &K, backend: Backend) {
        let files = Files::new(&self.directory, key);
        // Nobody is left to be told.
        let launch = Some(backend.launch);
        let _ = end_process(&files, &backend.process, launch, self.grace, true).await;
    }
}

/// What is made ready for a start, in one blocking call.
struct Preparation {
    files: Files,
    record: Record,
    uses_notify: bool,
    log_limit: u64,
    grace: Duration,
    tie: Tie,
}

impl Preparation {
    fn start(
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

impl<K: GateKey> Clone for ProcessLauncher<K> {
    fn clone(&self) -> Self {
        Self {
            gate: self.gate.clone(),
            directory: self.directory.clone(),
            command: Arc::clone(&self.command),
            wanted: self.wanted.clone(),
            ..*self
        }
    }
}

impl<K: GateKey> fmt::Debug for ProcessLauncher<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessLauncher")
            .field("directory", &self.directory)
            .field("tie", &self.tie)
            .finish_non_exhaustive()
    }
}
