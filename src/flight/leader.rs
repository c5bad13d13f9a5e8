//! The leader: the only owner of its flight, its attempt and its held lock.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::entry::{Begun, Flight};
use super::held_lock::HeldLock;
use super::outcome::{Ending, Outcome, Step};
use super::shared::{Shared, UnlockedLedger};
use crate::budget::{Attempt, BudgetUpdate, ExhaustionReason, Refusal, Settlement};
use crate::error::{
    AttemptsLeft, BoxError, ErrorType, GateError, LaunchError, NotStarted, SharedError, Stage,
};
use crate::key::GateKey;
use crate::ledger::{Known, LedgerSession, picture};
use crate::lock::SpawnLockError;
use crate::statistics::{LaunchEnd, LockWaitEnd};
use crate::trace::{self, LaunchSpan};
use crate::util::caught;

/// The leader of a flight. It is passed from step to step and becomes a [`LaunchPermit`](super::permit::LaunchPermit) once it
/// may launch. Dropping it ends the flight: as abandoned if it may launch; otherwise a follower takes over.
// Boxed, since it is moved often.
pub(crate) struct Leader<K: GateKey, T>(Box<Parts<K, T>>);

pub(crate) struct Parts<K: GateKey, T> {
    pub(crate) shared: Arc<Shared<K, T>>,
    pub(crate) flight: Flight<K, T>,
    /// When the flight began.
    pub(crate) began: Instant,
    /// The refusal that this flight must check first.
    pub(crate) refusal: Option<Refusal>,
    /// The newest read of the ledger without the lock.
    pub(crate) read: Option<UnlockedLedger>,
    pub(crate) known: Known,
    pub(crate) held: Option<HeldLock>,
    /// The charged attempt.
    pub(crate) attempt: Option<Attempt>,
    /// When the ledger was last written, right before the lock was released.
    settled_at: Option<Instant>,
    /// The look for a running backend found none.
    pub(crate) has_found_none: bool,
    /// From now on, something may have been started.
    pub(super) is_launching: bool,
    /// When the launch began, for statistics. Not called off by a launcher that started nothing.
    pub(super) launch_began: Option<Instant>,
    /// When the wait for the lock began, until it is over.
    pub(super) lock_wait_began: Option<Instant>,
    /// A look that takes long was shown.
    pub(super) has_told_look: bool,
    pub(crate) span: LaunchSpan,
    /// The loss of the held lock was counted.
    is_loss_counted: bool,
    has_ended: bool,
}

impl<K: GateKey, T> Leader<K, T> {
    pub(crate) fn new(shared: Arc<Shared<K, T>>, begun: Begun<K, T>) -> Self {
        let mut leader = Self(Box::new(Parts {
            shared,
            flight: begun.flight,
            began: begun.at,
            refusal: begun.refusal,
            read: None,
            known: Known::default(),
            held: None,
            attempt: None,
            settled_at: None,
            has_found_none: false,
            is_launching: false,
            launch_began: None,
            lock_wait_began: None,
            has_told_look: false,
            span: LaunchSpan::none(),
            is_loss_counted: false,
            has_ended: false,
        }));
        // Once the leader owns its flight: a subscriber is user code.
        leader.span = LaunchSpan::new(|| leader.flight.label());
        leader
    }

    /// The flight may launch from now on, unless an operator has ended it.
    pub(crate) fn begin_launch(&mut self) -> Step<T> {
        match self.flight.begin_launch() {
            Some(error) => Err(Outcome::Failed(error)),
            None => {
                self.is_launching = true;
                self.launch_began = Some(Instant::now());
                self.trace_launching();
                Ok(())
            }
        }
    }

    /// Takes [`begin_launch`](Self::begin_launch) back: nothing was launched.
    pub(crate) fn call_off_launch(&mut self) {
        self.is_launching = false;
        self.launch_began = None;
        self.flight.advance(Stage::Lock, None);
    }

    /// Takes back a charge in the ledger while the lock is held, if it can be written: a shortage before the launch is not the
    /// key's fault. The lock is then to be let go of.
    pub(crate) async fn take_back_charge(&mut self) {
        let this = &mut **self;
        let Some(held) = &mut this.held else {
            return;
        };
        if this.attempt.is_some() && held.refund(this.shared.clock.now()).await {
            this.attempt = None;
        }
    }

