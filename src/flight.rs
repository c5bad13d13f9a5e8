//! A flight: one launch in progress for a key. How a request begins one, and what its leader does to it.
//!
//! A flight is known by its number, never by its key alone, so whoever comes late changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::BudgetRefusal;
use crate::error::{BudgetExhausted, GateError, Stage};
use crate::key::{GateKey, key_label};
use crate::lock::LockHolder;
use crate::outcome::{Following, Outcome};
use crate::policy::BudgetPolicy;
use crate::slot::{Claim, Running, Settling, Slot};

/// A request's part in a flight. Who leads has the flight itself at first, and then a seat in it.
#[derive(Debug)]
pub(crate) enum Part<K, T, L = Flight<K, T>> {
    /// Wait for this flight's outcome.
    Follow(Flight<K, T>, Following<T>),
    /// Lead this flight, which was just begun.
    Lead(L, Claim),
}

/// A request has no part: no attempt is left for this key.
#[derive(Debug)]
pub(crate) struct Refused<K, T> {
    slot: Arc<Slot<K, T>>,
    refusal: BudgetRefusal,
    last_failure: Option<Arc<String>>,
}

impl<K: GateKey, T> From<Refused<K, T>> for GateError {
    fn from(refused: Refused<K, T>) -> Self {
        let key = refused.slot.label();
        BudgetExhausted::new(key, refused.refusal, refused.last_failure).into()
    }
}

pub(crate) type Entered<K, T> = Result<Part<K, T>, Refused<K, T>>;

impl<K: GateKey, T> Slot<K, T> {
    /// The one transition: follow the flight in progress, or charge the budget and lead, or be refused. `can_discover`: if this
    /// request leads, it can look for a running backend.
    #[inline]
    pub(crate) fn enter(
        self: &Arc<Self>,
        policy: &BudgetPolicy,
        number: u64,
        can_discover: bool,
        now: Instant,
    ) -> Entered<K, T> {
        let state = &mut *self.state();
        if let Some(running) = &mut state.flight {
            let flight = self.flight(running.number);
            return Ok(Part::Follow(flight, running.follow()));
        }
        let claim = match state.budget.begin(policy, number, now.into_std()) {
            Ok(attempt) => Claim::Launch(attempt),
            // The backend of the last success, not yet stable, may be up: refusing it unseen would be wrong.
            Err(refusal) if can_discover && state.budget.may_be_up() => Claim::Look(refusal),
            Err(refusal) if policy.is_in_ledger && state.is_ledger_stale(now) => {
                Claim::Look(refusal)
            }
            Err(refusal) => {
                state.budget.note_refused();
                return Err(Refused {
                    slot: Arc::clone(self),
                    refusal,
                    last_failure: state.last_failure.clone(),
                });
            }
        };
        state.flight = Some(Box::new(Running {
            number,
            claim,
            attempt_number: match claim {
                Claim::Launch(attempt) => Some(attempt.number),
                Claim::Look(_) => None,
            },
            began: now,
            stage: Stage::Lock,
            waiting_for: None,
            has_lock: false,
            asker_waits: false,
            followers: None,
        }));
        Ok(Part::Lead(self.flight(number), claim))
    }

    #[inline]
    fn flight(self: &Arc<Self>, number: u64) -> Flight<K, T> {
        Flight {
            slot: Arc::clone(self),
            number,
        }
    }
}

/// A flight of a slot's, in progress or ended.
#[derive(Debug)]
pub(crate) struct Flight<K, T> {
    slot: Arc<Slot<K, T>>,
    number: u64,
}

impl<K, T> Clone for Flight<K, T> {
    fn clone(&self) -> Self {
        Self {
            slot: Arc::clone(&self.slot),
            number: self.number,
        }
    }
}

impl<K, T> Flight<K, T> {
    pub(crate) fn key(&self) -> &K {
        &self.slot.key
    }

    /// How long it has been in progress; zero once it has ended.
    pub(crate) fn age(&self) -> Duration {
        self.step(|running| running.began.elapsed())
            .unwrap_or_default()
    }

    /// Does a step while the flight is in progress.
    fn step<V>(&self, step: impl FnOnce(&mut Running<T>) -> V) -> Option<V> {
        let mut state = self.slot.state();
        let running = state.flight.as_mut()?;
        (running.number == self.number).then(|| step(running))
    }

    /// Moves it to a stage.
    pub(crate) fn advance(&self, to: Stage) {
        self.step(|running| {
            running.stage = to;
            running.waiting_for = None;
            running.has_lock &= to != Stage::Lock;
        });
    }

