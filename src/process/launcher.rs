//! The launcher: its settings, and what the gate asks of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::backend::{Backend, Presence};
use super::end::{Manner, end_process};
use super::endpoint::PROBE_LIMIT;
use super::error::{ProcessError, Why};
use super::files::Files;
use super::look::{Found, Sight, Wanted, look};
use super::ready::{Pause, Ready};
use super::sys;
use super::tie::Tie;
use crate::admin::BackendEnd;
use crate::error::{BoxError, GateError};
use crate::flight::{BackendLauncher, Launch, LaunchPermit, Launched};
use crate::gate::SpawnGate;
use crate::key::GateKey;
use crate::util::at_most_a_year;

/// Launches backends that are processes, finds running ones, and ends them.
///
/// Couples a gate with a command. Create it from the gate, a directory for the backends' files, and a function that returns the
/// command and the sign that its process is [`Ready`]. [`get_or_launch`](Self::get_or_launch) passes it, as a
/// [`BackendLauncher`], to [`SpawnGate::launch`].
///
/// # What a launch does
///
/// It takes the lock for the backend's life (`NAME.life`), which the process inherits and holds as long as it lives; writes a
/// record (`NAME.backend`); starts the command; and waits until it is ready. A process that ends before, or takes longer than
/// [`start_timeout`](Self::start_timeout), is an error with the last lines that it wrote. A launch that is given up ends the whole
/// process group: SIGTERM, [`grace`](Self::grace), SIGKILL. (On Windows, the process and those that it started are terminated.)
///
/// By default the backend is *detached*: it gets a session of its own, no standard input, a log (`NAME.log`) as standard output
/// and standard error, default signal dispositions, an empty signal mask, and no descriptor of this process but the lock for its
/// life. Its working directory is the launcher's directory, unless the command names another one, or its program by a relative path.
/// It lives on when this process ends; [`attached`](Self::attached) ties it to this process. On Windows it gets a process group and a
/// hidden console of its own, the lock for its life as its standard input, and leaves the job that this process may be in, if that job lets it
/// (else it ends with the job).
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
/// ignores get a handler that does nothing (Linux only), since exec keeps what is ignored. On Windows, right before the first start of a
/// detached backend, the standard handles of this process are replaced with copies that no child inherits, and closed: code that is not
/// Rust must not have kept them. Other handles that this process inherited and that can be inherited are.
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
/// let backend = cache.get_or_launch("redis").await?.value;
/// println!("process {} at {:?}", backend.pid, backend.endpoint);
/// # Ok(())
/// # }
/// ```
pub struct ProcessLauncher<K: GateKey = String> {
    pub(super) gate: SpawnGate<K, Backend>,
    pub(super) directory: PathBuf,
    pub(super) command: CommandFn<K>,
    pub(super) tie: Tie,
    pub(super) start_timeout: Duration,
    pub(super) grace: Duration,
    pub(super) wanted: Wanted,
}

type CommandFn<K> = Arc<dyn Fn(&Launch<K>) -> Result<(Command, Ready), BoxError> + Send + Sync>;

const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Below the gate's discover timeout, so that the error is one of this module.
const DEFAULT_LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a launch may take from the lock for the backend's life to the record: well below a millisecond, and a probe if the
/// backend is ready by a connection.
const WRITE_LIMIT: Duration = PROBE_LIMIT.saturating_add(Duration::from_millis(500));

const DEFAULT_LOG_LIMIT: u64 = 1024 * 1024;

impl<K: GateKey> ProcessLauncher<K> {
    /// Creates a launcher. `directory` may be the gate's lock directory. `command` is called once for each launch, in the
    /// flight's task: it must not block. An error of it fails the launch.
    ///
    /// The standard input and outputs of the command are replaced. It must not ask for a process group: it gets a session. A command
    /// that runs as another user needs a working directory that this user may enter; the launcher's own is private. All processes
    /// that share the gate's locks must use the same directory. A launch makes the directory (mode 0700) if it does not exist. Below
    /// `XDG_RUNTIME_DIR`, or `/run/NAME` of a service, it is private, local and empty after a boot; keep its path short, since that of a
    /// Unix socket in it has 107 bytes at most.
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
    /// On Unix a backend gets a process group instead of a session. A small shell (`/bin/sh`) leads the group and waits for the end of a
    /// pipe from this process; then it ends the group with SIGTERM, [`grace`](Self::grace), and SIGKILL. The group also ends with the
    /// process that was started, so a program that forks and exits cannot be attached. On Windows a backend is in a job object of its
    /// own, and the system terminates all processes in it once this process has no handle of it any more.
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

    /// Returns the running backend of `key`, joins a launch in progress, or launches it. The same as [`SpawnGate::launch`] with a clone of this launcher, with the same errors and cancel safety.
    ///
    /// # Errors
    ///
    /// [`GateError`]. Its source is a [`ProcessError`] if a process is the cause.
    pub async fn get_or_launch(&self, key: impl Into<K>) -> Result<Launched<Backend>, GateError> {
        self.gate.launch(key, self.clone()).await
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

    /// How long a backend that is leaving is waited for.
    pub(super) fn leave_limit(&self) -> Duration {
        self.wanted.limit + self.grace
    }
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
        let how = Manner {
            can_be_asked: !sys::READS_REQUESTS,
            force: true,
        };
        let _ = end_process(&files, &backend.process, launch, self.grace, how).await;
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
