//! The table of keys behind one of the gate's mutexes, and the one transition that a request makes in it.
//!
//! A slot holds a key's budget and its flight, if one was begun. Invariants: a flight that has ended counts as no flight;
//! its settlement is applied to the budget, once, by whoever finds it (`Slot::absorb`), so ending a flight needs no mutex;
//! a slot with no flight and a blank budget may be forgotten at any time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::{BudgetPolicy, BudgetRefusal, KeyBudget, Settlement, Usage};
use crate::flight::{Claim, Flight, Following, Settling};
use crate::hashed::{BuildPassOn, Hashed};
use crate::key::{GateKey, key_label};
use crate::sweep::{Sweep, retain_live};

/// How long a refusal by the ledger stands before a request looks at the ledger again. So an operator's reset from another
/// process is noticed within this time, and a storm of refused requests costs one look in it.
const LEDGER_SEEN_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Table<K, T> {
    slots: HashMap<Arc<Hashed<K>>, Slot<K, T>, BuildPassOn>,
    policy: BudgetPolicy,
    last_attempt: u64,
    sweep: Sweep,
    closed: bool,
}

#[derive(Debug)]
struct Slot<K, T> {
    key: Arc<Hashed<K>>,
    budget: KeyBudget,
    flight: Option<Arc<Flight<T>>>,
    /// When the budget was last taken from the ledger, where the lock keeps one.
    ledger_seen: Option<Instant>,
    /// The key as it is named in refusals, of which there can be many.
    label: Option<Arc<str>>,
}

/// What a request is to do.
#[derive(Debug)]
pub(crate) enum Entered<K, T> {
    /// Wait for this flight's outcome.
    Follow(Arc<Flight<T>>, Following<T>),
    /// Lead this flight, which was just begun.
    Lead(Arc<Hashed<K>>, Arc<Flight<T>>),
    /// Be refused: no attempt is left. The key is named as in messages.
    Refused(Arc<str>, BudgetRefusal),
    /// Be refused: the gate is closed.
    Closed,
}

/// What a key has used, and its live flight.
#[derive(Debug)]
pub(crate) struct Look<T> {
    pub(crate) usage: Usage,
    pub(crate) flight: Option<Arc<Flight<T>>>,
}

impl<K: GateKey, T> Table<K, T> {
    pub(crate) fn new(policy: BudgetPolicy) -> Self {
        Self {
            slots: HashMap::default(),
            policy,
            last_attempt: 0,
            sweep: Sweep::default(),
            closed: false,
        }
    }

    /// The one transition: follow a live flight, or charge the budget and lead, or be refused. `can_discover`: if this request
    /// leads, it can look for a running backend.
    pub(crate) fn enter(
        &mut self,
        key: &Hashed<K>,
        can_discover: bool,
        now: Instant,
    ) -> Entered<K, T> {
        if self.closed {
            return Entered::Closed;
        }
        self.last_attempt += 1;
        let slot = match self.slots.get_mut(key) {
            Some(slot) => slot,
            None => {
                let key = Arc::new(key.clone());
                let slot = Slot::new(Arc::clone(&key));
                self.slots.entry(key).or_insert(slot)
            }
        };
        slot.enter(&self.policy, self.last_attempt, can_discover, now)
    }

