//! The spawn lock over a directory of lock files. Blocking calls run off the runtime's threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::checks::Filesystem;
use super::guard::{Try, acquire_with};
use super::home::{Home, PROBE_NAME};
use super::lease::LockFile;
use super::off_thread::off_thread;
use super::record;
use super::release::released;
use super::report::inspect_spawn_lock;
use super::{acquire, descriptors};
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
/// A directory that somebody removed is made again, with mode 0700 and at the same place, for the next launch or reset; of its
/// parents, those that [`new`](Self::new) made. If something gave the directory and its files to a group (an `fsGroup` of
/// Kubernetes does so at each mount), the group's right to write is taken back. That needs a directory that holds `probe.lock`
/// and nothing of another user. Anything else that is unsafe is an error, [`SpawnLockError::DirectoryChanged`] once the
/// directory was in use.
///
/// A process has at most a quarter of its descriptors (the soft limit at the first use, `RLIMIT_NOFILE`) in leases, but at
/// least 16 and at most 1,024. Further keys wait for a lease to end, until their lock deadline; then the error is
/// [`SpawnLockError::TooManyLocks`]. A launcher that launches another key has its lease meanwhile. Reads and reports of a
/// backend's end do not count, nor do waits for a holder; they have smaller caps of their own, and go on without a descriptor or
/// wait for a moment. [`acquire_spawn_lock`](crate::lock::acquire_spawn_lock) and
/// [`inspect_spawn_lock`](crate::admin::inspect_spawn_lock) do not count. A lease that had to wait for its holder has two
/// descriptors.
///
/// A shortage (of descriptors, threads, memory, the kernel's locks, space or quota) is an error for which
/// [`SpawnLockError::retry_helps`] is true. The gate then tries again until the lock deadline.
///
/// A file with other content counts as a budget that was just used up. A ledger that a newer version of this crate wrote is an
/// error, [`SpawnLockError::LedgerVersion`].
///
/// All gates on one directory should keep a ledger. A gate that keeps none ([`without_ledger`](Self::without_ledger)) and a
/// holder of [`acquire_spawn_lock`](crate::lock::acquire_spawn_lock) leave no trace in it. A gate that keeps one may find the
/// lock free and the ledger unchanged since its look, and then launches without a second look, although another holder has
/// launched in between.
///
/// On Linux a process that waits for a lock uses one inotify instance, of which a user has 128 by default, for all its waits
/// together. If none is left, it looks every 20 ms instead.
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
    home: Arc<Home>,
    filesystem: Filesystem,
    keeps_ledger: bool,
}

impl FileSpawnLock {
    /// Uses `directory`, and creates it (mode 0700, with its parents) if it does not exist. Links in its path are resolved now.
    /// Takes a lock in it once, so a directory that does not work is reported now and not by the first request.
    ///
    /// A directory that worked before and in which this user may not write now is accepted: running backends can be found there,
    /// and each launch fails with the error.
    ///
    /// Makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire_spawn_lock`](crate::lock::acquire_spawn_lock), and [`SpawnLockError::NotADirectory`]. A directory
    /// that group or others can write to is [`SpawnLockError::Unsafe`], except as described at [`FileSpawnLock`].
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
        let home = Home::make(&directory)?;
        let probe = home.path().join(PROBE_NAME);
        let try_it = || acquire_with(&probe, filesystem, Try::First).map(drop);
        // The mode of the directory may have to be mended, then that of the file.
        let mended = |error| home.mend_at_first(&probe, error).and_then(|()| try_it());
        let tried = try_it().or_else(mended).or_else(mended);
        match tried {
            Ok(())
            // Another process is probing at this moment, so the directory works.
            | Err(
                SpawnLockError::AlreadyLocked { .. } | SpawnLockError::DeletedOrRecreated { .. },
            ) => {}
            // What is there can be read, and a backend found. A launch returns the error.
            Err(error) if is_read_only(&error) && inspect_spawn_lock(&probe).is_ok() => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            home: Arc::new(home),
            filesystem,
            keeps_ledger: true,
        })
    }

    /// Returns the resolved directory.
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// Returns the path of a key's lock file, whether or not it exists.
    pub fn path_of<K: GateKey>(&self, key: &K) -> PathBuf {
        let (directory, name) = (self.directory(), LockName::new(key));
        let length = directory.as_os_str().len() + 1 + name.as_str().len();
        let mut path = PathBuf::with_capacity(length);
        path.push(directory);
        path.push(name.as_str());
        path
    }
}

/// Whether the error says that this user may not write.
fn is_read_only(error: &SpawnLockError) -> bool {
    match error {
        SpawnLockError::ReadOnlyFilesystem { .. } => true,
        SpawnLockError::Open { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for FileSpawnLock {
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let file = LockFile {
            path: self.path_of(key).into(),
            home: Arc::clone(&self.home),
            filesystem: self.filesystem,
            keeps_ledger: self.keeps_ledger,
        };
        acquire::try_acquire(file, request).await
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
        acquire::look(self.path_of(key).into()).await
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        if !self.keeps_ledger {
            return Ok(());
        }
        let end = end.clone();
        let slot = descriptors::for_look().await;
        off_thread(self.path_of(key).into(), move |path| {
            let _slot = slot;
            record::write_note(path, &end)
        })
        .await
    }
}
