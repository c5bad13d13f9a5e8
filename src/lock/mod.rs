//! The spawn lock: what a gate needs of one, and the two that come with the crate.
//!
//! `identity` and `error` stand alone; `unix` / `windows` hold the system calls; `file` is one lock on one path; `ledger` is
//! the record in a lock file, as bytes; `directory` is the [`SpawnLock`] over a directory of such files; `memory` the one
//! without files.

mod directory;
mod error;
mod file;
mod identity;
mod ledger;
mod memory;
#[cfg(unix)]
#[path = "unix.rs"]
mod sys;
#[cfg(windows)]
#[path = "windows.rs"]
mod sys;

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;

pub use self::directory::{FileSpawnLock, read_lock_holder};
pub use self::error::{FileKind, SpawnLockError, Unsafety};
pub use self::file::{SpawnLockGuard, acquire_spawn_lock};
pub use self::identity::SpawnLockFileIdentity;
pub use self::memory::InMemorySpawnLock;

/// A family of exclusive locks, one for each key. A [`SpawnGate`](crate::SpawnGate) holds a key's lock while it launches.
///
/// [`FileSpawnLock`] is the one to use; [`InMemorySpawnLock`] is for tests and for programs that are alone. A lock service
/// of a cluster fits too: what a try returns is a lease, which can be lost, and says so when asked.
#[async_trait]
pub trait SpawnLock<K>: fmt::Debug + Send + Sync + 'static {
    /// Tries once to take the lock of `key`, without waiting for its holder.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::AlreadyLocked`] if somebody holds it: the gate tries again, with pauses, until its deadline.
    /// [`SpawnLockError::DeletedOrRecreated`]: the gate tries again a few times. Any other error ends the flight.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped, a lock that was taken, or is about to be, must be released by itself.
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError>;

    /// Says who holds the lock of `key`, as far as that is known. For people only: no decision rests on it.
    async fn holder(&self, key: &K) -> Option<LockHolder>;
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
    async fn verify(&self) -> Result<(), SpawnLockError>;
}

/// Who holds a spawn lock: for messages and admin pages, not for decisions. The process may be gone and its number in use
/// by another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockHolder {
    /// The lock file.
    pub path: PathBuf,
    /// The holder's process number.
    pub pid: u32,
    /// Since when it holds the lock, by its own clock.
    pub since: SystemTime,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is held by process {}", self.path.display(), self.pid)?;
        if let Ok(age) = self.since.elapsed() {
            write!(f, " for {:.1} s", age.as_secs_f64())?;
        }
        Ok(())
    }
}
