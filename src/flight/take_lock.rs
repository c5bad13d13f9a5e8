//! How a leader takes its lock: it tries, joins what others launched meanwhile, and waits, until it has the lock or an outcome.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::held_lock::HeldLock;
use super::launcher::BackendLauncher;
use super::leader::Leader;
use super::lock_wait::{LockWait, Tried};
use super::outcome::{Outcome, Step, lock_failed};
use super::waiting::{LONG_WAIT, Waiting};
use crate::error::{LaunchError, Stage};
use crate::key::GateKey;
use crate::ledger::{Known, LedgerReading, LedgerSession, Since, Verdict, this_process};
use crate::lock::{LedgerUpdate, SpawnLease};
use crate::trace;

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
