//! Taking the spawn lock: try, wait until it may be free, try again, until a deadline. No thread is blocked meanwhile.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::held_lock::HeldLock;
use super::launcher::BackendLauncher;
use super::leader::Leader;
use super::outcome::{Outcome, Step, lock_failed};
use super::shared::Shared;
use super::waiting::{LONG_WAIT, Waiting};
use crate::error::{GateError, LaunchError, LockError, Stage, TimeoutError};
use crate::key::{GateKey, key_label};
use crate::ledger::{
    Known, LedgerHolder, LedgerReading, LedgerSession, Since, Verdict, this_process,
};
use crate::lock::{LedgerUpdate, LockHolder, LockRequest, SpawnLease, SpawnLockError, TryAcquire};
use crate::trace;

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

/// Carries the session and the verdict back from where the lock is taken.
type Opened = Arc<Mutex<Option<(Box<LedgerSession>, Verdict)>>>;

impl<K: GateKey, T: 'static> Leader<K, T> {
    /// Takes the lock, and charges the attempt in the same step if the ledger allows that.
    ///
    /// If a launch by another process ends meanwhile, this joins it or shares its failure as soon as the ledger shows it, which a
    /// try while waiting reads first. So waiters continue without taking the lock one after the other.
    ///
    /// If the future is dropped, a try in progress finishes by itself, takes its charge back and releases the lock.
    pub(crate) async fn take_lock(
        &mut self,
        wait: &mut LockWait,
        launcher: Option<&dyn BackendLauncher<K, T>>,
    ) -> Step<T> {
        // The time of the newest try.
        let mut at = Instant::now();
        let began = *self.lock_wait_began.get_or_insert(at);
        wait.began_at(at, &self.shared);
        let mut wants_lock = false;
        loop {
            self.show_wait(wait);
            let (update, opened) = self.update();
            let known = match wants_lock {
                true => Known::default(),
                false => self.known,
            };
            let key = self.flight.key();
            let tried = wait.try_once(&self.shared, key, update, known).await;
            let tried = tried.map_err(lock_failed)?;
            let is_answered = matches!(tried, Tried::Answered(_));
            match tried {
                Tried::Taken(lease) => return self.took(lease, opened),
                Tried::Failed => {}
                Tried::Answered(ledger) => {
                    self.join_newest(ledger, at, launcher).await?;
                    // What was launched is gone already. However often others launch, the next try wants the lock.
                    wants_lock = true;
                }
                Tried::Held(ledger) => {
                    self.join_newest(ledger, at, launcher).await?;
                    wants_lock = false;
                    // A holder may leave no trace in the ledger.
                    self.known.holder_at_look = None;
                }
            }
            let key = self.flight.key();
            wait.check_deadline(&self.shared, key)
                .map_err(lock_failed)?;
            // An answer says nothing about the lock, which may be free.
            if !is_answered {
                self.show_wait(wait);
                self.tell_wait(wait, began);
                wait.until_released(&self.shared, self.flight.key()).await;
            }
            at = Instant::now();
        }
    }

    /// The decision on the ledger, as an update for the lock to apply; without a ledger, there is none.
    fn update(&self) -> (LedgerUpdate, Option<Opened>) {
        if !self.shared.policy.is_in_ledger {
            return (LedgerUpdate::none(), None);
        }
        let opened = Opened::default();
        let slot = Arc::clone(&opened);
        let (known, policy) = (self.known, self.shared.policy);
        let clock = Arc::clone(&self.shared.clock);
        let update = LedgerUpdate::new(move |reading, fencing_token| {
            let holder = this_process(clock.now());
            let (session, verdict) =
                LedgerSession::open(reading, fencing_token, known, &policy, holder)?;
            let record = session.record_for(&verdict);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((Box::new(session), verdict));
            record
        });
        (update, Some(opened))
    }

    /// Shows that the flight waits for the lock, and for whom.
    fn show_wait(&self, wait: &LockWait) {
        self.flight.advance(Stage::Lock, wait.holder.clone());
    }

    /// Shows a wait that takes long, once.
    fn tell_wait(&self, wait: &mut LockWait, began: Instant) {
        let on_wait = self.shared.on_wait.as_ref();
        if wait.is_told || (on_wait.is_none() && !cfg!(feature = "tracing")) {
            return;
        }
        let now = Instant::now();
        let waited = now.saturating_duration_since(began);
        if waited < LONG_WAIT {
            wait.tell_at = Some(began + LONG_WAIT);
            return;
        }
        wait.is_told = true;
        let key = || self.flight.label();
        trace::waiting_for_lock(key, wait.holder.as_deref(), waited);
        if let Some(on_wait) = on_wait {
            on_wait.tell(&Waiting {
                key: key(),
                stage: Stage::Lock,
                waited,
                left: wait.deadline(&self.shared).saturating_duration_since(now),
                holder: wait.ledger_holder.as_deref().cloned(),
            });
        }
    }

    fn took(&mut self, lease: Box<dyn SpawnLease>, opened: Option<Opened>) -> Step<T> {
        let opened = opened.and_then(|opened| {
            let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.take()
        });
        let (session, verdict) = opened.unzip();
        let this = &mut **self;
        this.held = Some(HeldLock::new(lease, session));
        this.end_lock_wait();
        match verdict {
            None | Some(Verdict::Look) => Ok(()),
            Some(Verdict::Charged(attempt)) => {
                this.attempt = Some(attempt);
                this.flight.note_charged(attempt.number);
                Ok(())
            }
            Some(Verdict::Refused(refusal)) => Err(self.refused(refusal)),
            Some(Verdict::FailedSince { launch, message }) => {
                Err(self.failed_elsewhere(launch, &message))
            }
        }
    }

    /// Joins what another process launched since this leader first read the ledger, or shares its failure. `at`: the time right
    /// before this read.
    async fn join_newest(
        &mut self,
        reading: LedgerReading,
        at: Instant,
        launcher: Option<&dyn BackendLauncher<K, T>>,
    ) -> Step<T> {
        let Some(read) = self.shared.unlocked(reading, at) else {
            return Ok(());
        };
        let newest = read.ledger.newest_news();
        let seen = *self.known.news_seen.get_or_insert(newest);
        let since = read.ledger.since_seen(Some(seen));
        self.read = Some(read);
        match since {
            Since::Nothing => Ok(()),
            Since::Failed { launch, message } => Err(self.failed_elsewhere(launch, &message)),
            Since::Launched => {
                // The backend is gone already: do not look for the same launch again.
                self.known.news_seen = Some(newest);
                self.look(launcher).await
            }
        }
    }

    fn failed_elsewhere(&self, launch: u64, message: &str) -> Outcome<T> {
        let error = LaunchError::FailedElsewhere {
            key: self.flight.label(),
            launch,
            message: message.into(),
        };
        Outcome::Failed(error.into())
    }
}

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
    holder: Option<Arc<LockHolder>>,
    /// The same, as the ledger has it. Boxed, to keep a flight's future small.
    ledger_holder: Option<Box<LedgerHolder>>,
    /// The wait was shown, or is to be at this time.
    is_told: bool,
    tell_at: Option<Instant>,
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

    /// The deadline, set when it is first needed, since most locks are free.
    fn deadline<K, T>(&mut self, shared: &Shared<K, T>) -> Instant {
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
