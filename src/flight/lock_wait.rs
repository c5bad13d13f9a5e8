//! Taking the spawn lock: try, wait until it may be free, see what became of it, try again, until a deadline. No thread is
//! blocked meanwhile.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::held_lock::HeldLock;
use super::launcher::BackendLauncher;
use super::leader::Leader;
use super::outcome::{Outcome, Step, lock_failed};
use super::shared::Shared;
use crate::error::{GateError, LaunchError, LockError, Stage, TimeoutError};
use crate::key::{GateKey, key_label};
use crate::ledger::{LedgerReading, LedgerSession, Since, Verdict};
use crate::lock::{LedgerUpdate, LockHolder, LockRequest, SpawnLease, SpawnLockError, TryAcquire};

const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two tries at a lock that cannot tell when it is free.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// A waiter looks again within this time whatever the lock tells.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How many times in one flight the lock is taken anew after it was lost: its file was deleted, say. Whoever does that once may
/// be a cleaner; whoever does it all the time is not waited out.
const MAX_LOSSES: u32 = 5;

/// How long a single try may overrun the deadline. One takes microseconds, unless the file system hangs.
const LONGEST_TRY: Duration = Duration::from_secs(1);

/// What the ledger made of a lock that was just taken.
type Opened = Arc<Mutex<Option<(LedgerSession, Verdict)>>>;

