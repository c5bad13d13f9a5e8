//! The spawn lock over a directory of lock files: where blocking calls leave the runtime's threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::error::SpawnLockError;
use super::file::{Filesystem, SpawnLockGuard, acquire_with};
use super::ledger::{self, Holder, Ledger, Reading, SlotWrite};
use super::{LockHolder, SpawnLease, SpawnLock, sys};
use crate::key::{GateKey, LockName};

/// Spawn locks that are OS file locks in one directory, one file for each key. All processes of the machine that use the
/// same directory exclude each other, and a process that dies lets go of its locks.
///
/// The files are named by [`LockName`], stay when a lock is released, and hold a small record (launch number, holder) that
/// a person can read. Do not delete them while they may be in use; a gate notices it, but only the launch number tells two
/// backends apart then.
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
}

impl FileSpawnLock {
    /// Uses `directory`, making it (mode 0700, with its parents) if there is none. Takes a lock in it once, so that a
    /// directory which cannot serve is found now and not by the first request.
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
    /// As [`new`](Self::new), without [`SpawnLockError::NetworkFilesystem`].
    pub fn on_any_filesystem(directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Self::with_filesystem(directory.into(), Filesystem::Any)
    }

    fn with_filesystem(directory: PathBuf, filesystem: Filesystem) -> Result<Self, SpawnLockError> {
        sys::make_directory(&directory).map_err(|source| sys::open_error(&directory, source))?;
        let probe = directory.join(PROBE_NAME);
        match acquire_with(&probe, filesystem, || {}) {
            Ok(_) => {}
            // Another process probes in this moment, so the directory serves.
            Err(error) if error.retry_helps() => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            directory: directory.into(),
            filesystem,
        })
    }

    /// Returns the directory.
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
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let path = self.path_of(key);
        let filesystem = self.filesystem;
        let on_shutdown = path.clone();
        // If this future is dropped the closure still runs; its lease is then dropped with its task, which unlocks.
        let lease = tokio::task::spawn_blocking(move || FileLease::take(&path, filesystem))
            .await
            .unwrap_or(Err(SpawnLockError::RuntimeShutDown { path: on_shutdown }))?;
        Ok(Box::new(lease))
    }

    async fn holder(&self, key: &K) -> Option<LockHolder> {
        let path = self.path_of(key);
        tokio::task::spawn_blocking(move || read_lock_holder(path))
            .await
            .ok()?
            .ok()?
    }
}

/// Reads from a lock file who holds the lock, without touching the lock. For people only.
///
/// Returns `None` if nobody is written there. A holder that was killed stays written until the next one comes.
///
/// It makes a few short blocking calls.
///
/// # Errors
///
/// [`SpawnLockError::Open`] if the file cannot be opened, [`SpawnLockError::Ledger`] if it cannot be read,
/// [`SpawnLockError::LedgerVersion`] if a newer version of this crate wrote it.
pub fn read_lock_holder(path: impl AsRef<Path>) -> Result<Option<LockHolder>, SpawnLockError> {
    let path = path.as_ref();
    let file = sys::open_for_reading(path).map_err(|source| sys::open_error(path, source))?;
    let holder = match read_slots(&file).map_err(|source| ledger_error(path, source))? {
        Reading::Found { ledger, .. } => ledger.holder,
        Reading::Empty | Reading::Unreadable => None,
        Reading::Newer { version } => return Err(newer_version(path, version)),
    };
    Ok(holder.map(|holder| LockHolder {
        path: path.to_path_buf(),
        pid: holder.pid,
        since: holder.since,
    }))
}

/// A held file lock and the record in its file.
#[derive(Debug)]
struct FileLease {
    guard: SpawnLockGuard,
    ledger: Ledger,
    sequence: u64,
}

impl FileLease {
    fn take(path: &Path, filesystem: Filesystem) -> Result<Self, SpawnLockError> {
        let guard = acquire_with(path, filesystem, || {})?;
        let reading = read_slots(guard.file()).map_err(|source| ledger_error(path, source))?;
        let (found, sequence) = match reading {
            Reading::Empty | Reading::Unreadable => (Ledger::default(), 0),
            Reading::Found { ledger, sequence } => (ledger, sequence),
            Reading::Newer { version } => return Err(newer_version(path, version)),
        };
        let now = SystemTime::now();
        let mut lease = Self {
            guard,
            ledger: Ledger {
                // The clock keeps the number growing also when the file was deleted and the count with it.
                launch: ledger::unix_micros(now).max(found.launch.saturating_add(1)),
                holder: Some(Holder {
                    pid: std::process::id(),
                    since: now,
                }),
            },
            sequence,
        };
        lease.write().map_err(|source| ledger_error(path, source))?;
        Ok(lease)
    }

    fn write(&mut self) -> io::Result<()> {
        self.sequence += 1;
        let write = SlotWrite::new(&self.ledger, self.sequence);
        sys::write_all_at(self.guard.file(), &write.bytes, write.offset)
    }
}

#[async_trait]
impl SpawnLease for FileLease {
    fn fencing_token(&self) -> u64 {
        self.ledger.launch
    }

    /// One `lstat` on a local file system: too short to leave the thread for.
    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.guard.verify()
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        if !self.guard.is_of_this_process() {
            return;
        }
        self.ledger.holder = None;
        // The record is for people, and the lock is released whether or not it can be written.
        let _ = self.write();
    }
}

fn read_slots(file: &std::fs::File) -> io::Result<Reading> {
    let mut slots = [0; ledger::SLOTS_LEN];
    let mut filled = 0;
    while filled < slots.len() {
        match sys::read_at(
            file,
            &mut slots[filled..],
            ledger::FIRST_SLOT + filled as u64,
        ) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Reading::of(&slots[..filled]))
}

fn ledger_error(path: &Path, source: io::Error) -> SpawnLockError {
    SpawnLockError::Ledger {
        path: path.to_path_buf(),
        source,
    }
}

fn newer_version(path: &Path, found: u32) -> SpawnLockError {
    SpawnLockError::LedgerVersion {
        path: path.to_path_buf(),
        found,
        supported: ledger::VERSION,
    }
}
