//! The other side of a launch: what a backend in Rust does.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::error::ProcessError;
use super::files::{Files, LAUNCH, STEM};
use super::identity::ProcessIdentity;
use super::notify::{self, Message};
use super::record::{Reading, Record, State};
use super::sys::{self, LifeLock, Requests, UseLock};
use crate::lock::SpawnLockError;

/// How long a backend that did not inherit the lock for its life tries to take it, and the pause between two tries.
const TAKE_LIMIT: Duration = Duration::from_secs(5);
const TAKE_PAUSE: Duration = Duration::from_millis(5);

/// This process as a backend that a [`ProcessLauncher`](super::ProcessLauncher) launched.
///
/// It has the lock for the backend's life; keep it until the process ends. Make it first of all: children that are started earlier
/// inherit the lock. All children inherit the environment: remove `SPAWN_GATE_BACKEND` from that of a child that may be this same
/// program.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use spawn_gate::process::Instance;
/// use tokio::io::AsyncWriteExt;
///
/// # #[cfg(windows)]
/// # fn main() {}
/// # #[cfg(unix)]
/// #[tokio::main]
/// async fn main() -> Result<(), spawn_gate::BoxError> {
///     let instance = Instance::from_env()?.ok_or("start it with the tool")?;
///     let listener = instance.listen()?;
///     let leave = instance.until_leave(Some(Duration::from_secs(600)));
///     instance.ready(instance.socket())?;
///     let serve = async {
///         loop {
///             let (mut caller, _) = listener.accept().await?;
///             let _busy = instance.busy();
///             caller.write_all(b"hello\n").await?;
///         }
///     };
///     tokio::select! {
///         _why = leave => Ok(()),
///         failed = serve => failed,
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Instance {
    pub(super) files: Files,
    pub(super) launch: u64,
    pub(super) record: Mutex<Record>,
    /// The lock for its life, if it was not inherited.
    _life: Option<LifeLock>,
    /// Which file that lock is on.
    pub(super) life_file: Option<(u64, u64)>,
    pub(super) activity: watch::Sender<Activity>,
    /// The requests to end, from the first [`until_leave`](Self::until_leave) on. Kept when that is dropped, so that the next one misses
    /// none.
    pub(super) requests: tokio::sync::Mutex<Option<Requests>>,
    /// Kept from the moment it leaves until the process ends.
    pub(super) leaving: Mutex<Option<UseLock>>,
}

/// The calls in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activity {
    pub(super) calls: usize,
    /// When the last call ended.
    pub(super) since: Instant,
}

impl Activity {
    fn none() -> Self {
        Self {
            calls: 0,
            since: Instant::now(),
        }
    }
}