    /// Drops a lock that was lost before the launch. The charge is taken back: here, or once the ledger is read again.
    pub(crate) fn let_go(&mut self) {
        let this = &mut **self;
        let Some(held) = this.held.take() else {
            return;
        };
        this.is_loss_counted = false;
        // Another holder may have had the lock since, perhaps with another ledger.
        this.known.holder_at_look = None;
        if this.attempt.take().is_some() {
            match held.session {
                Some(_) => this.known.lost_charge = Some(held.fencing_token()),
                None => this.flight.refund(),
            }
        }
    }

    /// The error for a failed launch. If the launcher says that nothing was started, the launch is called off.
    pub(crate) fn launch_failed(&mut self, error: impl Into<BoxError>) -> GateError {
        let error = match error.into().downcast::<NotStarted>() {
            Ok(not_started) => {
                let began = self.launch_began;
                self.call_off_launch();
                self.launch_began = began;
                return LaunchError::NotStarted {
                    key: self.flight.label(),
                    retry_helps: not_started.retry_helps,
                    source: SharedError::new(not_started.source),
                }
                .into();
            }
            Err(error) => error,
        };
        LaunchError::Failed {
            key: self.flight.label(),
            attempt: self.attempt.map_or(0, |attempt| attempt.number),
            left: self.attempts_left(),
            source: SharedError::new(error),
        }
        .into()
    }

    /// The attempts left, for an error.
    pub(crate) fn attempts_left(&self) -> AttemptsLeft {
        let session = self.held.as_ref().and_then(|held| held.session.as_ref());
        let usage = match session {
            Some(session) => session.usage(self.shared.clock.now()),
            None => self.flight.usage(&self.shared.policy, Instant::now()),
        };
        AttemptsLeft::new(usage.remaining, usage.retry_after)
    }

    /// Settles attempt and ledger, releases the lock, and publishes the outcome, in this order: a caller that gets the outcome
    /// finds the lock free and the ledger settled. Returns the outcome that all callers get.
    ///
    /// All of this happens at once if nothing is to be waited for.
    pub(crate) fn end(
        mut self,
        outcome: Outcome<T>,
    ) -> Ending<T, impl Future<Output = Outcome<T>> + use<K, T>>
    where
        T: Clone,
    {
        match self.settle_now() {
            Some(Ok(())) => Ending::Ended(Some(self.publish(outcome))),
            Some(Err(error)) => {
                let outcome = self.lost(outcome, error);
                Ending::Ended(Some(self.publish(outcome)))
            }
            // Boxed, to keep the futures of callers small.
            None => Ending::Settling(Box::pin(self.settle_and_publish(outcome))),
        }
    }

