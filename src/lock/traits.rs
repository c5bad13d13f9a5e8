//! The seam for spawn locks: what a gate needs from a lock and its lease.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::error::SpawnLockError;
use crate::ledger::{BackendEnd, Known, Ledger, LedgerReading};

/// A family of exclusive locks, one for each key. A [`SpawnGate`](crate::SpawnGate) holds a key's lock while it launches.
///
/// Use [`FileSpawnLock`](crate::FileSpawnLock); [`InMemorySpawnLock`](crate::InMemorySpawnLock) is for tests and for programs
/// that are alone on their machine. A lock service of a cluster fits too: a successful try returns a lease, which can be lost.
#[async_trait]
pub trait SpawnLock<K>: fmt::Debug + Send + Sync + 'static {
    /// Tries once to take the lock of `key`, without waiting for its holder.
    ///
    /// A lock that keeps a [`Ledger`] takes the lock, reads the ledger, calls [`LedgerUpdate::apply`], and writes the ledger that
    /// this returns, all before the future resolves. If the write fails, it releases the lock and returns the error.
    ///
    /// If the ledger can be read without the lock, a try while waiting does so first, and ends if that answers the request
    /// ([`LockRequest::is_answered_by`]).
    ///
    /// # Errors
    ///
    /// A lock that is held elsewhere is [`TryAcquire::Held`], not an error. If the lock is lost before the future resolves
    /// ([`SpawnLockError::is_lost`]), the gate tries again, at most five times per flight. The gate retries other errors for
    /// which [`SpawnLockError::retry_helps`] is true until the lock deadline; the rest end the flight.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the implementation must release a lock that it has taken or is about to take, and take back
    /// what it wrote to the ledger.
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError>;

    /// Takes the lock of `key` if it is free and this lock keeps no ledger and can be taken without waiting or blocking. Returns
    /// `None` (the default) otherwise.
    fn try_acquire_now(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        let _ = key;
        None
    }

    /// Waits until the lock of `key`, which was found held, may be free; for `pause` (the default) if the lock cannot tell. A
    /// wait that ends too early costs one try; one that ends too late delays the caller by a second at most, since the gate then
    /// looks again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn released(&self, key: &K, pause: Duration) {
        let _ = key;
        tokio::time::sleep(pause).await;
    }

    /// Returns whether this lock keeps a [`Ledger`] for each key. If so, all processes that share the lock share the budget;
    /// if not (the default), each gate counts its own. Called once, when a gate is built.
    fn keeps_ledger(&self) -> bool {
        false
    }

    /// Reads the ledger of `key` without taking the lock.
    ///
    /// # Errors
    ///
    /// If the ledger cannot be read; the gate then decides once it holds the lock.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        let _ = key;
        Ok(LedgerReading::NotKept)
    }

    /// Stores beside the ledger that a backend has ended, without taking the lock or waiting for its holder. From then on, the
    /// lock applies [`Ledger::note_backend_end`] to each ledger that it reads. Does nothing by default.
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
    /// The update to apply to the ledger once the lock is held.
    pub update: LedgerUpdate,
    /// The end of the caller's wait for the lock. A try should not outlast it by more than a second.
    pub deadline: Instant,
    /// Whether the caller has found the lock held before and is waiting. Such a try must not wake other waiters.
    pub is_waiting: bool,
    pub(crate) known: Known,
}

impl LockRequest {
    /// Creates the request for a first try.
    pub fn new(update: LedgerUpdate, deadline: Instant) -> Self {
        Self {
            update,
            deadline,
            is_waiting: false,
            known: Known::default(),
        }
    }

    /// Returns whether this ledger, read without the lock, lets a waiting caller continue without the lock: since the gate first
    /// read it, a launch has failed, or a backend was launched or found and the caller can look for it. The try then ends with
    /// [`TryAcquire::Answered`], so that waiters do not take the lock one after the other to learn the same thing.
    ///
    /// A lock around another one passes on the request that it got, since a new one answers false.
    pub fn is_answered_by(&self, ledger: &LedgerReading) -> bool {
        self.is_waiting && self.known.is_answered_by(ledger)
    }
}

