//! A wait for the spawn lock: one try, the pause until the next one, and the deadline. No thread is blocked meanwhile.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::shared::Shared;
use crate::error::{GateError, LockError, Stage, TimeoutError};
use crate::key::{GateKey, key_label};
use crate::ledger::{Known, LedgerHolder, LedgerReading};
use crate::lock::{LedgerUpdate, LockHolder, LockRequest, SpawnLease, SpawnLockError, TryAcquire};

const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two tries at a lock that cannot report its release.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// A waiter tries again after this time, whatever the lock reports.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How often one flight retries after a loss of the lock. A cleanup job may delete the file once; the gate does not fight with
/// one that always does.
const MAX_LOSSES: u32 = 5;

/// How long a try may overrun the deadline. A try takes microseconds, unless the file system hangs.
const LONGEST_TRY: Duration = Duration::from_secs(1);

/// The result of one try.
pub(crate) enum Tried {
    Taken(Box<dyn SpawnLease>),
    /// It is held. The ledger is from right before or after the try.
    Held(LedgerReading),
    /// This ledger has what the leader waits for.
    Answered(LedgerReading),
    /// The try failed, and a retry helps.
    Failed,
}

/// The wait for a lock. One deadline covers all waits of a flight, also if the lock is lost and taken again.
#[derive(Debug, Default)]
pub(crate) struct LockWait {
    deadline: Option<Instant>,
    losses: u32,
    pub(super) holder: Option<Arc<LockHolder>>,
    /// The same, as the ledger has it. Boxed, to keep a flight's future small.
    pub(super) ledger_holder: Option<Box<LedgerHolder>>,
    /// The wait was shown, or is to be at this time.
    pub(super) is_told: bool,
    pub(super) tell_at: Option<Instant>,
    /// The lock was found held before.
    is_waiting: bool,
    pause: Duration,
    /// The error of the last try.
    error: Option<SpawnLockError>,
}

impl LockWait {
    /// Tries once. `Err` ends the wait.
    pub(crate) async fn try_once<K: GateKey, T>(
        &mut self,
        shared: &Shared<K, T>,
        key: &K,
        update: LedgerUpdate,
        known: Known,
    ) -> Result<Tried, GateError> {
        let deadline = self.deadline(shared);
        let mut request = LockRequest::new(update, deadline);
        request.is_waiting = self.is_waiting;
        request.known = known;
        let tried = timeout_at(
            deadline + LONGEST_TRY,
            shared.lock.try_acquire(key, request),
        )
        .await;
        self.error = None;
        let tried = match tried {
            Err(_) => return Err(self.timed_out(shared, key)),
            Ok(Ok(TryAcquire::Acquired(lease))) => return Ok(Tried::Taken(lease)),
            Ok(Ok(TryAcquire::Answered(ledger))) if known.is_answered_by(&ledger) => {
                return Ok(Tried::Answered(ledger));
            }
            Ok(Ok(TryAcquire::Answered(ledger))) => Tried::Held(ledger),
            Ok(Ok(TryAcquire::Held { lock, ledger })) => {
                let holder = match &ledger {
                    LedgerReading::Found(ledger) => ledger.holder(),
                    _ => None,
                };
                self.ledger_holder = holder.cloned().map(Box::new);
                self.holder = holder.map(|holder| Arc::new(LockHolder::new(lock, holder)));
                Tried::Held(ledger)
            }
            Ok(Err(SpawnLockError::AlreadyLocked { .. })) => Tried::Held(LedgerReading::NotKept),
            Ok(Err(error)) => {
                self.note_error(error, key)?;
                Tried::Failed
            }
        };
        self.is_waiting |= matches!(tried, Tried::Held(_));
        Ok(tried)
    }

    /// Ends the wait at its deadline, after a try that did not take the lock.
    pub(crate) fn check_deadline<K: GateKey, T>(
        &mut self,
        shared: &Shared<K, T>,
        key: &K,
    ) -> Result<(), GateError> {
        match Instant::now() >= self.deadline(shared) {
            true => Err(self.timed_out(shared, key)),
            false => Ok(()),
        }
    }

    /// Records an error of the lock. `Err` if it ends the wait.
    pub(crate) fn note_error<K: GateKey>(
        &mut self,
        error: SpawnLockError,
        key: &K,
    ) -> Result<(), GateError> {
        self.losses += u32::from(error.is_lost());
        let is_over = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        let is_final = !error.retry_helps() || error.is_full();
        if is_over || is_final || self.losses > MAX_LOSSES {
            return Err(LockError::new(key_label(key), error).into());
        }
        self.error = Some(error);
        Ok(())
    }

    /// Counts the deadline from `began`, unless it is set.
    pub(crate) fn began_at<K, T>(&mut self, began: Instant, shared: &Shared<K, T>) {
        self.deadline.get_or_insert(began + shared.timeouts.lock);
    }

    /// Waits until the lock may be free or the next try is due.
    pub(crate) async fn until_released<K: GateKey, T>(&mut self, shared: &Shared<K, T>, key: &K) {
        let deadline = self.deadline(shared);
        let is_again = !self.pause.is_zero();
        self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let least = Instant::now() + self.pause / 2;
        let until = (Instant::now() + LONGEST_WAIT).min(deadline);
        let until = self.tell_at.take().map_or(until, |at| until.min(at));
        match &self.error {
            // A lost lock can be taken again at once.
            Some(error) if error.is_lost() && !is_again => return,
            Some(_) => {}
            // After the limit, the next try is due.
            None => {
                let released = shared.lock.released(key, jittered(self.pause));
                let _ = timeout_at(until, released).await;
                if !is_again {
                    return;
                }
            }
        }
        // A lock that fails at once, or is free only for moments, must not keep this busy.
        sleep_until(least.min(deadline)).await;
    }

    /// The deadline, counted from now if it is not set.
    pub(super) fn deadline<K, T>(&mut self, shared: &Shared<K, T>) -> Instant {
        let limit = shared.timeouts.lock;
        *self.deadline.get_or_insert_with(|| Instant::now() + limit)
    }

    fn timed_out<K: GateKey, T>(&mut self, shared: &Shared<K, T>, key: &K) -> GateError {
        // The last error says more than a timeout.
        if let Some(error) = self.error.take() {
            return LockError::new(key_label(key), error).into();
        }
        TimeoutError {
            key: Some(key_label(key).into()),
            stage: Stage::Lock,
            after: shared.timeouts.lock,
            waiting_for: self.holder.clone(),
            attempts_left: None,
        }
        .into()
    }
}

/// Returns a random time from half of `pause` to all of it, so that waiters do not try in step.
fn jittered(pause: Duration) -> Duration {
    // The standard library seeds each of these hashers differently, which is random enough for a pause.
    let chance = RandomState::new().hash_one(()) % 1024;
    pause.mul_f64(0.5 + chance as f64 / 2048.0)
}
