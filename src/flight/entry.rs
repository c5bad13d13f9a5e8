//! A key's entry: its state in this process, and its flight if one is in progress.
//!
//! Each entry has its own mutex, which is held for single steps and never across an await or while user code runs. So a flight can
//! be ended in `Drop`. Only the first ending of a flight counts: a later one changes neither outcome nor budget. A flight is
//! identified by its number, never by its key alone.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::outcome::{Outcome, OutcomeReceiver, OutcomeSender};
use super::snapshot::FlightSnapshot;
use crate::budget::{Admission, Attempt, BudgetPolicy, BudgetUpdate, KeyState, Refusal, Usage};
use crate::error::{BudgetExhausted, GateError, Stage};
use crate::key::{GateKey, key_label};
use crate::ledger::BackendEnd;
use crate::lock::LockHolder;

#[derive(Debug)]
pub(crate) struct Entry<K, T> {
    pub(crate) key: K,
    pub(crate) hash: u64,
    /// The key as text, for refusals, of which there can be many. Set by the first.
    label: OnceLock<Arc<str>>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    known: KeyState,
    flight: Option<Box<InProgress<T>>>,
}

/// A flight in progress, with its stages:
///
/// ```text
/// Discover ⇄ Lock ──→ Launch        each may end: launched, discovered, failed, leader gone
/// ```
#[derive(Debug)]
struct InProgress<T> {
    stage: Stage,
    began: Instant,
    /// The attempt's number for snapshots. In a ledger it differs from that in this process's count.
    attempt_number: Option<u32>,
    waiting_for: Option<Arc<LockHolder>>,
    /// Whether the leader's caller is waiting for the leader's task.
    has_asker: bool,
    /// A caller holds the permit, so no task can end the flight.
    is_with_caller: bool,
    /// The error to end the flight with, and the task to wake for it.
    interrupt: Option<GateError>,
    leader: Option<Waker>,
    /// Created for the first follower.
    followers: Option<OutcomeSender<T>>,
}

/// A request's part in a flight.
#[derive(Debug)]
pub(crate) enum Role<K, T, L = Begun<K, T>> {
    /// Wait for this flight's outcome.
    Follow(Flight<K, T>, OutcomeReceiver<T>),
    /// Lead this new flight.
    Lead(L),
}

/// A new flight.
#[derive(Debug)]
pub(crate) struct Begun<K, T> {
    pub(crate) flight: Flight<K, T>,
    pub(crate) at: Instant,
    /// The refusal that it must check first.
    pub(crate) refusal: Option<Refusal>,
}

/// A request without a role: no attempt is free.
#[derive(Debug)]
pub(crate) struct Refused<K, T> {
    entry: Arc<Entry<K, T>>,
    refusal: Refusal,
}

impl<K: GateKey, T> From<Refused<K, T>> for GateError {
    fn from(Refused { entry, refusal }: Refused<K, T>) -> Self {
        BudgetExhausted::new(entry.label(), refusal).into()
    }
}

impl<K, T> Entry<K, T> {
    pub(crate) fn new(key: K, hash: u64) -> Self {
        Self {
            key,
            hash,
            label: OnceLock::new(),
            state: Mutex::new(State {
                known: KeyState::default(),
                flight: None,
            }),
        }
    }

    /// Resets the budget; a flight in progress continues.
    pub(crate) fn reset(&self, now: Instant) {
        self.state().known.reset(now.into_std());
    }

    /// Records the end of a backend.
    pub(crate) fn backend_ended(&self, policy: &BudgetPolicy, end: &BackendEnd, now: Instant) {
        let known = &mut self.state().known;
        if policy.is_in_ledger {
            known.doubt();
        } else {
            known.backend_ended(policy, end.launch, end.failure.as_deref(), now.into_std());
        }
    }

    /// The usage and the flight in progress.
    pub(crate) fn snapshot(
        &self,
        policy: &BudgetPolicy,
        now: Instant,
    ) -> (Usage, Option<FlightSnapshot>) {
        let state = self.state();
        let flight = state.flight.as_deref().map(|flight| FlightSnapshot {
            stage: flight.stage,
            age: now.saturating_duration_since(flight.began),
            attempt_number: flight.attempt_number,
            waiting: flight.waiting(),
            waiting_for: flight.waiting_for.as_deref().cloned(),
        });
        (state.known.usage(policy, now.into_std()), flight)
    }

