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
/// followers wait. It does not run out by itself. Settle it, with [`succeed`](Self::succeed), [`fail`](Self::fail),
/// [`discovered`](Self::discovered) or [`refund`](Self::refund).
///
/// # Cancel safety
///
/// Dropping a permit, or the future of one of the methods that settle it before it has told the followers, ends the flight as
/// [`LaunchError::Abandoned`]: the followers hear that at once, the lock is released, and the attempt stays charged, since
/// something may have been started.
///
/// # Panics
///
/// The methods that settle it may panic outside of a tokio runtime with time enabled; dropping it does not.
#[must_use = "dropping a permit abandons the launch and leaves its attempt charged; settle it"]
pub struct LaunchPermit<K: GateKey, T>(Leader<K, T>);

impl<K: GateKey, T> LaunchPermit<K, T> {
    /// Makes the permit of a leader that may launch.
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

    /// Returns the fencing token: a number that only grows from launch to launch of this key, across processes too if the
    /// lock is. Hand it to the backend, so that of two launchers the elder can be refused.
    pub fn fencing_token(&self) -> u64 {
        self.0.held.as_ref().map_or(0, HeldLock::fencing_token)
    }

    /// Checks that the spawn lock is still held. Call it right before a step that must not happen twice.
    ///
    /// # Errors
    ///
    /// An error for which [`SpawnLockError::is_lost`] if the lock was lost (its file was deleted or replaced, say): another
    /// process can hold it by now. Any other error means that it cannot be told: treat the lock as lost too. A retry of this
    /// call does not help; [`fail`](Self::fail) the launch.
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

    /// Waits until the spawn lock is lost, and returns how. Never returns if the lock does not announce a loss, as a file lock
    /// does not: use [`verify`](Self::verify) then. [`SpawnGate::launch`](crate::SpawnGate::launch) does this for its launcher,
    /// and stops waiting for it when the lock is lost.
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
    /// Reports that the backend runs: `value` goes to all followers, the budget is reset, the lock released.
    ///
    /// In the same step the spawn lock is verified once more. If the success cannot be written to the ledger though the lock is
    /// held, it is told all the same, and other processes count the attempt as failed.
    ///
    /// # Errors
    ///
    /// [`LaunchError::LockLost`] if the lock was lost while launching, or cannot be verified, and [`LaunchError::Aborted`] if an
    /// operator aborted the flight, or closed the gate and did not wait for it; the followers were told. `value` is dropped (keep a clone of a handle that you may
    /// need), and the backend may be one of two: stop it, or let it compare fencing tokens.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn succeed(self, value: T) -> Result<(), GateError> {
        match self.0.end(Outcome::Launched(value)).await {
            Outcome::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Reports that the launch failed: the error goes to all followers, the attempt stays charged, the lock is released.
    /// Returns the error as the followers hear it. Processes that wait for the lock hear its message and those of its sources.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn fail(self, error: impl Into<BoxError>) -> GateError {
        let error = self.0.launch_failed(error);
        match self.0.end(Outcome::Failed(error.clone())).await {
            Outcome::Failed(told) => told,
            _ => error,
        }
    }

    /// Reports that a backend was running already, and nothing was launched: `value` goes to all followers, the attempt is
    /// refunded, the lock released.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn discovered(self, value: T) {
        self.0.end(Outcome::Discovered(value)).await;
    }

    /// Gives the permit back without having started anything: the attempt is refunded, the lock released, and one of the
    /// followers takes over.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
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
