//! Why a backend could not be launched, found or ended.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::endpoint::Endpoint;
use crate::error::BoxError;
use crate::lock::{SpawnLockError, is_shortage};
use crate::util::{NotMade, off_thread};

/// Why a backend could not be launched, found or ended.
///
/// [`retry_helps`](Self::retry_helps) tells the causes that pass by themselves from those that somebody must fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The directory of the backend's files cannot be used, or the lock for the backend's life cannot be taken. The source names
    /// the path and says whether a retry helps. Nothing was started.
    #[error("cannot use the directory of the backend's files")]
    Directory(#[source] SpawnLockError),
    /// A file of the backend cannot be used. A retry helps after a shortage (of descriptors, memory or space).
    #[error("cannot {doing} {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried: `open`, `read`, `write`, or `enter` the working directory.
        doing: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program does not exist, which is a failed launch and charged. A retry helps once it does.
    #[error("there is no program {}", program.display())]
    NotFound {
        /// The program, as the command names it.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program may not be executed, or is no program. A retry helps once that is fixed.
    #[error("cannot execute {}", program.display())]
    NotExecutable {
        /// The program, as the command names it.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program was replaced or deleted on disk while this process runs it (an upgrade), so its path reads `… (deleted)`.
    /// Nothing was started and nothing is charged. A retry does not help: start this program again.
    #[error(
        "{} was replaced on disk while it runs, by an upgrade perhaps: start it again",
        program.display()
    )]
    Replaced {
        /// The program's path, without the mark.
        program: PathBuf,
    },
    /// The process could not be started. A retry helps after a shortage (of processes, descriptors or memory), and once the program
    /// is no longer being written (by an upgrade); neither is charged.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// The program, as the command names it.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The process ended before it was ready.
    #[error("process {pid} ended before it was ready{}{}", Status(*.status), Words(.words, .log))]
    Ended {
        /// The process id that it had.
        pid: u32,
        /// Its exit status; `None` if the system did not keep it, since this process ignores SIGCHLD.
        status: Option<ExitStatus>,
        /// The last lines that it wrote since this launch; may be empty.
        words: String,
        /// The log, for more.
        log: PathBuf,
    },
    /// Somebody stopped the process before it was ready ([`ProcessLauncher::stop`](super::ProcessLauncher::stop) by force).
    /// Nothing is charged. A retry starts another one.
    #[error("process {pid} was stopped before it was ready")]
    Stopped {
        /// The process id that it had.
        pid: u32,
    },
    /// The process was not ready in time. It was ended.
    #[error("process {pid} was not ready within {after:?}{}{}", Said(.status), Words(.words, .log))]
    NotReady {
        /// The process id.
        pid: u32,
        /// The limit, with what `EXTEND_TIMEOUT_USEC=` of the notify protocol added.
        after: Duration,
        /// What it last said with `STATUS=` of the notify protocol.
        status: Option<String>,
        /// The last lines that it wrote since this launch; may be empty.
        words: String,
        /// The log, for more.
        log: PathBuf,
    },
    /// Another process accepts connections at the endpoint, and did before the launch, so it cannot be told whether the backend
    /// is ready. The backend was ended. A retry helps once the other process is gone.
    #[error("another process listens at {endpoint}{}", Words(.words, .log))]
    EndpointTaken {
        /// The endpoint.
        endpoint: Endpoint,
        /// The last lines that the backend wrote since this launch; may be empty.
        words: String,
        /// The log, for more.
        log: PathBuf,
    },
    /// The probe of [`Ready::probe`](super::Ready::probe) failed. The backend was ended.
    #[error("the probe of process {pid} failed")]
    Probe {
        /// The process id.
        pid: u32,
        /// The probe's error.
        source: BoxError,
    },
    /// This process is short of descriptors or memory for a connection, so it cannot be told whether a backend can be used; or the
    /// endpoint is a Unix socket, on Windows. Nothing was started. A retry helps after the shortage.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// The operating system's error.
        source: io::Error,
    },
    /// A backend is there, but cannot be used: nothing was started. The message says what a person can do.
    #[error(transparent)]
    Unusable(Box<Unusable>),
    /// A backend did not end in time. A retry helps, or force.
    #[error("process {pid} did not end within {after:?}{}", Hint(*.is_stopped))]
    NotEnded {
        /// The process id.
        pid: u32,
        /// The limit.
        after: Duration,
        /// Whether it is stopped by a signal (SIGSTOP), so that it cannot react.
        is_stopped: bool,
    },
    /// The path of a Unix socket is longer than the system allows. A retry does not help: choose a shorter directory.
    #[error("the path of a Unix socket may have {limit} bytes, and this has {}: {}", path.as_os_str().len(), path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes that it may have.
        limit: usize,
    },
    /// This process is the backend of a launch that is over: another one was made since. It must not serve.
    #[error("launch {launch} of this backend is over: launch {newer} was made since")]
    Superseded {
        /// The launch of this process.
        launch: u64,
        /// The launch that was made since.
        newer: u64,
    },
    /// `/bin/sh` cannot be started, which watches over an attached backend. Nothing was started. A retry helps after a shortage.
    #[error("cannot start /bin/sh, which ends an attached backend if this process is killed")]
    Watcher(#[source] io::Error),
    /// No thread could be started for a blocking call. A retry helps once other threads have ended.
    #[error("cannot start a thread")]
    NoThread(#[source] io::Error),
    /// The runtime was shut down during a blocking call. A retry helps only on another runtime.
    #[error("the runtime was shut down")]
    RuntimeShutDown,
}

impl ProcessError {
    pub(super) fn file(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::File {
            path: path.to_path_buf(),
            doing,
            source,
        }
    }

    /// Returns whether the same call can succeed later without a fix.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Directory(source) => source.retry_helps(),
            Self::Spawn { source, .. } => passes(source),
            Self::File { source, .. } | Self::Connect { source, .. } | Self::Watcher(source) => {
                is_shortage(source)
            }
            Self::Unusable(unusable) => unusable.why.passes(),
            Self::NotFound { .. }
            | Self::NotExecutable { .. }
            | Self::Replaced { .. }
            | Self::SocketPathTooLong { .. }
            | Self::Superseded { .. }
            | Self::RuntimeShutDown => false,
            Self::Ended { .. }
            | Self::Stopped { .. }
            | Self::NotReady { .. }
            | Self::EndpointTaken { .. }
            | Self::Probe { .. }
            | Self::NotEnded { .. }
            | Self::NoThread(_) => true,
        }
    }

    /// Whether this is not because of the backend, if nothing was started.
    pub(super) fn is_of_environment(&self) -> bool {
        match self {
            Self::Spawn { source, .. } => passes(source),
            Self::Directory(_)
            | Self::File { .. }
            | Self::Connect { .. }
            | Self::Replaced { .. }
            | Self::Unusable(_)
            | Self::SocketPathTooLong { .. }
            | Self::Watcher(_)
            | Self::NoThread(_)
            | Self::RuntimeShutDown => true,
            _ => false,
        }
    }
}

