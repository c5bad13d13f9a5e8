//! What a gate needs of a spawn lock.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::error::SpawnLockError;
use crate::ledger::{BackendEnd, Ledger, LedgerReading};

/// A family of exclusive locks, one for each key. A [`SpawnGate`](crate::SpawnGate) holds a key's lock while it launches.
///
/// [`FileSpawnLock`](crate::FileSpawnLock) is the one to use; [`InMemorySpawnLock`](crate::InMemorySpawnLock) is for tests
/// and for programs that are alone. The lock service of a cluster fits too: a successful try returns a lease, which can be lost.
#[async_trait]
pub trait SpawnLock<K>: fmt::Debug + Send + Sync + 'static {
    /// Tries once to take the lock of `key`, without waiting for its holder.
    ///
    /// If the lock keeps a [`Ledger`], it reads that once it is held, calls [`LedgerUpdate::apply`], and writes what that
    /// returns, all before this returns. If that write fails, the lock is released and the error returned.
    ///
    /// # Errors
    ///
    /// A held lock is [`TryAcquire::Held`] and no error. If the lock is lost before this returns
    /// ([`SpawnLockError::is_lost`]), the gate tries again a few times. Any other error for which
    /// [`SpawnLockError::retry_helps`] is retried until the deadline of the wait; the rest ends the flight.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped, a lock that was taken, or is about to be, must be released by itself, with what was
    /// written to the ledger taken back.
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError>;

    /// Takes the lock of `key` if it is free, for a lock that keeps no ledger and needs neither wait nor block. Returns `None`
    /// (the default) if the lock is not free or cannot do that.
    fn try_acquire_now(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        let _ = key;
        None
    }

    /// Waits until the lock of `key`, which was found held, may be free; for `pause` (the default) if that cannot be told. A
    /// wait that ends too early costs a try, one that ends too late costs time: the gate looks again every second in any case.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn released(&self, key: &K, pause: Duration) {
        let _ = key;
        tokio::time::sleep(pause).await;
    }

    /// Returns whether this lock keeps a [`Ledger`] for each key. If it does, the budget is counted there, for all processes
    /// that share the lock; if not, by each gate for itself. Asked once, when a gate is built.
    fn keeps_ledger(&self) -> bool {
        false
    }

    /// Reads the ledger of `key` without taking the lock.
    ///
    /// # Errors
    ///
    /// An error means that it cannot be told what the ledger says; the gate then decides when it holds the lock.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        let _ = key;
        Ok(LedgerReading::NotKept)
    }

    /// Reports beside the ledger that a backend has ended, without taking the lock or waiting for its holder: the ledger is read
    /// with [`Ledger::note_backend_end`] applied from then on. Does nothing by default.
    ///
    /// # Errors
    ///
    /// If the report cannot be written; the launch then stays charged.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the report may be written later.
    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        let _ = key;
        let _ = end;
        Ok(())
    }
}

#[async_trait]
impl<K: Sync, L: SpawnLock<K> + ?Sized> SpawnLock<K> for Arc<L> {
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        (**self).try_acquire(key, request).await
    }

    fn try_acquire_now(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        (**self).try_acquire_now(key)
    }

    async fn released(&self, key: &K, pause: Duration) {
        (**self).released(key, pause).await;
    }

    fn keeps_ledger(&self) -> bool {
        (**self).keeps_ledger()
    }

    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        (**self).read_ledger(key).await
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        (**self).report_backend_end(key, end).await
    }
}

/// One try at a spawn lock.
#[derive(Debug)]
#[non_exhaustive]
pub struct LockRequest {
    /// What becomes of the ledger once the lock is held.
    pub update: LedgerUpdate,
    /// When the caller's wait for the lock is over. A try should not outlast it by much.
    pub deadline: Instant,
    /// The caller has found the lock held before, and waits. Such a try must not wake others who wait.
    pub is_waiting: bool,
}