impl Instance {
    /// Returns this process as a backend; `None` if its environment says nothing of a launch.
    ///
    /// Takes the lock for the backend's life, unless it was inherited, and sets all descriptors above 2 to close on exec (Unix). Makes a few
    /// short blocking calls; if the lock was not inherited and another process has it, blocks for up to five seconds.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Superseded`] if another launch was made since (this process was slow, and its launcher is gone): it must
    /// not serve. The record tells, not a clock: each launch writes it first. [`ProcessError::Directory`] if another process keeps
    /// the lock: this one may be a child of the backend that inherited its environment. Other errors if the files cannot be used.
    pub fn from_env() -> Result<Option<Self>, ProcessError> {
        let stem = std::env::var_os(STEM).map(PathBuf::from);
        let launch = std::env::var(LAUNCH).ok();
        let launch = launch.and_then(|launch| launch.parse().ok());
        match (stem.as_deref().and_then(Files::from_stem), launch) {
            (Some(files), Some(launch)) => Self::of(files, launch).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn of(files: Files, launch: u64) -> Result<Self, ProcessError> {
        // Else a child of this process would hold the lock for its life after its end.
        sys::close_inherited(&files);
        let life = take_life(&files, launch)?;
        let this = ProcessIdentity::of_this_process();
        let found = Record::read(&files)?;
        let record = match found {
            Reading::Found(record) if record.launch != launch => {
                let newer = record.launch;
                return Err(ProcessError::Superseded { launch, newer });
            }
            Reading::Found(record) => Record {
                process: Some(this),
                reads_requests: sys::READS_REQUESTS,
                ..*record
            },
            // Somebody deleted it meanwhile.
            Reading::Missing | Reading::Junk => Record {
                state: State::Starting,
                launch,
                launcher: this.clone(),
                process: Some(this),
                endpoint: None,
                version: None,
                since: SystemTime::now(),
                log_start: 0,
                ready_line: None,
                ready_by_connection: false,
                is_attached: false,
                was_ready: false,
                reads_requests: sys::READS_REQUESTS,
                status: None,
            },
        };
        record.write(&files)?;
        let life_file = sys::identity_of(&files)
            .map_err(|error| ProcessError::file(&files.life(), "open", error))?;
        Ok(Self {
            launch,
            record: Mutex::new(record),
            _life: life,
            life_file,
            activity: watch::Sender::new(Activity::none()),
            requests: tokio::sync::Mutex::new(None),
            leaving: Mutex::new(None),
            files,
        })
    }

    /// Returns the launch that started this process: the fencing token of its permit.
    pub fn launch(&self) -> u64 {
        self.launch
    }

    /// Returns the endpoint of [`listen`](Self::listen): a Unix socket beside the backend's other files.
    #[cfg(unix)]
    pub fn socket(&self) -> Endpoint {
        Endpoint::Unix(self.files.socket())
    }

    /// Listens at [`socket`](Self::socket). Removes the socket of an earlier backend first, which is gone: this process has the
    /// lock for the backend's life.
    ///
    /// # Errors
    ///
    /// [`ProcessError::SocketPathTooLong`], or [`ProcessError::File`] if the socket cannot be bound.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    #[cfg(unix)]
    pub fn listen(&self) -> Result<UnixListener, ProcessError> {
        let path = self.files.socket();
        if let Some(limit) = Endpoint::excess(&path) {
            return Err(ProcessError::SocketPathTooLong { path, limit });
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ProcessError::file(&path, "remove", error));
            }
            _ => {}
        }
        UnixListener::bind(&path).map_err(|error| ProcessError::file(&path, "bind", error))
    }

    /// Says what this backend does before it is ready. Those who wait see the first 500 characters, in one line. Makes a few short
    /// blocking calls.
    ///
    /// # Errors
    ///
    /// [`ProcessError::File`] if the record cannot be written, [`ProcessError::Superseded`] if another launch was made since.
    pub fn status(&self, status: &str) -> Result<(), ProcessError> {
        let status = notify::status(&status.replace('\n', " "));
        sys::send(&Message {
            status: Some(status.clone()),
            ..Message::default()
        });
        self.update(|record| record.status = Some(status))
    }

    /// Says that this backend is ready to serve at `endpoint`. Call [`until_leave`](Self::until_leave) first: from now on, it can be
    /// stopped in an orderly way. Makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// [`ProcessError::File`] if the record cannot be written: nobody would find this backend. [`ProcessError::Superseded`] if
    /// another launch was made since: it must not serve.
    pub fn ready(&self, endpoint: impl Into<Endpoint>) -> Result<(), ProcessError> {
        let endpoint = endpoint.into();
        let message = Message {
            is_ready: true,
            main_pid: Some(std::process::id()),
            endpoint: Some(endpoint.clone()),
            ..Message::default()
        };
        // First the record: the launcher leaves it alone then.
        self.update(|record| {
            record.state = State::Ready;
            record.was_ready = true;
            record.endpoint = Some(endpoint);
        })?;
        sys::send(&message);
        Ok(())
    }

