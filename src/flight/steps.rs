//! The steps of a flight, each with its deadline. A step that ends the flight returns the outcome as its error.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Flight;
use super::held_lock::HeldLock;
use super::launcher::BackendLauncher;
use super::leader::Leader;
use super::outcome::{Outcome, Step};
use super::shared::UnlockedLedger;
use super::waiting::{LONG_WAIT, Notice, Waiting};
use crate::budget::Refusal;
use crate::error::{
    AttemptsLeft, BoxError, BudgetExhausted, GateError, LaunchError, SharedError, Stage,
    TimeoutError,
};
use crate::key::GateKey;
use crate::lock::SpawnLockError;
use crate::util::{CatchPanic, lazy_timeout_with_notice};

impl<K: GateKey, T> Leader<K, T> {
    /// Verifies the lock, charges the attempt to this process's own count, and begins the launch, in one step. Returns false if
    /// one of these is not possible without waiting, or a ledger keeps the count. `is_for_caller`: a caller gets the permit.
    ///
    /// # Errors
    ///
    /// If the lock cannot be verified.
    pub(crate) fn verify_and_charge_now(
        &mut self,
        is_for_caller: bool,
        now: Instant,
    ) -> Result<bool, SpawnLockError> {
        let this = &mut **self;
        let policy = &this.shared.policy;
        let held = this.held.as_ref().filter(|_| !policy.is_in_ledger);
        let Some(verified) = held.and_then(HeldLock::verify_now) else {
            return Ok(false);
        };
        verified?;
        let has_looked = this.known.can_look;
        let charged = this
            .flight
            .charge_and_begin_launch(policy, has_looked, is_for_caller, now);
        if charged.is_none() {
            return Ok(false);
        }
        this.attempt = charged;
        this.is_launching = true;
        this.launch_began = Some(now);
        this.trace_launching();
        Ok(true)
    }

    /// Takes the lock if it keeps no ledger and needs no waiting.
    pub(crate) fn take_lock_now(&mut self) -> bool {
        let this = &mut **self;
        if this.refusal.is_some() || this.shared.policy.is_in_ledger {
            return false;
        }
        let lease = this.shared.lock.try_acquire_now(this.flight.key());
        this.held = lease.map(|lease| HeldLock::new(lease, None));
        this.held.is_some()
    }

    /// Reads the ledger without the lock. Launches by other processes from now on count as news.
    pub(crate) async fn read_ledger(&mut self) {
        let this = &mut **self;
        let Some(read) = this.shared.read_ledger(this.flight.key()).await else {
            return;
        };
        this.known
            .news_seen
            .get_or_insert(read.ledger.newest_news());
        this.read = Some(read);
    }

