//! The spawn lock over a directory of lock files: where blocking calls leave the runtime's threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::guard::{Filesystem, Try, acquire_with};
use super::lease::{self, LockFile, off_thread};
use super::release::released;
use super::{record, sys};
use crate::key::{GateKey, LockName};
use crate::ledger::{BackendEnd, LedgerReading};
use crate::lock::error::SpawnLockError;
use crate::lock::traits::{LockRequest, SpawnLock, TryAcquire};

/// Spawn locks that are OS file locks in one directory, one file for each key. All processes of the machine that use the
/// same directory exclude each other, and a process that dies lets go of its locks.
///
/// The files are named by [`LockName`] and stay when a lock is released. Each holds the key's [`Ledger`]: the budget that all
/// the processes share, who launches, and how the last launch ended; `cat` shows it. Do not delete the files while they may
/// be in use: a gate notices it, but only the launch number tells two backends apart then, and the key's count is lost. There
/// is one file more, `probe.lock`, which is taken only to see whether the directory serves.
///
/// A file that holds something else than a ledger counts as a budget that was just used up. A ledger that a newer version of
/// this crate wrote is an error, [`SpawnLockError::LedgerVersion`].
///
/// All processes must see the directory through the same mount: through two overlay mounts over one lower directory, both
/// would get the lock.
///
/// # Examples
///
/// ```
/// use spawn_gate::{BackendKey, FileSpawnLock, SpawnGate};
///
/// # let directory = tempfile::tempdir()?;
/// # let state_dir = directory.path();
/// let lock = FileSpawnLock::new(state_dir.join("locks"))?;
/// let gate: SpawnGate<BackendKey, String> = SpawnGate::builder(lock).build();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileSpawnLock {
    directory: Arc<Path>,
    filesystem: Filesystem,
    keeps_ledger: bool,
}

impl FileSpawnLock {
    /// Uses `directory`, making it (mode 0700, with its parents) if there is none; links in its path are resolved now. Takes a
    /// lock in it once, so that a directory which cannot serve is found now and not by the first request.
    ///
    /// It makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// As [`acquire_spawn_lock`](crate::acquire_spawn_lock). A directory that group or others can write to is refused.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Self::with_filesystem(directory.into(), Filesystem::Local)
    }

    /// As [`new`](Self::new), but accepts a network file system too.
    ///
    /// Whether its locks hold between machines, or at all, is then yours to know: client and server may keep them apart,
    /// and even a try can hang while the server is away.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), without [`SpawnLockError::UnsafeFilesystem`].
    pub fn on_any_filesystem(directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Self::with_filesystem(directory.into(), Filesystem::Any)
    }

    /// Keeps no ledger: nothing is written to the lock files. Each process then counts its own budget and forgets it when
    /// it ends, waiting processes do not hear why a launch failed, and a holder is not named. The fencing token comes from
    /// the wall clock alone.
    #[must_use]
    pub fn without_ledger(mut self) -> Self {
        self.keeps_ledger = false;
        self
    }

    fn with_filesystem(directory: PathBuf, filesystem: Filesystem) -> Result<Self, SpawnLockError> {
        if directory.as_os_str().is_empty() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is empty");
            return Err(sys::open_error(&directory, source));
        }
        let made = match sys::make_directory(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(not_a_directory(&directory));
            }
            made => made.and_then(|()| directory.canonicalize()),
        };
        // Resolved once: neither a link that is changed nor a change of the working directory moves the locks later.
        let directory = made.map_err(|source| sys::open_error(&directory, source))?;
        let probe = directory.join(PROBE_NAME);
        match acquire_with(&probe, filesystem, Try::First, |_| {}) {
            Ok(_) => {}
            // Another process probes in this moment, so the directory serves.
            Err(error) if error.retry_helps() => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            directory: directory.into(),
            filesystem,
            keeps_ledger: true,
        })
    }

    /// Returns the directory, as it was resolved.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a key's lock file, whether or not there is one yet.
    pub fn path_of<K: GateKey>(&self, key: &K) -> PathBuf {
        self.directory.join(LockName::new(key).as_str())
    }
}

/// The lock file that is only ever taken to see whether the directory serves. No key has this name: theirs hold a hash.
const PROBE_NAME: &str = "probe.lock";

#[async_trait]
impl<K: GateKey> SpawnLock<K> for FileSpawnLock {
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let file = LockFile {
            path: self.path_of(key),
            filesystem: self.filesystem,
            keeps_ledger: self.keeps_ledger,
        };
        lease::try_acquire(file, request).await
    }

    async fn released(&self, key: &K, pause: Duration) {
        match self.filesystem {
            Filesystem::Local => released(&self.path_of(key), pause).await,
            // Other machines' releases are not told here, and a probe could hang.
            Filesystem::Any => sleep(pause).await,
        }
    }

    fn keeps_ledger(&self) -> bool {
        self.keeps_ledger
    }

    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        if !self.keeps_ledger {
            return Ok(LedgerReading::NotKept);
        }
        off_thread(self.path_of(key), record::peek).await
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        if !self.keeps_ledger {
            return Ok(());
        }
        let end = end.clone();
        off_thread(self.path_of(key), move |path| {
            record::write_note(path, &end)
        })
        .await
    }
}

/// Names what stands in the way of a directory: it, or what was to hold it.
fn not_a_directory(directory: &Path) -> SpawnLockError {
    let stands = |path: &&Path| path.symlink_metadata().is_ok();
    let path = directory.ancestors().find(stands).unwrap_or(directory);
    SpawnLockError::NotADirectory {
        path: path.to_path_buf(),
    }
}