impl<K: GateKey, T: 'static> Leader<K, T> {
    /// Takes the lock, and charges the attempt in the same step if the ledger allows that.
    ///
    /// A launch by another process that ends meanwhile is joined, or its failure shared, as soon as the ledger shows it: then
    /// nobody needs the lock, and all who wait for it go on at once.
    ///
    /// If the future is dropped, a try that is under way finishes by itself, takes its charge back and releases the lock.
    pub(crate) async fn take_lock(
        &mut self,
        wait: &mut LockWait,
        launcher: Option<&dyn BackendLauncher<K, T>>,
    ) -> Step<T> {
        loop {
            self.flight.advance(Stage::Lock);
            wait.holder
                .iter()
                .cloned()
                .for_each(|holder| self.flight.note_holder(holder));
            let (update, opened) = self.update();
            let tried = wait.try_once(&self.shared, self.flight.key(), update).await;
            match tried.map_err(lock_failed)? {
                Tried::Taken(lease) => return self.took(lease, &opened),
                Tried::Failed => {}
                Tried::Held(ledger) => {
                    // Not every holder leaves a trace in the ledger.
                    self.known.looked_at = None;
                    self.join_newest(&ledger, launcher).await?;
                }
            }
            self.flight.advance(Stage::Lock);
            wait.holder
                .iter()
                .cloned()
                .for_each(|holder| self.flight.note_holder(holder));
            wait.until_released(&self.shared, self.flight.key()).await;
            if let Some(read) = self.shared.read_ledger(self.flight.key()).await {
                let ledger = read.ledger.clone();
                self.read = Some(read);
                self.join_newest(&LedgerReading::Found(ledger), launcher)
                    .await?;
            }
        }
    }

    /// The decision on the ledger, which travels to where the lock is taken.
    fn update(&self) -> (LedgerUpdate, Opened) {
        let opened = Opened::default();
        if !self.shared.policy.is_in_ledger {
            return (LedgerUpdate::none(), opened);
        }
        let slot = Arc::clone(&opened);
        let (known, policy) = (self.known, self.shared.policy);
        let clock = Arc::clone(&self.shared.clock);
        let update = LedgerUpdate::new(move |reading, fencing_token| {
            let now = clock.now();
            let (mut session, verdict) =
                LedgerSession::open(reading, fencing_token, known, &policy, now)?;
            let record = session.record_for(&verdict, now);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((session, verdict));
            record
        });
        (update, opened)
    }

    fn took(&mut self, lease: Box<dyn SpawnLease>, opened: &Opened) -> Step<T> {
        let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (session, verdict) = opened.unzip();
        let this = &mut **self;
        this.held = Some(HeldLock::new(lease, session.map(Box::new)));
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

    /// Joins what another process launched since this leader first read the ledger, or shares its failure.
    async fn join_newest(
        &mut self,
        ledger: &LedgerReading,
        launcher: Option<&dyn BackendLauncher<K, T>>,
    ) -> Step<T> {
        let LedgerReading::Found(ledger) = ledger else {
            return Ok(());
        };
        let newest = ledger.newest_news();
        self.known.ended.get_or_insert(newest);
        match ledger.since_seen(self.known.ended) {
            Since::Nothing => Ok(()),
            Since::Failed { launch, message } => Err(self.failed_elsewhere(launch, &message)),
            Since::Launched => {
                // If it is gone already, this one is no news the next time.
                self.known.ended = Some(newest);
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

/// What came of one try.
pub(crate) enum Tried {
    Taken(Box<dyn SpawnLease>),
    /// Somebody holds it. The ledger is as it was right before.
    Held(LedgerReading),
    /// It can be tried again.
    Failed,
}

/// The wait for a lock, with one deadline also when the lock has to be taken again.
#[derive(Debug, Default)]
pub(crate) struct LockWait {
    deadline: Option<Instant>,
    losses: u32,
    holder: Option<Arc<LockHolder>>,
    /// The lock was found held.
    is_waiting: bool,
    pause: Duration,
    /// What went wrong with the last try, if it did.
    error: Option<SpawnLockError>,
}

impl LockWait {
    /// Tries once. `Err` ends the wait.
    pub(crate) async fn try_once<K: GateKey, T>(
        &mut self,
        shared: &Shared<K, T>,
        key: &K,
        update: LedgerUpdate,
    ) -> Result<Tried, GateError> {
        let deadline = self.deadline(shared);
        let mut request = LockRequest::new(update, deadline);
        request.is_waiting = self.is_waiting;
        let tried = timeout_at(
            deadline + LONGEST_TRY,
            shared.lock.try_acquire(key, request),
        )
        .await;
        self.error = None;
        let tried = match tried {
            Err(_) => return Err(self.timed_out(shared, key)),
            Ok(Ok(TryAcquire::Acquired(lease))) => return Ok(Tried::Taken(lease)),
            Ok(Ok(TryAcquire::Held { lock, ledger })) => {
                let holder = match &ledger {
                    LedgerReading::Found(ledger) => ledger.holder(),
                    _ => None,
                };
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
        if Instant::now() >= deadline {
            return Err(self.timed_out(shared, key));
        }
        Ok(tried)
    }

    /// Notes an error of the lock. `Err` if it ends the wait.
    pub(crate) fn note_error<K: GateKey>(
        &mut self,
        error: SpawnLockError,
        key: &K,
    ) -> Result<(), GateError> {
        self.losses += u32::from(error.is_lost());
        let is_over = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        if is_over || self.losses > MAX_LOSSES || !error.retry_helps() {
            return Err(LockError::new(key_label(key), error).into());
        }
        self.error = Some(error);
        Ok(())
    }

    /// Lets the wait have begun at `began`, unless it has a deadline.
    pub(crate) fn began_at<K, T>(&mut self, began: Instant, shared: &Shared<K, T>) {
        self.deadline.get_or_insert(began + shared.timeouts.lock);
    }

    /// Waits until the lock may be free, or it is time to look again.
    pub(crate) async fn until_released<K: GateKey, T>(&mut self, shared: &Shared<K, T>, key: &K) {
        let deadline = self.deadline(shared);
        let is_again = !self.pause.is_zero();
        self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let least = Instant::now() + self.pause / 2;
        let until = (Instant::now() + LONGEST_WAIT).min(deadline);
        match &self.error {
            // It is there to be taken at once.
            Some(error) if error.is_lost() && !is_again => return,
            Some(_) => {}
            // Over in any case: then it is time for another look.
            None => {
                let released = shared.lock.released(key, jittered(self.pause));
                let _ = timeout_at(until, released).await;
                if !is_again {
                    return;
                }
            }
        }
        // What fails at once, or is free for moments only, must not keep this busy.
        sleep_until(least.min(deadline)).await;
    }

    /// Set when it is first needed: most locks are free.
    fn deadline<K, T>(&mut self, shared: &Shared<K, T>) -> Instant {
        let limit = shared.timeouts.lock;
        *self.deadline.get_or_insert_with(|| Instant::now() + limit)
    }

    fn timed_out<K: GateKey, T>(&mut self, shared: &Shared<K, T>, key: &K) -> GateError {
        // What stood in the way says more than that it took too long.
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

/// Returns between half of `pause` and all of it, so that waiters do not try in step.
fn jittered(pause: Duration) -> Duration {
    // The standard library seeds each of these hashers differently; that is all the chance a pause needs.
    let chance = RandomState::new().hash_one(()) % 1024;
    pause.mul_f64(0.5 + chance as f64 / 2048.0)
}
