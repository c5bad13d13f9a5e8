//! The leader's seat, and the permit that it becomes once the spawn lock is held.

use std::fmt;
use std::sync::Arc;

use crate::budget::Attempt;
use crate::catch_panic::caught;
use crate::error::{GateError, LaunchError, SharedError, Stage};
use crate::flight::Flight;
use crate::held::Held;
use crate::inner::Inner;
use crate::key::GateKey;
use crate::lock::SpawnLockError;
use crate::outcome::Outcome;
use crate::slot::Settling;

/// The leader's seat: dropping it before the flight has ended abandons the flight.
pub(crate) struct Seat<K: GateKey, T> {
    pub(crate) inner: Arc<Inner<K, T>>,
    pub(crate) flight: Flight<K, T>,
    has_ended: bool,
}

impl<K: GateKey, T> Seat<K, T> {
    pub(crate) fn new(inner: Arc<Inner<K, T>>, flight: Flight<K, T>) -> Self {
        Self {
            inner,
            flight,
            has_ended: false,
        }
    }

    /// Ends the flight and settles its attempt.
    pub(crate) fn end(mut self, outcome: Outcome<T>, settling: Settling) {
        self.flight.end(&self.inner.policy, outcome, settling);
        self.has_ended = true;
    }
}

impl<K: GateKey, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let is_panicking = std::thread::panicking();
        // Named outside of the flight's own lock, and guarded: the key's code is the user's, and so are the followers' wakers.
        let key = caught(|| self.flight.label()).unwrap_or_else(|_| "?".into());
        let ending = |stage| {
            let error = if is_panicking {
                // Heard by all, so that they do not run into the same panic in turn.
                GateError::from(LaunchError::task_panicked(key))
            } else if stage == Stage::Launch {
                LaunchError::Abandoned { key }.into()
            } else {
                return (Outcome::Vacated, Settling::REFUND);
            };
            let settling = match stage {
                // An error of the gate's own: no code of the user's is run for its words.
                Stage::Launch => Settling::failed(error.words()),
                _ => Settling::REFUND,
            };
            (Outcome::Failed(error), settling)
        };
        let _ = caught(|| self.flight.end_with(&self.inner.policy, ending));
    }
}

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
pub struct LaunchPermit<K: GateKey, T>(Box<Parts<K, T>>);

/// What a permit is made of. Boxed, since a permit is moved a few times on its way to whoever settles it.
struct Parts<K: GateKey, T> {
    // The order is that of dropping: the lock is free before anybody is woken to ask for it again.
    held: Held,
    seat: Seat<K, T>,
    attempt: Attempt,
}

impl<K: GateKey, T> LaunchPermit<K, T> {
    /// Makes the permit of a flight that has just advanced to [`Stage::Launch`](crate::Stage::Launch).
    pub(crate) fn new(seat: Seat<K, T>, held: Held, attempt: Attempt) -> Self {
        Self(Box::new(Parts {
            held,
            seat,
            attempt,
        }))
    }

    /// Returns the key.
    pub fn key(&self) -> &K {
        self.0.seat.flight.key()
    }

    /// Returns the attempt's place in its window, from 1.
    pub fn attempt_number(&self) -> u32 {
        self.0.attempt.number
    }

    /// Returns how many attempts are left after this one.
    pub fn remaining_after_begin(&self) -> u32 {
        self.0.attempt.remaining
    }

    /// Returns the fencing token: a number that only grows from launch to launch of this key, across processes too if the
    /// lock is. Hand it to the backend, so that of two launchers the elder can be refused.
    pub fn fencing_token(&self) -> u64 {
        self.0.held.fencing_token()
    }