    /// Looks for a running backend, if there is a launcher to do it.
    pub(crate) async fn look(&mut self, launcher: Option<&dyn BackendLauncher<K, T>>) -> Step<T>
    where
        T: 'static,
    {
        let Some(launcher) = launcher else {
            return Ok(());
        };
        let this = &mut **self;
        this.known.can_look = true;
        this.flight.advance(Stage::Discover, None);
        let limit = this.shared.timeouts.discover;
        let key = this.flight.key();
        let on_wait = this.shared.on_wait.as_ref();
        let has_told = &mut this.has_told_look;
        let notice = on_wait.filter(|_| !*has_told).map(|on_wait| {
            let read = this.read.as_ref();
            let holder = read.and_then(|read| read.ledger.holder());
            let label = this.flight.label();
            let notice: Notice<'_> = Box::new(move || {
                *has_told = true;
                on_wait.tell(&Waiting {
                    key: label,
                    stage: Stage::Discover,
                    waited: LONG_WAIT,
                    left: limit - LONG_WAIT,
                    holder: holder.cloned(),
                });
            });
            notice
        });
        let error = match call(limit, notice, async || launcher.discover(key).await).await {
            Ok(Ok(None)) => {
                // If a launch was in progress during the look, the look does not count.
                let read = this.read.as_ref().map(|read| &read.ledger);
                this.has_found_none = true;
                this.known.holder_at_look = read
                    .filter(|ledger| ledger.holder().is_none())
                    .map(|ledger| ledger.fencing_token());
                return Ok(());
            }
            Ok(Ok(Some(found))) => return Err(Outcome::Discovered(found)),
            Ok(Err(error)) => LaunchError::Discover {
                key: this.flight.label(),
                source: SharedError::new(error),
            }
            .into(),
            Err(broken) => broken.into_error(&this.flight, Stage::Discover, limit, None),
        };
        Err(Outcome::Failed(error))
    }

    /// Ends a flight that checks a refusal if no attempt is left. The ledger decides if there is one; but the flight continues if a
    /// launch seems to be in progress, since it waits for that launch, or if the ledger must be written.
    pub(crate) async fn confirm_refusal(&mut self) -> Step<T> {
        let this = &mut **self;
        if this.refusal.take().is_none() {
            return Ok(());
        }
        let policy = &this.shared.policy;
        let has_looked = this.known.can_look;
        if !policy.is_in_ledger {
            let refusal = this.flight.confirm(policy, has_looked, Instant::now());
            return refusal.map_or(Ok(()), |refusal| Err(self.refused(refusal)));
        }
        if has_looked {
            // The backend's end may have been reported during the look.
            self.read_ledger().await;
        }
        let Some(UnlockedLedger { ledger, .. }) = &self.read else {
            return Ok(());
        };
        let now = self.shared.clock.now();
        match ledger.usage(&self.shared.policy, now).retry_after {
            Some(retry_after) if !ledger.needs_holder(has_looked, now) => {
                let reason = ledger.exhaustion_reason(&self.shared.policy);
                Err(self.refused(Refusal {
                    retry_after,
                    reason: Some(reason),
                    first: false,
                }))
            }
            _ => Ok(()),
        }
    }

    /// Charges the attempt and writes the charge. `Err` if no attempt is left; the inner `Err` if the write failed.
    pub(crate) async fn charge(&mut self) -> Step<T, Result<(), SpawnLockError>> {
        let has_looked = self.known.can_look;
        let this = &mut **self;
        let Some(session) = this.held.as_mut().and_then(|held| held.session.as_mut()) else {
            return match self.charge_here(has_looked) {
                Ok(()) => Ok(Ok(())),
                Err(refusal) => Err(self.refused(refusal)),
            };
        };
        let mut charged = session.charge(has_looked, this.shared.clock.now());
        if charged.is_err() {
            // A backend's end may have been reported during the look.
            if let Some(newest) = this.shared.read_ledger(this.flight.key()).await {
                session.note_backend_end(&newest.ledger);
                charged = session.charge(has_looked, this.shared.clock.now());
            }
        }
        let attempt = charged.map_err(|refusal| self.refused(refusal))?;
        let this = &mut **self;
        this.attempt = Some(attempt);
        this.flight.note_charged(attempt.number);
        Ok(match &mut this.held {
            Some(held) => held.write_ledger().await,
            None => Ok(()),
        })
    }

    /// Charges the attempt to this process's own count.
    fn charge_here(&mut self, has_looked: bool) -> Result<(), Refusal> {
        let this = &mut **self;
        let policy = &this.shared.policy;
        let attempt = this.flight.charge(policy, has_looked, Instant::now())?;
        this.attempt = Some(attempt);
        Ok(())
    }

    /// Checks that the lock is still held, as the last step before the launch.
    pub(crate) async fn verify(&mut self) -> Result<(), SpawnLockError> {
        match &self.held {
            Some(held) => held.verify().await,
            None => Ok(()),
        }
    }

    pub(crate) fn refused(&self, refusal: Refusal) -> Outcome<T> {
        Outcome::Failed(BudgetExhausted::new(self.flight.label(), refusal).into())
    }
}

/// Runs a call of the launcher with a limit, and catches its panic. Calls `notice` if it takes long.
pub(crate) async fn call<V>(
    limit: Duration,
    notice: Option<Notice<'_>>,
    call: impl AsyncFnOnce() -> Result<V, BoxError>,
) -> Result<Result<V, BoxError>, NoAnswer> {
    // A launcher can panic before it returns a future, too.
    let called = pin!(CatchPanic::new(async { call().await }));
    match lazy_timeout_with_notice(limit, LONG_WAIT, notice, called).await {
        Some(Ok(returned)) => Ok(returned),
        Some(Err(message)) => Err(NoAnswer::Panicked(message)),
        None => Err(NoAnswer::TimedOut),
    }
}

/// Why a call of the launcher did not return.
pub(crate) enum NoAnswer {
    Panicked(String),
    TimedOut,
}

impl NoAnswer {
    /// `left`: the attempts left, if the call was charged.
    pub(crate) fn into_error<K: GateKey, T>(
        self,
        flight: &Flight<K, T>,
        stage: Stage,
        limit: Duration,
        left: Option<AttemptsLeft>,
    ) -> GateError {
        let key: Arc<str> = flight.label();
        match self {
            Self::Panicked(message) => LaunchError::Panicked {
                key,
                message: message.into(),
                left,
            }
            .into(),
            Self::TimedOut => TimeoutError {
                key: Some(key),
                stage,
                after: limit,
                waiting_for: None,
                attempts_left: left,
            }
            .into(),
        }
    }
}
