//! What a gate needs of a spawn lock.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::error::SpawnLockError;
use crate::ledger::{Ledger, LedgerHolder};

/// A family of exclusive locks, one for each key. A [`SpawnGate`](crate::SpawnGate) holds a key's lock while it launches.
///
/// [`FileSpawnLock`](crate::FileSpawnLock) is the one to use; [`InMemorySpawnLock`](crate::InMemorySpawnLock) is for tests
/// and for programs that are alone. A lock service of a cluster fits too: what a try returns is a lease, which can be lost,
/// and says so when asked.
#[async_trait]
pub trait SpawnLock<K>: fmt::Debug + Send + Sync + 'static {
    /// Tries once to take the lock of `key`, without waiting for its holder.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::AlreadyLocked`] (with the lock's name as path, if it has no path) if somebody holds it: the gate tries
    /// again, with pauses, until its deadline.
    /// [`SpawnLockError::DeletedOrRecreated`]: the gate tries again a few times. Any other error ends the flight.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped, a lock that was taken, or is about to be, must be released by itself.
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError>;

    /// Tries as [`try_acquire`](Self::try_acquire) does, for a lock that can do so without waiting or blocking. `None`, as
    /// unless implemented: it cannot.
    fn try_acquire_now(&self, key: &K) -> Option<Result<Box<dyn SpawnLease>, SpawnLockError>> {
        let _ = key;
        None
    }

    /// Waits until the lock of `key`, which was found held, may be free; for `pause` if that cannot be told. Coming too early
    /// costs a try, coming late costs time: the gate tries again every second in any case.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn released(&self, key: &K, pause: Duration) {
        let _ = key;
        tokio::time::sleep(pause).await;
    }

    /// Whether this lock keeps a [`Ledger`] for each key. If it does, the budget is counted there, for all processes that
    /// share the lock; if not, by each gate for itself. Asked once, when a gate is built.
    fn keeps_ledger(&self) -> bool {
        false
    }

    /// Reads the ledger of `key` without taking the lock: for callers that wait, and for people. `None` if it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn peek(&self, key: &K) -> Option<Ledger> {
        let _ = key;
        None
    }
}

#[async_trait]
impl<K: Sync, L: SpawnLock<K> + ?Sized> SpawnLock<K> for Arc<L> {
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        (**self).try_acquire(key).await
    }

    fn try_acquire_now(&self, key: &K) -> Option<Result<Box<dyn SpawnLease>, SpawnLockError>> {
        (**self).try_acquire_now(key)
    }

    async fn released(&self, key: &K, pause: Duration) {
        (**self).released(key, pause).await;
    }

    fn keeps_ledger(&self) -> bool {
        (**self).keeps_ledger()
    }

    async fn peek(&self, key: &K) -> Option<Ledger> {
        (**self).peek(key).await
    }
}

/// What a lock's ledger said when the lock was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LedgerReading {
    /// The lock keeps no ledger.
    NotKept,
    /// What was written there last; a ledger that was never written reads as the default one.
    Found(Box<Ledger>),
    /// Something is written there that is no ledger. The gate takes the key's budget as just used up.
    Unreadable,
}

/// A held spawn lock. Dropping it releases the lock, at once and without waiting.
#[async_trait]
pub trait SpawnLease: fmt::Debug + Send + Sync + 'static {
    /// Returns the fencing token: a number that only grows from holder to holder of the same lock. A backend that is told
    /// it can refuse the elder of two launchers.
    fn fencing_token(&self) -> u64;

    /// Checks that the lock is still held.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::DeletedOrRecreated`], or what a lock service has for a lease that ran out.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn verify(&self) -> Result<(), SpawnLockError>;

    /// Checks as [`verify`](Self::verify) does, for a lock that can do so without waiting or blocking. `None`, as unless
    /// implemented: it cannot.
    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        None
    }

    /// Returns what the ledger said when the lock was taken.
    fn ledger(&self) -> LedgerReading {
        LedgerReading::NotKept
    }

    /// Writes the ledger. Either all of it is written, or what was there before stays readable, also if this process is
    /// killed meanwhile. If the ledger outlives a lost lease, as with a lock service, a write under such a lease must not
    /// undo what a later holder wrote.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::Ledger`] if it cannot be written.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the ledger may be written later, but not after the lock was released.
    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let _ = ledger;
        Ok(())
    }
}

/// Who holds a spawn lock: for messages and admin pages, not for decisions. The process may be gone and its id in use by
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockHolder {
    /// The lock file.
    pub path: PathBuf,
    /// The holder's process id.
    pub pid: u32,
    /// Since when it has been launching, by the wall clock.
    pub since: SystemTime,
}

impl LockHolder {
    pub(crate) fn new(path: PathBuf, holder: &LedgerHolder) -> Self {
        Self {
            path,
            pid: holder.pid,
            since: holder.since.system_time(),
        }
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not that this process holds it: it may be gone, and a child that it forked hold the lock yet.
        let (path, pid) = (self.path.display(), self.pid);
        write!(f, "{path}, which process {pid} took")?;
        match self.since.elapsed() {
            Ok(age) => write!(f, " {:.1} s ago", age.as_secs_f64()),
            // The clock was set back.
            Err(_) => Ok(()),
        }
    }
}