    /// Applies the ended flight of `key`, if there is one, and forgets the key if nothing is left to remember.
    pub(crate) fn absorb(&mut self, key: &Hashed<K>) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.absorb(&self.policy);
            if slot.is_blank() {
                self.slots.remove(key);
            }
        }
    }

    /// Forgets what `key` has used; a flight in progress goes on.
    pub(crate) fn reset(&mut self, key: &Hashed<K>) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.absorb(&self.policy);
            slot.budget.reset();
            if slot.is_blank() {
                self.slots.remove(key);
            }
        }
    }

    /// The usage of `key` and its live flight.
    pub(crate) fn look(&mut self, key: &Hashed<K>, now: Instant) -> Look<T> {
        self.absorb(key);
        match self.slots.get(key) {
            Some(slot) => slot.look(&self.policy, now),
            None => Look {
                usage: KeyBudget::default().usage(&self.policy, now.into_std()),
                flight: None,
            },
        }
    }

    /// The usage of every key that has an attempt charged or a live flight.
    pub(crate) fn look_at_all(&mut self, now: Instant) -> Vec<(K, Look<T>)> {
        let policy = self.policy;
        retain_live(&mut self.slots, |slot| slot.is_live(&policy, now));
        self.slots
            .iter()
            .map(|(key, slot)| (key.key.clone(), slot.look(&policy, now)))
            .collect()
    }

    /// Refuses all requests from now on. Returns the flights in progress.
    pub(crate) fn close(&mut self) -> Vec<Arc<Flight<T>>> {
        self.closed = true;
        self.slots
            .values()
            .filter_map(|slot| slot.flight.clone())
            .collect()
    }

    /// Forgets the keys that are idle, if that is due. Returns whether it was.
    pub(crate) fn forget_idle(&mut self, now: Instant) -> bool {
        let policy = self.policy;
        let is_due = self.sweep.is_due(policy.config.window, now.into_std());
        if is_due {
            retain_live(&mut self.slots, |slot| slot.is_live(&policy, now));
        }
        is_due
    }
}

impl<K: GateKey, T> Slot<K, T> {
    fn new(key: Arc<Hashed<K>>) -> Self {
        Self {
            key,
            budget: KeyBudget::default(),
            flight: None,
            ledger_seen: None,
            label: None,
        }
    }

    fn enter(
        &mut self,
        policy: &BudgetPolicy,
        id: u64,
        can_discover: bool,
        now: Instant,
    ) -> Entered<K, T> {
        if let Some(flight) = &self.flight {
            if let Some(following) = flight.follow() {
                return Entered::Follow(Arc::clone(flight), following);
            }
            self.absorb(policy);
        }
        let claim = match self.budget.begin(policy, id, now.into_std()) {
            Ok(attempt) => Claim::Launch(attempt),
            // The backend of the last success, not yet stable, may be up: refusing it unseen would be wrong.
            Err(refusal) if can_discover && self.budget.may_be_up() => Claim::Look(refusal),
            Err(refusal) if self.is_ledger_stale(now) => Claim::Look(refusal),
            Err(refusal) => {
                self.budget.note_refused();
                let label = self
                    .label
                    .get_or_insert_with(|| key_label(&self.key.key).into());
                return Entered::Refused(Arc::clone(label), refusal);
            }
        };
        let flight = Arc::new(Flight::new(claim, now, can_discover));
        self.flight = Some(Arc::clone(&flight));
        Entered::Lead(Arc::clone(&self.key), flight)
    }

    fn absorb(&mut self, policy: &BudgetPolicy) {
        let Some(flight) = &self.flight else { return };
        let Some(settling) = flight.settling() else {
            return;
        };
        match (settling, flight.claim) {
            (Settling::Ledger(budget, at), _) => {
                self.budget = budget;
                self.ledger_seen = Some(at);
            }
            (Settling::Attempt(settlement, at), Claim::Launch(attempt)) => {
                self.budget.settle(policy, attempt.id, settlement, at);
            }
            (Settling::Attempt(Settlement::Failed, _), Claim::Look(_)) => {
                self.budget.note_refused();
                self.budget.found_down();
            }
            (Settling::Attempt(..), Claim::Look(_)) => {}
        }
        self.flight = None;
    }

    /// Whether another process may have reset the budget since this one saw the ledger.
    fn is_ledger_stale(&self, now: Instant) -> bool {
        self.ledger_seen
            .is_some_and(|seen| now.saturating_duration_since(seen) >= LEDGER_SEEN_FOR)
    }

    fn look(&self, policy: &BudgetPolicy, now: Instant) -> Look<T> {
        Look {
            usage: self.budget.usage(policy, now.into_std()),
            flight: self.flight.clone(),
        }
    }

    fn is_live(&mut self, policy: &BudgetPolicy, now: Instant) -> bool {
        self.absorb(policy);
        self.flight.is_some() || !self.budget.is_idle(policy, now.into_std())
    }

    fn is_blank(&self) -> bool {
        self.flight.is_none() && self.budget.is_blank()
    }
}
