//! The spawn lock over a directory of lock files. Blocking calls run off the runtime's threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::descriptors;
use super::guard::{Filesystem, Try, acquire_with};
use super::lease::{self, LockFile};
use super::off_thread::off_thread;
use super::release::released;
use super::{record, sys};
use crate::key::{GateKey, LockName};
use crate::ledger::{BackendEnd, LedgerReading};
use crate::lock::error::SpawnLockError;
use crate::lock::traits::{LockRequest, SpawnLock, TryAcquire};

/// Spawn locks that are OS file locks in one directory, one file for each key. All processes of the machine that use the
/// same directory exclude each other. The locks of a process that dies are released.
///
/// The files are named by [`LockName`] and stay when a lock is released. Each holds the key's [`Ledger`](crate::admin::Ledger):
/// the budget that all processes share, the holder, and the last outcome; `cat` shows it. Do not delete a file that may be in
/// use: a gate notices it, but two backends can then run, told apart only by their fencing tokens, and the key's count is lost.
/// One more file, `probe.lock`, is locked only to check that the directory works.
///
/// A file with other content counts as a budget that was just used up. A ledger that a newer version of this crate wrote is an
/// error, [`SpawnLockError::LedgerVersion`].
///
/// All gates on one directory should keep a ledger. A gate that keeps none ([`without_ledger`](Self::without_ledger)) and a
/// holder of [`acquire_spawn_lock`](crate::lock::acquire_spawn_lock) leave no trace in it. A gate that keeps one may find the
/// lock free and the ledger unchanged since its look, and then launches without a second look, although another holder has
/// launched in between.
///
/// All processes must see the directory through the same mount: two overlay mounts over one lower directory have separate
/// locks.
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
    /// Uses `directory`, and creates it (mode 0700, with its parents) if it does not exist. Links in its path are resolved now.
    /// Takes a lock in it once, so a directory that does not work is reported now and not by the first request.
    ///
    /// Makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire_spawn_lock`](crate::lock::acquire_spawn_lock), and [`SpawnLockError::NotADirectory`]. A directory
    /// that group or others can write to is [`SpawnLockError::Unsafe`].
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Self::with_filesystem(directory.into(), Filesystem::Local)
    }

    /// Like [`new`](Self::new), but also accepts a network file system.
    ///
    /// You must then know whether its locks hold between machines, or at all: each machine may lock for itself, and even a
    /// try can hang while the server is unreachable.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), without [`SpawnLockError::UnsafeFilesystem`].
    pub fn on_any_filesystem(directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Self::with_filesystem(directory.into(), Filesystem::Any)
    }

    /// Keeps no ledger: nothing is written to the lock files. Each process then counts its own budget and forgets it when
    /// it ends, waiting processes do not share a failure, and errors do not name the holder. The fencing token comes from the
    /// wall clock alone.
    ///
    /// Do not use the directory with gates that keep a ledger: see [`FileSpawnLock`].
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
        // Resolved once, so neither a changed link nor a change of the working directory moves the locks later.
        let directory = made.map_err(|source| sys::open_error(&directory, source))?;
        let probe = directory.join(PROBE_NAME);
        match acquire_with(&probe, filesystem, Try::First, |_| {}) {
            Ok(_) => {}
            // Another process is probing at this moment, so the directory works.
            Err(error) if error.retry_helps() => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            directory: directory.into(),
            filesystem,
            keeps_ledger: true,
        })
    }

    /// Returns the resolved directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a key's lock file, whether or not it exists.
    pub fn path_of<K: GateKey>(&self, key: &K) -> PathBuf {
        self.directory.join(LockName::new(key).as_str())
    }
}

/// The lock file that is locked only to check that the directory works. No key has this name: theirs contain a hash.
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
            // The kernel does not report releases by other machines, and a probe could hang.
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
        let slot = descriptors::for_look().await;
        let peek = move |path: &Path| {
            let _slot = slot;
            record::peek(path)
        };
        off_thread(self.path_of(key), peek).await
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        if !self.keeps_ledger {
            return Ok(());
        }
        let end = end.clone();
        let slot = descriptors::for_look().await;
        off_thread(self.path_of(key), move |path| {
            let _slot = slot;
            record::write_note(path, &end)
        })
        .await
    }
}

/// Names the path that is not a directory: this one or an ancestor.
fn not_a_directory(directory: &Path) -> SpawnLockError {
    let stands = |path: &&Path| path.symlink_metadata().is_ok();
    let path = directory.ancestors().find(stands).unwrap_or(directory);
    SpawnLockError::NotADirectory {
        path: path.to_path_buf(),
    }
}