    /// Gives the permit back in a `Drop`, where nothing can be awaited. A charge in a ledger stays.
    pub(crate) fn end_in_drop(mut self)
    where
        T: Clone,
    {
        // First, so that this leader's own drop refunds if the lease panics.
        self.call_off_launch();
        drop(self.held.take());
        self.publish(Outcome::LeaderGone);
    }

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        match &self.held {
            Some(held) => held.settle_now(),
            None => Some(Ok(())),
        }
    }

    async fn settle_and_publish(mut self, outcome: Outcome<T>) -> Outcome<T>
    where
        T: Clone,
    {
        let mut settlement = self.settlement(&outcome);
        let mut failure = match &outcome {
            Outcome::Failed(error) if self.is_launching => Some(error.message()),
            _ => None,
        };
        if settlement == Settlement::Success && !self.flight.is_in_progress() {
            settlement = Settlement::Failed;
            failure = Some(self.ended_by_operator().message());
        }
        let now = self.shared.clock.now();
        // Before the lock is free: a reset that comes from then on knows better.
        self.settled_at = Some(Instant::now());
        if let (Outcome::Discovered(_), Some(session)) = (&outcome, self.session_mut()) {
            session.note_found();
        }
        let settled = match &mut self.held {
            Some(held) => held.settle(settlement, failure.as_deref(), now).await,
            None => Ok(()),
        };
        let is_refund = settlement == Settlement::Refund && self.attempt.is_some();
        let settled = match (settled, &mut self.held) {
            // Nothing was launched, so the charge must not stay only because the lock cannot be verified.
            (Err(error), Some(held)) if !error.is_lost() && is_refund => held.write_ledger().await,
            (settled, _) => settled,
        };
        let lost = match (settled, &self.held) {
            // The last write failed, so the ledger has a charge without an outcome, which counts as failed. If the lock is still
            // held, the launch is a success all the same.
            (Err(error), Some(held)) if !error.is_lost() => held.verify().await,
            (settled, _) => settled,
        };
        let outcome = match lost {
            Ok(()) => outcome,
            Err(error) => self.lost(outcome, error),
        };
        self.publish(outcome)
    }

    /// Turns a success into a failure, since the lock was lost.
    fn lost(&mut self, outcome: Outcome<T>, error: SpawnLockError) -> Outcome<T> {
        if error.is_lost() {
            self.count_lock_lost();
        }
        let Outcome::Launched(_) = outcome else {
            return outcome;
        };
        // The success was none, so the budget is that before it.
        if let Some(session) = self.session_mut() {
            session.unsettle();
        }
        let error = self.lock_lost(error);
        let now = self.shared.clock.now();
        if let Some(session) = self.session_mut() {
            session.settle(Settlement::Failed, Some(&error.message()), now);
        }
        Outcome::Failed(error)
    }

    /// Counts the loss of the held lock, once.
    pub(crate) fn count_lock_lost(&mut self) {
        if !std::mem::replace(&mut self.is_loss_counted, true) {
            self.shared.recorder.lock_lost();
            let token = || self.held.as_ref().map_or(0, HeldLock::fencing_token);
            trace::lock_lost(|| self.flight.label(), token);
        }
    }

    /// The error for a launch whose lock was lost or cannot be verified.
    pub(crate) fn lock_lost(&self, error: SpawnLockError) -> GateError {
        LaunchError::LockLost {
            key: self.flight.label(),
            source: Arc::new(error),
            left: self.attempts_left(),
        }
        .into()
    }

    /// Releases the lock, ends the flight, and returns the outcome that all callers get.
    fn publish(mut self, outcome: Outcome<T>) -> Outcome<T>
    where
        T: Clone,
    {
        let update = self.budget_update(&outcome);
        if matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorType::LockLost) {
            self.count_lock_lost();
        }
        // Cloning the value and dropping the lease are user code: if they panic, this leader's drop still ends the flight.
        let shared = outcome.clone();
        // Released before the followers wake.
        drop(self.held.take());
        self.has_ended = true;
        let (policy, has_found_none) = (&self.shared.policy, self.has_found_none);
        let record = |outcome: &Outcome<T>| self.record(outcome);
        if self
            .flight
            .end(policy, shared, has_found_none, update, record)
        {
            self.trace_end(&outcome);
            return outcome;
        }
        let outcome = Outcome::Failed(self.ended_by_operator());
        self.record(&outcome);
        self.trace_end(&outcome);
        outcome
    }

    fn session_mut(&mut self) -> Option<&mut LedgerSession> {
        self.held.as_mut()?.session.as_deref_mut()
    }

    fn settlement(&self, outcome: &Outcome<T>) -> Settlement {
        match outcome {
            Outcome::Launched(_) => Settlement::Success,
            Outcome::Failed(_) if self.is_launching => Settlement::Failed,
            _ => Settlement::Refund,
        }
    }

    /// Returns the update for the local budget.
    fn budget_update(&self, outcome: &Outcome<T>) -> BudgetUpdate {
        let Shared { policy, clock, .. } = &*self.shared;
        let now = Instant::now;
        let session = self.held.as_ref().and_then(|held| held.session.as_ref());
        if let Some(session) = session {
            let mut picture = session.picture(clock.now(), now().into_std());
            if let Some(settled_at) = self.settled_at {
                picture.at = settled_at.into_std();
            }
            return BudgetUpdate::Picture(Box::new(picture));
        }
        if policy.is_in_ledger {
            return match &self.read {
                Some(read) => {
                    let mut picture = picture(&read.ledger, policy, clock.now(), now().into_std());
                    picture.at = read.at.into_std();
                    BudgetUpdate::Picture(Box::new(picture))
                }
                None => BudgetUpdate::Keep,
            };
        }
        let reason = match outcome {
            Outcome::Failed(error) if self.is_launching => {
                Some(Arc::new(ExhaustionReason::launch_failed(error.message())))
            }
            _ => None,
        };
        // Read the clock only if the time matters.
        let at = match policy.stable_after {
            Some(_) => now(),
            None => self.began,
        };
        BudgetUpdate::Settle {
            settlement: self.settlement(outcome),
            reason,
            launch: self.held.as_ref().map_or(0, HeldLock::fencing_token),
            now: at.into_std(),
        }
    }
}

