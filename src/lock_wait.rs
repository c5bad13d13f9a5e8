//! Waiting for the spawn lock: try, wait until it may be free, try again, until a deadline. No thread is blocked meanwhile.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::clock::ClockReading;
use crate::error::{GateError, LockError, Stage, TimeoutError};
use crate::inner::Inner;
use crate::key::{GateKey, key_label};
use crate::lock::{LockHolder, SpawnLease, SpawnLockError};

const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two tries at a lock that cannot tell when it is free.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// A waiter tries again within this time whatever the lock tells, and looks again who holds it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How many times in one flight the lock is taken anew after its file was deleted or replaced. Whoever does that once may
/// be a cleaner; whoever does it all the time is not waited out.
const MAX_SWAPS: u32 = 5;

/// How long a single try may overrun the deadline. One takes microseconds, unless the file system hangs.
const LONGEST_TRY: Duration = Duration::from_secs(1);

/// The wait for one flight's spawn lock, with one deadline also when the lock has to be taken again.
#[derive(Debug)]
pub(crate) struct LockWait {
    /// Set when it is first needed: most locks are free.
    deadline: Option<Instant>,
    swaps: u32,
    holder: Option<Arc<LockHolder>>,
    /// When this wait began, by the clock that all share; `None` without a ledger.
    began: Option<ClockReading>,
    /// Launches with a higher number ended while this waited; `None` if it did not have to wait, or that is not known.
    pub(crate) ended_before: Option<u64>,
}

impl LockWait {
    pub(crate) fn new<K, T>(inner: &Inner<K, T>) -> Self {
        Self {
            deadline: None,
            swaps: 0,
            holder: None,
            began: inner.policy.is_in_ledger.then(|| inner.clock.now()),
            ended_before: None,
        }
    }

    /// Sets the deadline, unless it is set, as if the wait had begun `age` ago.
    pub(crate) fn began_before<K, T>(&mut self, age: Duration, inner: &Inner<K, T>) {
        let left = inner.timeouts.lock.saturating_sub(age);
        self.deadline.get_or_insert_with(|| Instant::now() + left);
    }

    /// Counts one more file swap. Returns false when there were too many.
    pub(crate) fn may_retry_after(&mut self, error: &SpawnLockError) -> bool {
        let swapped = matches!(error, SpawnLockError::DeletedOrRecreated { .. });
        self.swaps += u32::from(swapped);
        swapped && self.swaps <= MAX_SWAPS
    }

    /// Takes the lock. The lease's identity was verified after locking. `note_holder` hears whom it waits for.
    ///
    /// If the future is dropped, a try that is under way finishes by itself and lets go of the lock again.
    pub(crate) async fn take<K: GateKey, T>(
        &mut self,
        inner: &Inner<K, T>,
        key: &K,
        note_holder: impl Fn(Arc<LockHolder>),
    ) -> Result<Box<dyn SpawnLease>, GateError> {
        let mut pause = FIRST_PAUSE;
        let mut peek_at = None;
        let mut is_again = false;
        loop {
            let at_once = inner.lock.try_acquire_now(key);
            if let Some(Ok(lease)) = at_once {
                return Ok(lease);
            }
            let limit = inner.timeouts.lock;
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + limit);
            let tried = match at_once {
                Some(tried) => Ok(tried),
                None => timeout_at(deadline + LONGEST_TRY, inner.lock.try_acquire(key)).await,
            };
            match tried {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(SpawnLockError::AlreadyLocked { path })) => {
                    if peek_at.is_none_or(|at| Instant::now() >= at) {
                        self.peek(inner, key, path).await;
                        self.holder.iter().cloned().for_each(&note_holder);
                        peek_at = Some(Instant::now() + LONGEST_WAIT);
                    }
                }
                Ok(Err(error)) => {
                    if !self.may_retry_after(&error) {
                        return Err(LockError::new(key_label(key), error).into());
                    }
                }
                Err(_) => return Err(self.timed_out(inner, key)),
            }
            if Instant::now() >= deadline {
                return Err(self.timed_out(inner, key));
            }
            let least = Instant::now() + pause / 2;
            let until = (Instant::now() + LONGEST_WAIT).min(deadline);
            // Over in any case: then it is time for another try.
            let _ = timeout_at(until, inner.lock.released(key, jittered(pause))).await;
            if is_again {
                // A lock that says it is free and is not, or is free for moments only, must not keep this busy.
                sleep_until(least.min(deadline)).await;
            }
            is_again = true;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Reads in the ledger who holds the lock and, the first time, which launch was the last to end before this wait.
    async fn peek<K: GateKey, T>(&mut self, inner: &Inner<K, T>, key: &K, path: PathBuf) {
        // Whatever there is to know, it is only for people and to save an attempt.
        let (Some(ledger), Some(began)) = (inner.peek(key).await, self.began) else {
            return;
        };
        let holder = ledger.holder();
        self.holder = holder.map(|holder| Arc::new(LockHolder::new(path, holder)));
        // One that ended since this wait began, did so while this waited, also if it was before this look.
        let ended_before = ledger.last_outcome().map_or(0, |last| {
            last.launch - u64::from(last.at.is_not_before(began) && last.launch > 0)
        });
        self.ended_before.get_or_insert(ended_before);
    }

    fn timed_out<K: GateKey, T>(&self, inner: &Inner<K, T>, key: &K) -> GateError {
        TimeoutError {
            key: Some(key_label(key).into()),
            stage: Stage::Lock,
            after: inner.timeouts.lock,
            waiting_for: self.holder.clone(),
        }
        .into()
    }
}

/// Returns between half of `pause` and all of it, so that waiters do not try in step.
fn jittered(pause: Duration) -> Duration {
    // The standard library seeds each of these hashers differently; that is all the chance a pause needs.
    let chance = RandomState::new().hash_one(()) % 1024;
    pause.mul_f64(0.5 + chance as f64 / 2048.0)
}