    /// Whether the key is in use: something is charged or in progress.
    pub(crate) fn is_live(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        !self.state().known.is_idle(policy, now.into_std())
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: GateKey, T> Entry<K, T> {
    /// The only way into a flight: follow the one in progress, lead a new one, or be refused. `can_look`: as a leader, this request
    /// can look for a running backend.
    #[inline]
    pub(crate) fn enter(
        self: &Arc<Self>,
        policy: &BudgetPolicy,
        number: NonZeroU64,
        can_look: bool,
        now: Instant,
    ) -> Result<Role<K, T>, Refused<K, T>> {
        let state = &mut *self.state();
        let refusal = match state.known.enter(policy, number, can_look, now.into_std()) {
            Admission::Follow(number) => {
                let flight = state.flight.get_or_insert_with(|| InProgress::new(now));
                return Ok(Role::Follow(self.flight(number), flight.follow()));
            }
            Admission::Lead => None,
            Admission::Look(refusal) => Some(refusal),
            Admission::Refuse(refusal) => {
                return Err(Refused {
                    entry: Arc::clone(self),
                    refusal,
                });
            }
        };
        state.flight = Some(InProgress::new(now));
        Ok(Role::Lead(Begun {
            flight: self.flight(number),
            at: now,
            refusal,
        }))
    }

    /// The key as text, cached for refusals.
    fn label(&self) -> Arc<str> {
        Arc::clone(self.label.get_or_init(|| key_label(&self.key).into()))
    }

    #[inline]
    fn flight(self: &Arc<Self>, number: NonZeroU64) -> Flight<K, T> {
        Flight {
            entry: Arc::clone(self),
            number,
        }
    }

    /// The flight in progress.
    pub(crate) fn current_flight(self: &Arc<Self>) -> Option<Flight<K, T>> {
        let number = self.state().known.in_flight()?;
        Some(self.flight(number))
    }
}

impl<T> InProgress<T> {
    fn new(now: Instant) -> Box<Self> {
        Box::new(Self {
            stage: Stage::Lock,
            began: now,
            attempt_number: None,
            waiting_for: None,
            has_asker: false,
            is_with_caller: false,
            interrupt: None,
            leader: None,
            followers: None,
        })
    }

    fn follow(&mut self) -> OutcomeReceiver<T> {
        self.followers
            .get_or_insert_with(OutcomeSender::new)
            .subscribe()
    }

    fn begin_launch(&mut self) -> Option<GateError> {
        if self.interrupt.is_none() {
            self.stage = Stage::Launch;
            self.waiting_for = None;
        }
        self.interrupt.clone()
    }

    fn hand_to_caller(&mut self) -> Option<GateError> {
        self.is_with_caller = self.interrupt.is_none();
        self.interrupt.clone()
    }

    fn waiting(&self) -> usize {
        let followers = self.followers.as_ref().map_or(0, OutcomeSender::count);
        followers + usize::from(self.has_asker)
    }
}

/// A key's flight, in progress or ended.
#[derive(Debug)]
pub(crate) struct Flight<K, T> {
    entry: Arc<Entry<K, T>>,
    number: NonZeroU64,
}

impl<K, T> Clone for Flight<K, T> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            number: self.number,
        }
    }
}

impl<K, T> Flight<K, T> {
    pub(crate) fn key(&self) -> &K {
        &self.entry.key
    }

    pub(crate) fn is_in_progress(&self) -> bool {
        self.step(|_| ()).is_some()
    }

    /// Follows it, unless it has ended.
    pub(crate) fn follow(&self) -> Option<OutcomeReceiver<T>> {
        self.step(InProgress::follow)
    }

    /// Advances it to a stage.
    pub(crate) fn advance(&self, to: Stage) {
        self.step(|flight| {
            flight.stage = to;
            flight.waiting_for = None;
        });
    }