impl LockRequest {
    /// Creates the request for a first try.
    pub fn new(update: LedgerUpdate, deadline: Instant) -> Self {
        Self {
            update,
            deadline,
            is_waiting: false,
        }
    }
}

/// A change of the ledger, made by whoever has just taken the lock. A decision that travels to where the lock is taken, so that
/// taking, reading and writing are one step there.
pub struct LedgerUpdate(Box<dyn FnOnce(LedgerReading, u64) -> Option<Ledger> + Send>);

impl LedgerUpdate {
    /// Wraps a function from what the ledger says, and the fencing token of the new holder, to the ledger to write.
    pub fn new(update: impl FnOnce(LedgerReading, u64) -> Option<Ledger> + Send + 'static) -> Self {
        Self(Box::new(update))
    }

    /// Changes nothing.
    pub fn none() -> Self {
        Self::new(|_, _| None)
    }

    /// Returns the ledger to write; `None` if nothing is to be written.
    pub fn apply(self, reading: LedgerReading, fencing_token: u64) -> Option<Ledger> {
        (self.0)(reading, fencing_token)
    }
}

impl fmt::Debug for LedgerUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerUpdate").finish_non_exhaustive()
    }
}

/// What came of a try.
#[derive(Debug)]
pub enum TryAcquire {
    /// The lock is held by the caller now.
    Acquired(Box<dyn SpawnLease>),
    /// Somebody else holds it.
    Held {
        /// The lock's path, or its name if it has no path.
        lock: PathBuf,
        /// What the ledger said right before the try, as far as it could be read.
        ledger: LedgerReading,
    },
}

/// Resolves when a lease is lost.
pub type LeaseLost<'a> = Pin<Box<dyn Future<Output = SpawnLockError> + Send + 'a>>;

/// A held spawn lock. Dropping it releases the lock, at once and without waiting where that is possible.
#[async_trait]
pub trait SpawnLease: fmt::Debug + Send + Sync + 'static {
    /// Returns the fencing token: a number that only grows from holder to holder of the same lock. A backend that is told
    /// it can refuse the elder of two launchers.
    fn fencing_token(&self) -> u64;

    /// Checks that the lock is still held.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] if the lock was lost; any other if that cannot be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn verify(&self) -> Result<(), SpawnLockError>;

    /// Checks as [`verify`](Self::verify) does. Returns `None` (the default) if this lease cannot do so without waiting or
    /// blocking.
    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        None
    }

    /// Returns a future that resolves as soon as the lock is known to be lost. `None` (the default) means that a loss shows only
    /// when the lease is verified.
    fn lost(&self) -> Option<LeaseLost<'_>> {
        None
    }

    /// Returns for how long the lock holds without being renewed, and so for how long a call of this lease may take. `None` (the
    /// default) means until it is released.
    fn expires_in(&self) -> Option<Duration> {
        None
    }

    /// Writes the ledger. Either all of it is written, or what was there before stays readable, also if this process is
    /// killed meanwhile.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] if the lock was lost, in which case nothing was written; else what went
    /// wrong with the write.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the ledger may be written later, but not after the lock was released.
    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let _ = ledger;
        Ok(())
    }

    /// Ends the holding of the lock: verifies it, writes the last record, and releases it, before anybody hears of the outcome.
    ///
    /// By default it verifies, and writes; dropping the lease then releases the lock. Implement it if a release needs to wait,
    /// or if one step is cheaper than three.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] if the lock was lost: nothing was written, and the flight ends as
    /// [`LaunchError::LockLost`](crate::LaunchError::LockLost). After any other error the gate verifies the lease once more
    /// before it tells a success, and drops it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lock is released with the lease.
    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        self.verify().await?;
        match ledger {
            Some(ledger) => self.write_ledger(ledger).await,
            None => Ok(()),
        }
    }

    /// Verifies a lease whose lock keeps no ledger and is released by dropping it. Returns `None` (the default) if this lease
    /// has more to do to settle.
    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        None
    }
}