/// The gate's decision on a ledger, as a function that the lock calls once it is held, so that taking the lock, reading and
/// writing the ledger are one step.
pub struct LedgerUpdate(Box<dyn FnOnce(LedgerReading, u64) -> Option<Ledger> + Send>);

impl LedgerUpdate {
    /// Wraps a function from the ledger's reading and the new holder's fencing token to the ledger to write.
    pub fn new(update: impl FnOnce(LedgerReading, u64) -> Option<Ledger> + Send + 'static) -> Self {
        Self(Box::new(update))
    }

    /// Creates an update that changes nothing.
    pub fn none() -> Self {
        Self::new(|_, _| None)
    }

    /// Returns the ledger to write; `None` to write nothing.
    pub fn apply(self, reading: LedgerReading, fencing_token: u64) -> Option<Ledger> {
        (self.0)(reading, fencing_token)
    }
}

impl fmt::Debug for LedgerUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerUpdate").finish_non_exhaustive()
    }
}

/// The result of a try.
#[derive(Debug)]
pub enum TryAcquire {
    /// The caller now holds the lock.
    Acquired(Box<dyn SpawnLease>),
    /// Somebody else holds it.
    Held {
        /// The lock's path, or its name if it has no path.
        lock: PathBuf,
        /// The ledger right before or after the try, as far as it could be read.
        ledger: LedgerReading,
    },
    /// This ledger answers the request ([`LockRequest::is_answered_by`]), so the lock was not taken. If it does not, the gate takes
    /// this as [`Held`](Self::Held).
    Answered(LedgerReading),
}

/// Resolves when a lease is lost.
pub type LeaseLost<'a> = Pin<Box<dyn Future<Output = SpawnLockError> + Send + 'a>>;

/// A held spawn lock. Dropping it releases the lock, at once and without waiting where possible.
#[async_trait]
pub trait SpawnLease: fmt::Debug + Send + Sync + 'static {
    /// Returns the fencing token: a number that grows from holder to holder of the same lock. A backend that gets it can refuse
    /// the older of two launchers.
    fn fencing_token(&self) -> u64;

    /// Checks that the lock is still held.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] is true if the lock was lost; another error if that is unknown.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    async fn verify(&self) -> Result<(), SpawnLockError>;

    /// Does the check of [`verify`](Self::verify) synchronously. Returns `None` (the default) if this lease cannot do so without
    /// waiting or blocking.
    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        None
    }

    /// Returns a future that resolves as soon as the lock is known to be lost. `None` (the default) means that only a check
    /// notices a loss.
    fn lost(&self) -> Option<LeaseLost<'_>> {
        None
    }

    /// Returns how long the lock holds without a renewal. A call of this lease may take as long. `None` (the default) means that
    /// the lock does not expire; a call may then take five seconds.
    fn expires_in(&self) -> Option<Duration> {
        None
    }

    /// Writes the ledger, atomically: if the write fails or this process is killed, the ledger before it stays readable.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] is true if the lock was lost and nothing was written; otherwise the error
    /// of the write.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the ledger may be written later, but not after the release of the lock.
    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let _ = ledger;
        Ok(())
    }

    /// Verifies the lock, writes the last record, and releases the lock, in one call. The gate then publishes the outcome.
    ///
    /// The default verifies and writes; the gate then drops the lease, which releases the lock. Implement it if a release has to
    /// wait, or if one step is cheaper than three.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] is true if the lock was lost and nothing was written: the flight ends with
    /// [`LaunchError::LockLost`](crate::error::LaunchError::LockLost). After any other error the gate verifies the lease once more
    /// before it reports a success, and drops the lease.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, dropping the lease must still release the lock.
    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        self.verify().await?;
        match ledger {
            Some(ledger) => self.write_ledger(ledger).await,
            None => Ok(()),
        }
    }

    /// Settles synchronously, for a lease without a ledger that is released by dropping it: verifies only. Returns `None` (the
    /// default) if [`settle`](Self::settle) has to do more.
    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        None
    }
}