    /// Checks that the spawn lock is still held. Call it right before a step that must not happen twice.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::DeletedOrRecreated`] if the lock file was deleted or replaced: another process can hold the lock
    /// by now. Any other error means that it cannot be told: treat the lock as lost too. A retry of this call does not help;
    /// [`fail`](Self::fail) the launch.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn verify(&self) -> Result<(), SpawnLockError> {
        self.0.held.verify().await
    }

    /// Reports that the backend runs: `value` goes to all followers, the budget is reset, the lock released.
    ///
    /// Before that the spawn lock is verified once more. If the success cannot be written to the ledger, other processes count
    /// the attempt as failed.
    ///
    /// # Errors
    ///
    /// [`LaunchError::LockLost`] if the lock was lost while launching, or cannot be verified; the followers hear the same.
    /// `value` is dropped (keep a clone of a handle that you may need), and the backend may be one of two: stop it, or let it
    /// compare fencing tokens.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn succeed(mut self, value: T) -> Result<(), GateError> {
        if let Err(lost) = self.0.held.verify().await {
            let error = GateError::from(LaunchError::LockLost {
                key: self.label(),
                source: Arc::new(lost),
            });
            // What is written now would go to a file that nobody reads any more, or that is not ours.
            self.0.held.ledger = None;
            Box::pin(self.end_failed(error.clone())).await;
            return Err(error);
        }
        if let Some(ledger) = &mut self.0.held.ledger {
            ledger.settle(None);
        }
        self.end(Outcome::Launched(value), Settling::SUCCESS).await;
        Ok(())
    }

    /// Reports that the launch failed: the error goes to all followers, the attempt stays charged, the lock is released.
    /// Returns the error as the followers hear it. Processes that wait for the lock hear its message and those of its sources.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn fail(
        self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> GateError {
        let error = GateError::from(LaunchError::Failed {
            key: self.label(),
            attempt: self.0.attempt.number,
            source: SharedError::new(error),
        });
        self.end_failed(error.clone()).await;
        error
    }

    /// Reports that a backend was running already, and nothing was launched: `value` goes to all followers, the attempt is
    /// refunded, the lock released.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn discovered(self, value: T) {
        let Parts { held, seat, .. } = *self.0;
        let settling = held.leave(Settling::REFUND).await;
        seat.end(Outcome::Discovered(value), settling);
    }

    /// Gives the permit back without having started anything: the attempt is refunded, the lock released, and one of the
    /// followers takes over.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the followers were told, the flight ends as abandoned, as if the permit had been
    /// dropped. They are told before it returns.
    pub async fn refund(self) {
        let Parts { held, seat, .. } = *self.0;
        let settling = held.leave(Settling::REFUND).await;
        seat.end(Outcome::Vacated, settling);
    }

    /// The key as it is named in messages.
    pub(crate) fn label(&self) -> Arc<str> {
        self.0.seat.flight.label()
    }

    /// Gives the permit back where nothing can be awaited: as [`refund`](Self::refund), but what the ledger was charged stays.
    pub(crate) fn vacate(self) {
        let Parts { held, seat, .. } = *self.0;
        // If the lease panics, the seat tells by the stage that nothing was launched.
        seat.flight.advance(Stage::Lock);
        drop(held);
        seat.end(Outcome::Vacated, Settling::REFUND);
    }

    /// Ends the flight with `error`, charged.
    pub(crate) async fn end_failed(mut self, error: GateError) {
        let why = error.words();
        if let Some(ledger) = &mut self.0.held.ledger {
            ledger.settle(Some((*why).clone()));
        }
        self.end(Outcome::Failed(error), Settling::failed(why))
            .await;
    }

    /// Writes the ledger, releases the lock, and lets everybody know, in this order: whoever hears of the end finds the lock
    /// free and the ledger settled.
    async fn end(self, outcome: Outcome<T>, settling: Settling) {
        let Parts { held, seat, .. } = *self.0;
        let settling = match held.release_now(settling) {
            Ok(settling) => settling,
            Err((held, settling)) => Box::pin(held.release(settling)).await,
        };
        seat.end(outcome, settling);
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