    /// Records the holder that the leader waits for.
    pub(crate) fn note_holder(&self, holder: Arc<LockHolder>) {
        self.step(|flight| flight.waiting_for = Some(holder));
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
            self.entry.state().known.note_free();
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

    /// Charges the attempt to this process's own count and advances the flight to the launch, for a caller that gets the permit.
    /// Returns `None` and changes nothing if no attempt is free or the flight has ended.
    pub(crate) fn charge_and_begin_launch(
        &self,
        policy: &BudgetPolicy,
        now: Instant,
    ) -> Option<Attempt> {
        let mut state = self.entry.state();
        let State { known, flight } = &mut *state;
        let flight = flight
            .as_mut()
            .filter(|_| known.is_in_flight(self.number))?;
        if flight.begin_launch().is_some() || flight.hand_to_caller().is_some() {
            return None;
        }
        match known.charge(policy, false, now.into_std()) {
            Ok(attempt) => {
                flight.attempt_number = Some(attempt.number);
                Some(attempt)
            }
            Err(_) => {
                flight.stage = Stage::Lock;
                flight.is_with_caller = false;
                None
            }
        }
    }

    /// Charges the attempt to this process's own count. `has_looked`: a look found no backend.
    pub(crate) fn charge(
        &self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Result<Attempt, Refusal> {
        let mut state = self.entry.state();
        let attempt = state.known.charge(policy, has_looked, now.into_std())?;
        if let Some(flight) = &mut state.flight {
            flight.attempt_number = Some(attempt.number);
        }
        Ok(attempt)
    }

    /// Refunds the charge of [`charge`](Self::charge).
    pub(crate) fn refund(&self) {
        self.entry.state().known.refund();
    }

    /// The usage by this process's own count.
    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: Instant) -> Usage {
        self.entry.state().known.usage(policy, now.into_std())
    }

    /// Checks a refusal against this process's own count. `has_looked`: a look found no backend.
    pub(crate) fn confirm(
        &self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Option<Refusal> {
        let known = &mut self.entry.state().known;
        known.confirm(policy, has_looked, now.into_std())
    }

    /// Ends the flight, settles its attempt, and wakes its followers. Returns whether it was in progress.
    pub(crate) fn end(
        &self,
        policy: &BudgetPolicy,
        outcome: Outcome<T>,
        has_found_none: bool,
        update: BudgetUpdate,
    ) -> bool {
        let is_up = matches!(outcome, Outcome::Launched(_) | Outcome::Discovered(_));
        let has_found_none = has_found_none && !is_up;
        let mut state = self.entry.state();
        let known = &mut state.known;
        if !known.end(policy, self.number, has_found_none, update) {
            return false;
        }
        let ended = state.flight.take();
        drop(state);
        if let Some(followers) = ended.and_then(|flight| flight.followers) {
            followers.publish(outcome);
        }
        true
    }

    /// Asks the leader's task to end the flight with `error`. Returns the error if no task can, since a caller holds the permit.
    pub(crate) fn interrupt(&self, error: GateError) -> Option<GateError> {
        let mut state = self.entry.state();
        let flight = state
            .known
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

    /// Counts the leader's caller among the waiting callers until the guard is dropped.
    pub(crate) fn count_asker(&self) -> Asker<'_, K, T> {
        self.step(|flight| flight.has_asker = true);
        Asker(self)
    }

    /// Whether this refusal is the first since an attempt was last free. Called once per refused caller.
    pub(crate) fn is_first_refusal(&self) -> bool {
        self.entry.state().known.take_first_refusal()
    }

    /// Runs a step if the flight is in progress.
    fn step<V>(&self, step: impl FnOnce(&mut InProgress<T>) -> V) -> Option<V> {
        let mut state = self.entry.state();
        if !state.known.is_in_flight(self.number) {
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

impl<K, T> Drop for Asker<'_, K, T> {
    fn drop(&mut self) {
        self.0.step(|flight| flight.has_asker = false);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert!(elder.end(policy, Outcome::LeaderGone, false, failed()));
        let younger = charged(&entry, 2);

        assert!(!elder.end(policy, Outcome::LeaderGone, false, failed()));
        assert!(younger.is_in_progress(), "ended by its predecessor");
        assert!(!elder.is_in_progress());
        elder.advance(Stage::Launch);
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
        flight.end(policy, Outcome::LeaderGone, false, update);
        assert!(!entry.is_live(policy, Instant::now()));
        lead(&entry, 2);
    }
}