impl<K: GateKey, T> Parts<K, T> {
    /// Counts the launch and the wait for the lock that end with the flight.
    fn record(&self, outcome: &Outcome<T>) {
        let recorder = &self.shared.recorder;
        if let Some(began) = self.launch_began {
            let end = match outcome {
                Outcome::Launched(_) => Some(LaunchEnd::Launched),
                Outcome::Failed(error) => Some(LaunchEnd::Failed(error.kind())),
                Outcome::Discovered(_) | Outcome::LeaderGone => None,
            };
            if let Some(end) = end {
                recorder.launch(self.flight.hash(), end, began.elapsed());
            }
        }
        if let Some(began) = self.lock_wait_began {
            let end = match outcome {
                Outcome::Launched(_) | Outcome::Discovered(_) => LockWaitEnd::Discovered,
                Outcome::Failed(error) => LockWaitEnd::Failed(error.kind()),
                Outcome::LeaderGone => LockWaitEnd::LeaderGone,
            };
            recorder.lock_wait(end, began.elapsed());
        }
    }

    /// Notes in the span that the flight may launch.
    pub(super) fn trace_launching(&self) {
        if let Some(attempt) = self.attempt {
            let token = || self.held.as_ref().map_or(0, HeldLock::fencing_token);
            self.span.launching(attempt.number, token);
        }
    }

    fn trace_end(&self, outcome: &Outcome<T>) {
        let key = || self.flight.label();
        let elapsed = || self.began.elapsed();
        self.span.in_scope(|| match outcome {
            Outcome::Launched(_) => {
                self.span.ended("launched");
                trace::launched(key, elapsed);
            }
            Outcome::Discovered(_) => {
                self.span.ended("discovered");
                trace::discovered(key, elapsed);
            }
            Outcome::LeaderGone => {
                self.span.ended("leader_gone");
                trace::leader_gone(key);
            }
            Outcome::Failed(error) => {
                self.span.ended(error.error_type());
                let attempt = self.attempt.map(|attempt| attempt.number);
                trace::failed(error, attempt, self.failed_stage(error).as_str());
            }
        });
    }

    fn failed_stage(&self, error: &GateError) -> Stage {
        match error {
            GateError::Timeout(error) => error.stage,
            GateError::Lock(_) | GateError::Launch(LaunchError::FailedElsewhere { .. }) => {
                Stage::Lock
            }
            _ if self.launch_began.is_some() => Stage::Launch,
            _ => Stage::Discover,
        }
    }

    /// The error of a flight that ended before its leader ended it, which only an operator can do.
    fn ended_by_operator(&self) -> GateError {
        if self.shared.registry.is_closed() {
            return GateError::Closed;
        }
        let key = self.flight.label();
        LaunchError::Aborted { key }.into()
    }

    /// The wait for the lock is over, and it is held.
    pub(super) fn end_lock_wait(&mut self) {
        if let Some(began) = self.lock_wait_began.take() {
            let took = began.elapsed();
            self.shared.recorder.lock_wait(LockWaitEnd::Acquired, took);
        }
    }
}

impl<K: GateKey, T> std::ops::Deref for Leader<K, T> {
    type Target = Parts<K, T>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K: GateKey, T> std::ops::DerefMut for Leader<K, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<K: GateKey, T> Drop for Parts<K, T> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let is_panicking = std::thread::panicking();
        // All of this catches panics: leases, keys and wakers are user code.
        let launch = caught(|| self.held.take().map(|held| held.fencing_token()));
        let key = caught(|| self.flight.label()).unwrap_or_else(|_| "?".into());
        let error: Option<LaunchError> = if is_panicking {
            // All callers share the panic, so that followers do not run into it in turn.
            Some(LaunchError::task_panicked(key))
        } else if self.is_launching {
            Some(LaunchError::Abandoned { key })
        } else {
            None
        };
        let reason = self.is_launching.then(|| {
            Arc::new(ExhaustionReason::CutShort {
                launch: launch.ok().flatten().unwrap_or_default(),
                at: Some(SystemTime::now()),
            })
        });
        let settlement = match self.is_launching {
            true => Settlement::Failed,
            false => Settlement::Refund,
        };
        let update = BudgetUpdate::without_ledger(&self.shared.policy, settlement, reason);
        let ended = || match error.clone() {
            Some(error) => Outcome::Failed(error.into()),
            None => Outcome::LeaderGone,
        };
        let mut outcome = ended();
        let _ = caught(|| {
            let record = |outcome: &Outcome<T>| self.record(outcome);
            let policy = &self.shared.policy;
            if !self.flight.end(policy, ended(), false, update, record) {
                outcome = Outcome::Failed(self.ended_by_operator());
                self.record(&outcome);
            }
        });
        let _ = caught(|| self.trace_end(&outcome));
    }
}
