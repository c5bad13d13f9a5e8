//! The handle of a flight: what its leader, its followers and operators do to it. Each does one step under the entry's mutex, and
//! nothing once the flight has ended.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::entry::{Flight, State};
use super::in_progress::InProgress;
use super::outcome::{Outcome, OutcomeReceiver};
use crate::budget::{Attempt, BudgetPolicy, BudgetUpdate, Refusal, Usage};
use crate::error::{GateError, Stage};
use crate::key::{GateKey, key_label};
use crate::lock::LockHolder;

impl<K, T> Flight<K, T> {
    pub(crate) fn key(&self) -> &K {
        &self.entry.key
    }

    /// The hash of its key.
    pub(crate) fn hash(&self) -> u64 {
        self.entry.hash
    }

    pub(crate) fn is_in_progress(&self) -> bool {
        self.step(|_| ()).is_some()
    }

    /// Follows it, unless it has ended.
    pub(crate) fn follow(&self) -> Option<OutcomeReceiver<Self, T>> {
        self.step(|flight| flight.follow(|| self.clone()))
    }

    /// Advances it to a stage, in which the leader waits for that holder.
    pub(crate) fn advance(&self, to: Stage, waiting_for: Option<Arc<LockHolder>>) {
        self.step(|flight| {
            flight.stage = to;
            flight.waiting_for = waiting_for;
        });
    }

    /// The holder that the leader waits for, if it waits for the lock.
    pub(crate) fn waiting_for(&self) -> Option<Arc<LockHolder>> {
        self.step(|flight| flight.waiting_for.clone())?
    }

    /// Records that the ledger was charged, and the attempt's number.
    pub(crate) fn note_charged(&self, number: u32) {
        if self
            .step(|flight| flight.attempt_number = Some(number))
            .is_some()
        {
            self.entry.state().key_state.note_free();
        }
    }

    /// Advances it to the launch. Returns the error if an operator has ended it.
    pub(crate) fn begin_launch(&self) -> Option<GateError> {
        self.step(InProgress::begin_launch)?
    }

    /// Notes that a caller has the permit from now on. Returns the error if an operator has ended the flight.
    pub(crate) fn hand_to_caller(&self) -> Option<GateError> {
        self.step(InProgress::hand_to_caller)?
    }

    /// Charges the attempt to this process's own count and advances the flight to the launch, in one step. `has_looked`: a look
    /// found no backend. `is_for_caller`: a caller gets the permit. Returns `None` and begins nothing if no attempt is free or the
    /// flight has ended.
    pub(crate) fn charge_and_begin_launch(
        &self,
        policy: &BudgetPolicy,
        has_looked: bool,
        is_for_caller: bool,
        now: Instant,
    ) -> Option<Attempt> {
        let mut state = self.entry.state();
        let State { key_state, flight } = &mut *state;
        let flight = flight
            .as_mut()
            .filter(|_| key_state.is_in_flight(self.number))?;
        if flight.interrupt.is_some() {
            return None;
        }
        let attempt = key_state.charge(policy, has_looked, now.into_std()).ok()?;
        flight.attempt_number = Some(attempt.number);
        flight.begin_launch();
        if is_for_caller {
            flight.hand_to_caller();
        }
        Some(attempt)
    }

    /// Charges the attempt to this process's own count. `has_looked`: a look found no backend.
    pub(crate) fn charge(
        &self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Result<Attempt, Refusal> {
        let mut state = self.entry.state();
        let attempt = state.key_state.charge(policy, has_looked, now.into_std())?;
        if let Some(flight) = &mut state.flight {
            flight.attempt_number = Some(attempt.number);
        }
        Ok(attempt)
    }

    /// Refunds the charge of [`charge`](Self::charge).
    pub(crate) fn refund(&self) {
        self.entry.state().key_state.refund();
    }

    /// The usage by this process's own count.
    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: Instant) -> Usage {
        self.entry.state().key_state.usage(policy, now.into_std())
    }