    /// Writes the record, unless it is that of a later launch. A backend that was asked to end stays leaving.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), ProcessError> {
        let mut record = self.record.lock().unwrap_or_else(|lock| lock.into_inner());
        let mut is_to_leave = false;
        if let Ok(Reading::Found(found)) = Record::read(&self.files) {
            let (launch, newer) = (self.launch, found.launch);
            if newer != launch {
                return Err(ProcessError::Superseded { launch, newer });
            }
            is_to_leave = found.state == State::Leaving;
        }
        change(&mut record);
        if is_to_leave {
            record.state = State::Leaving;
        }
        record.write(&self.files)
    }
}

/// Takes the lock for the backend's life, unless this process inherited it.
fn take_life(files: &Files, launch: u64) -> Result<Option<LifeLock>, ProcessError> {
    let until = std::time::Instant::now() + TAKE_LIMIT;
    loop {
        if LifeLock::is_held(files).unwrap_or(false) && sys::is_inherited(files) {
            return Ok(None);
        }
        let taken = LifeLock::try_take(files)?;
        if taken.is_some() {
            return Ok(taken);
        }
        // A later launch took it, and says so in the record in a moment; or somebody looks at it.
        let found = Record::read(files)?;
        match found {
            Reading::Found(record) if record.launch != launch => {
                let newer = record.launch;
                return Err(ProcessError::Superseded { launch, newer });
            }
            _ if std::time::Instant::now() >= until => {
                let path = files.life();
                return Err(ProcessError::Directory(SpawnLockError::AlreadyLocked {
                    path,
                }));
            }
            _ => std::thread::sleep(TAKE_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_status_leaves_the_record_readable() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let instance = Instance::of(files.clone(), 1).unwrap();
        instance.status(&"é\n".repeat(100_000)).unwrap();
        let Reading::Found(record) = Record::read(&files).unwrap() else {
            panic!("it is junk");
        };
        assert_eq!(record.status.unwrap(), "é ".repeat(250));
    }

    /// Files whose record says what an instance of launch 1 has written.
    fn files_of_launch_1(directory: &tempfile::TempDir) -> Files {
        let files = Files::new(directory.path(), &"indexer".to_owned());
        drop(Instance::of(files.clone(), 1).unwrap());
        files
    }

    fn record_in(files: &Files) -> Record {
        let Reading::Found(record) = Record::read(files).unwrap() else {
            panic!("it is junk");
        };
        *record
    }

    #[test]
    fn a_backend_of_a_launch_that_is_over_leaves_the_record_alone() {
        let directory = tempfile::tempdir().unwrap();
        let files = files_of_launch_1(&directory);
        let before = std::fs::read(files.record()).unwrap();
        let error = Instance::of(files.clone(), 2).unwrap_err();
        assert!(
            matches!(
                error,
                ProcessError::Superseded {
                    launch: 2,
                    newer: 1
                }
            ),
            "{error:?}"
        );
        assert_eq!(std::fs::read(files.record()).unwrap(), before);
    }

    #[test]
    fn a_backend_that_a_script_started_is_the_process_in_the_record() {
        let directory = tempfile::tempdir().unwrap();
        let files = files_of_launch_1(&directory);
        let this = ProcessIdentity::of_this_process();
        let script = ProcessIdentity {
            pid: this.pid + 1,
            ..this.clone()
        };
        let before = Record {
            process: Some(script),
            ..record_in(&files)
        };
        before.write(&files).unwrap();
        let _instance = Instance::of(files.clone(), 1).unwrap();
        assert_eq!(record_in(&files).process, Some(this));
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_whose_path_is_too_long_for_the_socket_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("d".repeat(100));
        std::fs::create_dir(&long).unwrap();
        let files = Files::new(&long, &"indexer".to_owned());
        let instance = Instance::of(files.clone(), 1).unwrap();
        let error = instance.listen().unwrap_err();
        assert!(
            matches!(&error, ProcessError::SocketPathTooLong { path, .. } if *path == files.socket()),
            "{error:?}"
        );
    }
}
