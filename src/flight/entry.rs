//! A key's entry: its state in this process, and its flight if one is in progress.
//!
//! Each entry has its own mutex, which is held for single steps and never across an await or while user code runs. So a flight can
//! be ended in `Drop`. Only the first ending of a flight counts: a later one changes neither outcome nor budget. A flight is
//! identified by its number, never by its key alone.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::time::Instant;

use super::in_progress::InProgress;
use super::outcome::OutcomeReceiver;
use super::snapshot::FlightSnapshot;
use crate::budget::{Admission, BudgetPolicy, KeyState, Refusal, Usage};
use crate::error::{BudgetExhausted, GateError};
use crate::key::{GateKey, key_label};
use crate::ledger::BackendEnd;

#[derive(Debug)]
pub(crate) struct Entry<K, T> {
    pub(crate) key: K,
    pub(crate) hash: u64,
    /// The key as text, for refusals, of which there can be many. Set by the first.
    label: OnceLock<Arc<str>>,
    state: Mutex<State<K, T>>,
}

#[derive(Debug)]
pub(super) struct State<K, T> {
    pub(super) key_state: KeyState,
    pub(super) flight: Option<Box<InProgress<Flight<K, T>, T>>>,
}

/// A request's part in a flight.
#[derive(Debug)]
pub(crate) enum Role<K, T, L = Begun<K, T>> {
    /// Wait for this flight's outcome. With the time of the request.
    Follow(OutcomeReceiver<Flight<K, T>, T>, Instant),
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
pub(crate) enum Refused<K, T> {
    /// The key has a label.
    Labelled(BudgetExhausted),
    /// The key has no label yet. Making it is user code, so it is made once everything is unlocked.
    Unlabelled(Arc<Entry<K, T>>, Refusal),
}

impl<K: GateKey, T> From<Refused<K, T>> for GateError {
    fn from(refused: Refused<K, T>) -> Self {
        match refused {
            Refused::Labelled(error) => error.into(),
            Refused::Unlabelled(entry, refusal) => {
                BudgetExhausted::new(entry.label(), refusal).into()
            }
        }
    }
}

impl<K, T> Entry<K, T> {
    pub(crate) fn new(key: K, hash: u64) -> Self {
        Self {
            key,
            hash,
            label: OnceLock::new(),
            state: Mutex::new(State {
                key_state: KeyState::default(),
                flight: None,
            }),
        }
    }

    /// Resets the budget; a flight in progress continues.
    pub(crate) fn reset(&self, now: Instant) {
        self.state().key_state.reset(now.into_std());
    }

    /// Records the end of a backend.
    pub(crate) fn backend_ended(&self, policy: &BudgetPolicy, end: &BackendEnd, now: Instant) {
        let key_state = &mut self.state().key_state;
        if policy.is_in_ledger {
            key_state.doubt();
        } else {
            key_state.backend_ended(policy, end.launch, end.failure.as_deref(), now.into_std());
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
        (state.key_state.usage(policy, now.into_std()), flight)
    }

    /// Whether the key is in use: something is charged or in progress.
    pub(crate) fn is_live(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        !self.state().key_state.is_idle(policy, now.into_std())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<K, T>> {
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
        let refusal = match state
            .key_state
            .enter(policy, number, can_look, now.into_std())
        {
            Admission::Follow(number) => {
                let flight = state
                    .flight
                    .get_or_insert_with(|| InProgress::new(false, now));
                let followed = flight.follow(|| self.flight(number));
                return Ok(Role::Follow(followed, now));
            }
            Admission::Lead => None,
            Admission::Look(refusal) => Some(refusal),
            Admission::Refuse(refusal) => {
                return Err(match self.label.get() {
                    Some(label) => {
                        Refused::Labelled(BudgetExhausted::new(Arc::clone(label), refusal))
                    }
                    None => Refused::Unlabelled(Arc::clone(self), refusal),
                });
            }
        };
        // A leader that can look has a launcher, so a task leads.
        state.flight = Some(InProgress::new(can_look, now));
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
        let number = self.state().key_state.in_flight()?;
        Some(self.flight(number))
    }
}

/// A key's flight, in progress or ended.
#[derive(Debug)]
pub(crate) struct Flight<K, T> {
    pub(super) entry: Arc<Entry<K, T>>,
    pub(super) number: NonZeroU64,
}

impl<K, T> Clone for Flight<K, T> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            number: self.number,
        }
    }
}
