//! The permit: the public face of a leader that may launch.

use std::fmt;

use super::held_lock::HeldLock;
use super::leader::Leader;
use super::outcome::Outcome;
use crate::error::{BoxError, GateError};
use crate::key::GateKey;
use crate::lock::SpawnLockError;

/// The right to launch: this caller leads the flight, its attempt is charged, and the spawn lock is held and was verified.
///
/// While it lives, no other caller of this gate and no other process that uses the same lock launches the same key; the
/// followers wait. It does not expire by itself. Settle it with [`succeed`](Self::succeed), [`fail`](Self::fail),
/// [`discovered`](Self::discovered) or [`refund`](Self::refund).
///
/// # Cancel safety
///
/// Dropping an unsettled permit ends the flight with [`LaunchError::Abandoned`](crate::error::LaunchError::Abandoned): the followers get
/// that error at once, the lock is released, and the attempt stays charged, since something may have been started. The same
/// happens if the future of a settling method is dropped before it has published the outcome; it publishes before it returns.
///
/// # Panics
///
/// The methods that settle it may panic outside of a tokio runtime with time enabled; dropping it does not.
#[must_use = "dropping a permit abandons the launch and leaves its attempt charged; settle it"]
pub struct LaunchPermit<K: GateKey, T>(Leader<K, T>);

impl<K: GateKey, T> LaunchPermit<K, T> {
    /// Creates the permit of a leader that may launch.
    pub(crate) fn new(leader: Leader<K, T>) -> Self {
        Self(leader)
    }

    pub(crate) fn into_leader(self) -> Leader<K, T> {
        self.0
    }

    /// Returns the key.
    pub fn key(&self) -> &K {
        self.0.flight.key()
    }

    /// Returns the attempt's place in its window, from 1.
    pub fn attempt_number(&self) -> u32 {
        self.0.attempt.map_or(0, |attempt| attempt.number)
    }

    /// Returns how many attempts are left after this one.
    pub fn remaining_after_begin(&self) -> u32 {
        self.0.attempt.map_or(0, |attempt| attempt.remaining)
    }

    /// Returns the fencing token: a number that grows from launch to launch of this key, also across the processes that share
    /// the lock. Pass it to the backend, so that the older of two launchers can be refused.
    pub fn fencing_token(&self) -> u64 {
        self.0.held.as_ref().map_or(0, HeldLock::fencing_token)
    }

    /// Checks that the spawn lock is still held. Call it right before a step that must not happen twice.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] is true if the lock was lost (its file was deleted or replaced, say):
    /// another process may hold it now. Any other error means that the state is unknown: treat the lock as lost too. A retry of
    /// this call does not help; [`fail`](Self::fail) the launch.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn verify(&self) -> Result<(), SpawnLockError> {
        match &self.0.held {
            Some(held) => held.verify().await,
            None => Ok(()),
        }
    }

    /// Waits until the spawn lock is lost, and returns how.
    ///
    /// Never returns for a lock that does not announce a loss, such as a file lock: use [`verify`](Self::verify) there.
    /// [`SpawnGate::launch`](crate::SpawnGate::launch) waits for this itself and drops the launcher's future on a loss.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn lost(&self) -> SpawnLockError {
        match &self.0.held {
            Some(held) => held.lost().await,
            None => std::future::pending().await,
        }
    }

    /// The error of a launch whose lock was lost.
    pub(crate) fn lock_lost(&self, error: SpawnLockError) -> GateError {
        self.0.lock_lost(error)
    }
}

impl<K: GateKey, T: Clone> LaunchPermit<K, T> {
    /// Settles as a success: verifies the lock once more, gives `value` to all followers, and releases the lock. The budget is
    /// reset, at once or after [`stable_after`](crate::SpawnGateBuilder::stable_after).
    ///
    /// If the lock is held but the success cannot be written to the ledger, it is a success all the same, and other processes
    /// count the attempt as failed.
    ///
    /// # Errors
    ///
    /// `value` is dropped, so keep a clone of a handle that you need to stop the backend.
    ///
    /// - [`LaunchError::LockLost`](crate::error::LaunchError::LockLost): the lock was lost while launching, or cannot be verified; the
    ///   followers get the same error. The backend may be one of two: stop it, or let it compare fencing tokens.
    /// - [`LaunchError::Aborted`](crate::error::LaunchError::Aborted): an operator aborted the flight, or the gate was closed and its
    ///   drain timeout was over; the followers got the error then. Stop the backend if nobody shall use it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the outcome is published, the flight ends like that of a dropped permit.
    pub async fn succeed(self, value: T) -> Result<(), GateError> {
        match self.0.end(Outcome::Launched(value)).await {
            Outcome::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Settles as a failure: gives the error to all followers and releases the lock; the attempt stays charged. Returns the
    /// error that the followers get. Processes that wait for the lock get its message and those of its sources. With
    /// [`NotStarted`](crate::error::NotStarted), the attempt is refunded and those processes go on to launch.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the outcome is published, the flight ends like that of a dropped permit.
    pub async fn fail(mut self, error: impl Into<BoxError>) -> GateError {
        let error = self.0.launch_failed(error);
        match self.0.end(Outcome::Failed(error.clone())).await {
            Outcome::Failed(told) => told,
            _ => error,
        }
    }

    /// Settles as discovered, if a backend was running already and nothing was launched: gives `value` to all followers, refunds
    /// the attempt, and releases the lock.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the outcome is published, the flight ends like that of a dropped permit.
    pub async fn discovered(self, value: T) {
        self.0.end(Outcome::Discovered(value)).await;
    }

    /// Gives the permit back, if nothing was started: refunds the attempt, releases the lock, and lets a follower take over.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the outcome is published, the flight ends like that of a dropped permit.
    pub async fn refund(self) {
        self.0.end(Outcome::LeaderGone).await;
    }
}

impl<K: GateKey + fmt::Debug, T> fmt::Debug for LaunchPermit<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchPermit")
            .field("key", self.key())
            .field("attempt_number", &self.attempt_number())
            .field("fencing_token", &self.fencing_token())
            .finish_non_exhaustive()
    }
}