/// Whether a program that could not be started can be in a moment.
fn passes(source: &io::Error) -> bool {
    is_shortage(source) || source.kind() == io::ErrorKind::ExecutableFileBusy
}

/// Makes a blocking call off the runtime's threads.
pub(super) async fn off_thread_call<V: Send + 'static>(
    call: impl FnOnce() -> Result<V, ProcessError> + Send + 'static,
) -> Result<V, ProcessError> {
    match off_thread(call).await {
        Ok(returned) => returned,
        Err(NotMade::NoThread(source)) => Err(ProcessError::NoThread(source)),
        Err(NotMade::RuntimeShutDown) => Err(ProcessError::RuntimeShutDown),
    }
}

/// What finds the processes that have a file open.
const FINDER: &str = if cfg!(windows) {
    "Resource Monitor"
} else {
    "fuser"
};

/// A backend that is there and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", Who(.pid, .launch, .version))]
#[non_exhaustive]
pub struct Unusable {
    /// Its process id, if known.
    pub pid: Option<u32>,
    /// The launch that started it, if known.
    pub launch: Option<u64>,
    /// Its version, if it has one and that is known.
    pub version: Option<String>,
    /// Why it cannot be used.
    pub why: Why,
}

/// Why a backend that is there cannot be used, and what a person can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// It is stopped by a signal.
    #[error("it is stopped by a signal (continue it with SIGCONT, or stop it by force)")]
    Stopped,
    /// It does not accept connections. In a container: its endpoint may be in another network namespace.
    #[error("it does not accept connections at {endpoint}: {message} (stop it by force)")]
    NoConnection {
        /// The endpoint that was tried.
        endpoint: Endpoint,
        /// The error of the last try.
        message: String,
    },
    /// It has another version.
    #[error("its version is not {wanted:?} (stop it first)")]
    OtherVersion {
        /// The version that was looked for.
        wanted: String,
    },
    /// It is starting, the process that launched it is gone, and it is not ready yet.
    #[error(
        "it is still starting, and the process that launched it is gone (wait, or stop it by force)"
    )]
    Starting,
    /// It is about to leave and has not ended yet.
    #[error("it is leaving and has not ended yet (wait, or stop it by force)")]
    Leaving,
    /// Its record was deleted or is junk, so it is not known where it listens.
    #[error("it lives, but {} does not say where it listens (stop it by force)", record.display())]
    NoRecord {
        /// The record.
        record: PathBuf,
    },
    /// This process may not signal it: it belongs to another user, or runs in another container.
    #[error("it cannot be signalled from here (stop it as its user, or in its container)")]
    OutOfReach,
    /// It cannot be asked to end: on Windows, only a backend with an [`Instance`](super::Instance) can.
    #[error("it cannot be asked to end on this system (stop it by force)")]
    CannotBeAsked,
    /// The lock for its life is held, but its process is gone or unknown: a process that it started may hold the lock.
    #[error("its process is gone or unknown, but something holds {} (find that, with {FINDER} for example)", life.display())]
    NoProcess {
        /// The lock file.
        life: PathBuf,
    },
}

