//! The end of a leader's flight: settle, release, publish, in this order; and the same in `Drop`, where nothing can be awaited.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::held_lock::HeldLock;
use super::leader::{Leader, Parts};
use super::outcome::{Ending, Outcome};
use super::shared::Shared;
use crate::budget::{BudgetUpdate, ExhaustionReason, Settlement};
use crate::error::{ErrorType, GateError, LaunchError, Stage};
use crate::key::GateKey;
use crate::ledger::{LedgerSession, picture};
use crate::lock::SpawnLockError;
use crate::statistics::{LaunchEnd, LockWaitEnd};
use crate::trace;
use crate::util::caught;

impl<K: GateKey, T> Leader<K, T> {
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