    /// Checks a refusal against this process's own count. `has_looked`: a look found no backend.
    pub(crate) fn confirm(
        &self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Option<Refusal> {
        let key_state = &mut self.entry.state().key_state;
        key_state.confirm(policy, has_looked, now.into_std())
    }

    /// Ends the flight, settles its attempt, and wakes its followers. Returns whether it was in progress. If so, `record` runs
    /// before the followers wake, so a caller that has the outcome finds it counted.
    pub(crate) fn end(
        &self,
        policy: &BudgetPolicy,
        outcome: Outcome<T>,
        has_found_none: bool,
        update: BudgetUpdate,
        record: impl FnOnce(&Outcome<T>),
    ) -> bool {
        let is_up = matches!(outcome, Outcome::Launched(_) | Outcome::Discovered(_));
        let has_found_none = has_found_none && !is_up;
        let mut state = self.entry.state();
        let key_state = &mut state.key_state;
        if !key_state.end(policy, self.number, has_found_none, update) {
            return false;
        }
        let ended = state.flight.take();
        drop(state);
        record(&outcome);
        if let Some(followers) = ended.and_then(|flight| flight.followers) {
            followers.publish(outcome);
        }
        true
    }

    /// Its stage and the number of its followers.
    pub(crate) fn activity(&self) -> Option<(Stage, usize)> {
        self.step(|flight| (flight.stage, flight.followers()))
    }

    /// Asks the leader's task to end the flight with `error`. Returns the error if no task can, since a caller holds the permit.
    pub(crate) fn interrupt(&self, error: GateError) -> Option<GateError> {
        let mut state = self.entry.state();
        let flight = state
            .key_state
            .is_in_flight(self.number)
            .then_some(state.flight.as_mut())
            .flatten()?;
        if flight.is_with_caller {
            return Some(error);
        }
        flight.interrupt.get_or_insert(error);
        let leader = flight.leader.take();
        // Unlocked first: a waker may be user code.
        drop(state);
        if let Some(leader) = leader {
            leader.wake();
        }
        None
    }

    /// Waits for an [`interrupt`](Self::interrupt). For the leader's task alone.
    pub(crate) fn poll_interrupted(&self, context: &mut Context<'_>) -> Poll<GateError> {
        let interrupted = self.step(|flight| match &flight.interrupt {
            Some(error) => Poll::Ready(error.clone()),
            None => {
                match &mut flight.leader {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        });
        interrupted.unwrap_or(Poll::Pending)
    }

    /// The leader's caller, which counts among the waiting callers from the begin of the flight until the guard is dropped.
    pub(crate) fn asker(&self) -> Asker<'_, K, T> {
        Asker(self)
    }

    /// Whether this refusal is the first since an attempt was last free. Called once per refused caller.
    pub(crate) fn is_first_refusal(&self) -> bool {
        self.entry.state().key_state.take_first_refusal()
    }

    /// Runs a step if the flight is in progress.
    fn step<V>(&self, step: impl FnOnce(&mut InProgress<Self, T>) -> V) -> Option<V> {
        let mut state = self.entry.state();
        if !state.key_state.is_in_flight(self.number) {
            return None;
        }
        state.flight.as_deref_mut().map(step)
    }
}

impl<K: GateKey, T> Flight<K, T> {
    /// The key as text.
    pub(crate) fn label(&self) -> Arc<str> {
        key_label(self.key()).into()
    }
}

/// The leader's caller, while it waits.
#[derive(Debug)]
pub(crate) struct Asker<'a, K, T>(&'a Flight<K, T>);

impl<K, T> Asker<'_, K, T> {
    /// The flight has ended, so nothing counts any more.
    pub(crate) fn answered(self) {
        std::mem::forget(self);
    }
}

impl<K, T> Drop for Asker<'_, K, T> {
    fn drop(&mut self) {
        self.0.step(|flight| flight.has_asker = false);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::super::entry::{Begun, Entry, Role};
    use super::*;
    use crate::budget::{KeyBudget, Picture};

    fn lead(entry: &Arc<Entry<&'static str, u32>>, number: u64) -> Flight<&'static str, u32> {
        let number = NonZeroU64::new(number).unwrap();
        let policy = &BudgetPolicy::default();
        match entry.enter(policy, number, false, Instant::now()) {
            Ok(Role::Lead(Begun { flight, .. })) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn charged(entry: &Arc<Entry<&'static str, u32>>, number: u64) -> Flight<&'static str, u32> {
        let flight = lead(entry, number);
        flight
            .charge(&BudgetPolicy::default(), false, Instant::now())
            .unwrap();
        flight
    }

    fn failed() -> BudgetUpdate {
        BudgetUpdate::Settle {
            settlement: crate::budget::Settlement::Failed,
            reason: None,
            launch: 1,
            now: Instant::now().into_std(),
        }
    }

    #[test]
    fn a_flight_that_has_ended_does_nothing_to_its_successor() {
        let policy = &BudgetPolicy::default();
        let entry = Arc::new(Entry::new("key", 7));
        let elder = charged(&entry, 1);
        assert!(elder.end(policy, Outcome::LeaderGone, false, failed(), |_| ()));
        let younger = charged(&entry, 2);

        assert!(!elder.end(policy, Outcome::LeaderGone, false, failed(), |_| ()));
        assert!(younger.is_in_progress(), "ended by its predecessor");
        assert!(!elder.is_in_progress());
        elder.advance(Stage::Launch, None);
        elder.note_charged(77);
        assert!(elder.interrupt(GateError::Closed).is_none());
        let (usage, flight) = entry.snapshot(policy, Instant::now());
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
        let entry = Arc::new(Entry::new("key", 7));
        let flight = lead(&entry, 1);
        let seen_at = Instant::now();
        entry.reset(seen_at + Duration::from_secs(1));
        let mut outdated = KeyBudget::default();
        outdated.use_up(policy, seen_at.into_std());
        let update = BudgetUpdate::Picture(Box::new(Picture {
            budget: outdated,
            reason: None,
            at: seen_at.into_std(),
        }));
        flight.end(policy, Outcome::LeaderGone, false, update, |_| ());
        assert!(!entry.is_live(policy, Instant::now()));
        lead(&entry, 2);
    }
}