    /// Notes whom the leader waits for.
    pub(crate) fn note_holder(&self, holder: Arc<LockHolder>) {
        self.step(|running| running.waiting_for = Some(holder));
    }

    /// Notes the attempt's place in its window.
    pub(crate) fn note_attempt(&self, number: u32) {
        self.step(|running| running.attempt_number = Some(number));
    }

    /// Notes that the leader holds the lock now.
    pub(crate) fn note_lock_held(&self) {
        self.step(|running| running.has_lock = true);
    }

    /// Whether the leader holds the lock, so that it must not be cut short.
    pub(crate) fn has_lock(&self) -> bool {
        self.step(|running| running.has_lock).unwrap_or(true)
    }

    /// Whom the leader waits for, if it waits for the lock.
    pub(crate) fn waiting_for(&self) -> Option<Arc<LockHolder>> {
        self.step(|running| running.waiting_for.clone())?
    }

    /// Ends the flight, settles its attempt, and wakes everybody who follows. Changes nothing if it has ended.
    pub(crate) fn end(&self, policy: &BudgetPolicy, outcome: Outcome<T>, settling: Settling) {
        self.end_with(policy, |_| (outcome, settling));
    }

    /// Ends a flight whose leader is gone, with what its stage makes of that.
    pub(crate) fn end_with(
        &self,
        policy: &BudgetPolicy,
        ending: impl FnOnce(Stage) -> (Outcome<T>, Settling),
    ) {
        let mut state = self.slot.state();
        let Some(running) = state
            .flight
            .take_if(|running| running.number == self.number)
        else {
            return;
        };
        let (outcome, settling) = ending(running.stage);
        state.settle(policy, &running, settling);
        drop(state);
        if let Some(followers) = running.followers {
            followers.tell_outcome(outcome);
        }
    }

    /// Counts the caller that asked for the launch among those who wait, until the guard is dropped.
    pub(crate) fn count_asker(&self) -> AskerWaits<'_, K, T> {
        self.step(|running| running.asker_waits = true);
        AskerWaits(self)
    }
}

impl<K: GateKey, T> Flight<K, T> {
    /// The key as it is named in messages.
    pub(crate) fn label(&self) -> Arc<str> {
        key_label(self.key()).into()
    }
}

/// The caller that asked for a launch, while it waits.
#[derive(Debug)]
pub(crate) struct AskerWaits<'a, K, T>(&'a Flight<K, T>);

impl<K, T> Drop for AskerWaits<'_, K, T> {
    fn drop(&mut self) {
        self.0.step(|running| running.asker_waits = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::KeyBudget;
    use crate::slot::SeenLedger;

    fn lead(slot: &Arc<Slot<&'static str, u32>>, number: u64) -> Flight<&'static str, u32> {
        match slot.enter(&BudgetPolicy::default(), number, false, Instant::now()) {
            Ok(Part::Lead(flight, _)) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn is_in_progress(flight: &Flight<&'static str, u32>) -> bool {
        flight.step(|_| ()).is_some()
    }

    #[test]
    fn a_flight_that_has_ended_does_nothing_to_its_successor() {
        let policy = &BudgetPolicy::default();
        let slot = Arc::new(Slot::new("key", 7));
        let elder = lead(&slot, 1);
        let failed = || Settling::failed(Arc::new("no such program".to_owned()));
        elder.end(policy, Outcome::Vacated, failed());
        let younger = lead(&slot, 2);

        elder.end(policy, Outcome::Vacated, failed());
        assert!(is_in_progress(&younger), "ended by its predecessor");
        assert!(!is_in_progress(&elder));
        elder.advance(Stage::Launch);
        elder.note_attempt(77);
        let (usage, flight) = slot.snapshot(policy, Instant::now());
        let flight = flight.unwrap();
        assert_eq!(
            (flight.stage, flight.attempt_number),
            (Stage::Lock, Some(2))
        );
        assert_eq!(usage.used, 2);
    }

    #[test]
    fn a_flight_that_saw_the_ledger_before_a_reset_leaves_no_attempt_in_flight() {
        let policy = &BudgetPolicy::default();
        let slot = Arc::new(Slot::new("key", 7));
        let flight = lead(&slot, 1);
        let seen_at = Instant::now();
        slot.reset(seen_at + Duration::from_secs(1));
        let settling = Settling::Ledger(Box::new(SeenLedger {
            budget: KeyBudget::default(),
            last_failure: None,
            at: seen_at,
        }));
        flight.end(policy, Outcome::Vacated, settling);
        assert!(!slot.is_live(policy, Instant::now()));
        lead(&slot, 2);
    }
}
