//! The spawn lock over a directory of lock files: where blocking calls leave the runtime's threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::contract::{LedgerReading, SpawnLease, SpawnLock};
use super::error::SpawnLockError;
use super::file::{Filesystem, SpawnLockGuard, acquire_with};
use super::release::released;
use super::{record, sys};
use crate::key::{GateKey, LockName};
use crate::ledger::Ledger;

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
        match acquire_with(&probe, filesystem, || {}) {
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
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let path = self.path_of(key);
        let Self {
            filesystem,
            keeps_ledger,
            ..
        } = *self;
        // If this future is dropped the closure still runs; its lease is then dropped with its task, which unlocks.
        let lease = off_thread(path, move |path| {
            FileLease::take(path, filesystem, keeps_ledger)
        });
        Ok(Box::new(lease.await?))
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

    async fn peek(&self, key: &K) -> Option<Ledger> {
        if !self.keeps_ledger {
            return None;
        }
        match off_thread(self.path_of(key), record::peek).await {
            Ok(LedgerReading::Found(ledger)) => Some(*ledger),
            _ => None,
        }
    }
}

/// A held file lock, and the ledger as it was read when the lock was taken.
#[derive(Debug)]
struct FileLease {
    /// Shared with a write that is under way: the lock is not released before it is done.
    guard: Arc<SpawnLockGuard>,
    ledger: LedgerReading,
    /// What reached the file. Held while a write is made, so that two do not mix: one that took too long to be waited for can
    /// still be under way when the next is made.
    written: Arc<Mutex<Written>>,
    /// How many writes were begun.
    writes: u64,
    launch: u64,
    filesystem: Filesystem,
}

#[derive(Debug)]
struct Written {
    /// The number of the newest record in the file.
    sequence: u64,
    /// Which write that was.
    newest: u64,
}

impl FileLease {
    fn take(
        path: &Path,
        filesystem: Filesystem,
        keeps_ledger: bool,
    ) -> Result<Self, SpawnLockError> {
        let guard = acquire_with(path, filesystem, || {})?;
        let (ledger, sequence) = if keeps_ledger {
            record::read(path, guard.file())?
        } else {
            (LedgerReading::NotKept, 0)
        };
        let launch = match &ledger {
            LedgerReading::Found(ledger) => launch_after(ledger.launch),
            LedgerReading::Unreadable => launch_after(0),
            LedgerReading::NotKept => unrecorded_launch(),
        };
        Ok(Self {
            guard: Arc::new(guard),
            ledger,
            written: Arc::new(Mutex::new(Written {
                sequence,
                newest: 0,
            })),
            writes: 0,
            launch,
            filesystem,
        })
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

/// Runs a blocking call about the lock at `path` off the runtime's threads.
async fn off_thread<V: Send + 'static>(
    path: PathBuf,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> Result<V, SpawnLockError> {
    let on_shutdown = path.clone();
    match spawn_blocking(move || call(&path)).await {
        Ok(returned) => returned,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SpawnLockError::RuntimeShutDown { path: on_shutdown }),
        },
    }
}

/// The number of the launch after `last`: the wall clock's microseconds, so that it grows also when the lock file was deleted
/// and the count with it; and above the last one, also when the clock was set back.
fn launch_after(last: u64) -> u64 {
    let micros = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    last.saturating_add(1).max(micros)
}

/// The number of a launch that is not recorded: it grows within this process, and with the wall clock beyond.
fn unrecorded_launch() -> u64 {
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    let now = launch_after(0);
    if NEWEST.fetch_max(now, Ordering::Relaxed) < now {
        return now;
    }
    NEWEST.fetch_add(1, Ordering::Relaxed) + 1
}

#[async_trait]
impl SpawnLease for FileLease {
    fn fencing_token(&self) -> u64 {
        self.launch
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        if let Some(verified) = self.verify_now() {
            return verified;
        }
        let guard = Arc::clone(&self.guard);
        off_thread(guard.path().to_path_buf(), move |_| guard.verify()).await
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        match self.filesystem {
            // One `lstat`: too short to leave the thread for.
            Filesystem::Local => Some(self.guard.verify()),
            Filesystem::Any => None,
        }
    }

    fn ledger(&self) -> LedgerReading {
        self.ledger.clone()
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        self.writes += 1;
        let this = self.writes;
        let written = Arc::clone(&self.written);
        let guard = Arc::clone(&self.guard);
        let ledger = ledger.clone();
        let path = self.guard.path().to_path_buf();
        off_thread(path, move |path| {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            if written.newest > this {
                // This one comes late: a newer one must not be undone.
                return Ok(());
            }
            // A write that fails is made again in the same slot: the other one holds the last good record.
            record::write(path, guard.file(), written.sequence, &ledger)?;
            written.sequence = written.sequence.saturating_add(1);
            written.newest = this;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(launch: u64) -> Ledger {
        Ledger {
            launch,
            ..Ledger::default()
        }
    }

    #[tokio::test]
    async fn a_write_that_comes_late_does_not_undo_a_newer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = FileLease::take(&path, Filesystem::Local, true).unwrap();
        // The second one is made first, as if the first one had waited for a thread meanwhile.
        lease.writes = 1;
        lease.write_ledger(&ledger(2)).await.unwrap();
        lease.writes = 0;
        lease.write_ledger(&ledger(1)).await.unwrap();
        let (found, _) = record::read(&path, lease.guard.file()).unwrap();
        assert_eq!(found, LedgerReading::Found(Box::new(ledger(2))));
    }
}
