//! The leader: the only owner of its flight, its attempt and its held lock.

use std::sync::Arc;

use tokio::time::Instant;

use super::entry::{Begun, Flight};
use super::held_lock::HeldLock;
use super::outcome::{Outcome, Step};
use super::shared::{Shared, UnlockedLedger};
use crate::budget::{Attempt, Refusal};
use crate::error::{
    AttemptsLeft, BoxError, GateError, LaunchError, NotStarted, SharedError, Stage,
};
use crate::key::GateKey;
use crate::ledger::Known;
use crate::lock::SpawnLockError;
use crate::statistics::LockWaitEnd;
use crate::trace::{self, LaunchSpan};

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
    pub(super) settled_at: Option<Instant>,
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
    pub(super) has_ended: bool,
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
}

impl<K: GateKey, T> Parts<K, T> {
    /// Notes in the span that the flight may launch.
    pub(super) fn trace_launching(&self) {
        if let Some(attempt) = self.attempt {
            let token = || self.held.as_ref().map_or(0, HeldLock::fencing_token);
            self.span.launching(attempt.number, token);
        }
    }

    /// The error of a flight that ended before its leader ended it, which only an operator can do.
    pub(super) fn ended_by_operator(&self) -> GateError {
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