impl Why {
    fn passes(&self) -> bool {
        matches!(self, Self::Starting | Self::Leaving)
    }
}

struct Status(Option<ExitStatus>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, ": {status}"),
            None => Ok(()),
        }
    }
}

struct Hint(bool);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            true => ": it is stopped by a signal (continue it with SIGCONT, or stop it by force)",
            false => " (stop it by force)",
        })
    }
}

struct Said<'a>(&'a Option<String>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, ", and said {status:?}"),
            None => Ok(()),
        }
    }
}

struct Words<'a>(&'a str, &'a Path);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => write!(f, " (it wrote nothing to {})", self.1.display()),
            words => write!(f, ": {words}"),
        }
    }
}

struct Who<'a>(&'a Option<u32>, &'a Option<u64>, &'a Option<String>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backend is there that cannot be used")?;
        if let Some(pid) = self.0 {
            write!(f, ", process {pid}")?;
        }
        if let Some(launch) = self.1 {
            write!(f, " of launch {launch}")?;
        }
        if let Some(version) = self.2 {
            write!(f, ", version {version:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shortage, and an error that is none.
    fn sources() -> [(io::Error, bool); 2] {
        [
            (io::ErrorKind::OutOfMemory.into(), true),
            (io::ErrorKind::InvalidInput.into(), false),
        ]
    }

    fn unusable(why: Why) -> ProcessError {
        ProcessError::Unusable(Box::new(Unusable {
            pid: None,
            launch: None,
            version: None,
            why,
        }))
    }

    #[test]
    fn a_retry_helps_if_the_cause_passes_by_itself_and_what_is_not_the_backends_is_not_charged() {
        let (path, endpoint) = (PathBuf::from("a"), Endpoint::Unix("a".into()));
        let (pid, status, words) = (1, None, String::new());
        let mut told = Vec::new();
        for (source, passes) in sources() {
            told.push((ProcessError::file(&path, "open", source), passes, true));
        }
        for (source, passes) in sources() {
            let program = path.clone();
            told.push((ProcessError::Spawn { program, source }, passes, passes));
        }
        for (source, passes) in sources() {
            let endpoint = endpoint.clone();
            told.push((ProcessError::Connect { endpoint, source }, passes, true));
        }
        for (source, passes) in sources() {
            told.push((ProcessError::Watcher(source), passes, true));
        }
        for (why, passes) in [
            (Why::Starting, true),
            (Why::Leaving, true),
            (Why::Stopped, false),
            (Why::OutOfReach, false),
            (Why::NoProcess { life: path.clone() }, false),
        ] {
            told.push((unusable(why), passes, true));
        }
        let source = || io::ErrorKind::NotFound.into();
        let after = Duration::ZERO;
        let directory = SpawnLockError::AlreadyLocked { path: path.clone() };
        told.extend([
            (ProcessError::Directory(directory), true, true),
            (
                ProcessError::NotFound {
                    program: path.clone(),
                    source: source(),
                },
                false,
                false,
            ),
            (
                ProcessError::NotExecutable {
                    program: path.clone(),
                    source: source(),
                },
                false,
                false,
            ),
            (
                ProcessError::Replaced {
                    program: path.clone(),
                },
                false,
                true,
            ),
            (
                ProcessError::Ended {
                    pid,
                    status,
                    words: words.clone(),
                    log: path.clone(),
                },
                true,
                false,
            ),
            (ProcessError::Stopped { pid }, true, false),
            (
                ProcessError::NotReady {
                    pid,
                    after,
                    status: None,
                    words: words.clone(),
                    log: path.clone(),
                },
                true,
                false,
            ),
            (
                ProcessError::EndpointTaken {
                    endpoint,
                    words,
                    log: path.clone(),
                },
                true,
                false,
            ),
            (
                ProcessError::Probe {
                    pid,
                    source: "a".into(),
                },
                true,
                false,
            ),
            (
                ProcessError::NotEnded {
                    pid,
                    after,
                    is_stopped: false,
                },
                true,
                false,
            ),
            (
                ProcessError::SocketPathTooLong { path, limit: 107 },
                false,
                true,
            ),
            (
                ProcessError::Superseded {
                    launch: 1,
                    newer: 2,
                },
                false,
                false,
            ),
            (ProcessError::NoThread(source()), true, true),
            (ProcessError::RuntimeShutDown, false, true),
        ]);
        for (error, retry_helps, is_of_environment) in told {
            assert_eq!(error.retry_helps(), retry_helps, "{error:?}");
            assert_eq!(error.is_of_environment(), is_of_environment, "{error:?}");
        }
    }
}
