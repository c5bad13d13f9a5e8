//! A table of slots, one for each key that is in use. It stands behind a mutex of the gate's.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::time::Instant;

use crate::budget::{BudgetPolicy, KeyBudget};
use crate::flight::{Asked, Entered};
use crate::hashed::{BuildPassOn, Hashed};
use crate::key::GateKey;
use crate::outcome::Following;
use crate::slot::{Look, Slot};
use crate::sweep::Sweep;

#[derive(Debug)]
pub(crate) struct Table<K, T> {
    slots: HashSet<ByKey<K, T>, BuildPassOn>,
    last_flight: u64,
    sweep: Sweep,
}

/// A slot as the table finds it: by its key.
#[derive(Debug)]
struct ByKey<K, T>(Arc<Slot<K, T>>);

impl<K: PartialEq, T> PartialEq for ByKey<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl<K: Eq, T> Eq for ByKey<K, T> {}

impl<K, T> Hash for ByKey<K, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl<K, T> Borrow<Hashed<K>> for ByKey<K, T> {
    fn borrow(&self) -> &Hashed<K> {
        &self.0.key
    }
}

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self {
            slots: HashSet::default(),
            last_flight: 0,
            sweep: Sweep::default(),
        }
    }
}

impl<K: GateKey, T> Table<K, T> {
    /// Makes the transition of a request, see [`Slot::enter`]. Returns the request too if it was not needed, as its
    /// key is better dropped elsewhere.
    pub(crate) fn enter(
        &mut self,
        asked: Asked<K, T>,
        policy: &BudgetPolicy,
        can_discover: bool,
        now: Instant,
    ) -> (Entered<K, T>, Option<Asked<K, T>>) {
        self.last_flight += 1;
        let number = self.last_flight;
        match self.slots.get(asked.key()) {
            Some(ByKey(slot)) => {
                let entered = slot.enter(policy, number, can_discover, now);
                (entered, Some(asked))
            }
            None => {
                let slot = asked.into_slot();
                let entered = slot.enter(policy, number, can_discover, now);
                self.slots.insert(ByKey(slot));
                (entered, None)
            }
        }
    }

    /// Forgets what `key` has used; a flight in progress goes on.
    pub(crate) fn reset(&self, key: &Hashed<K>) {
        if let Some(ByKey(slot)) = self.slots.get(key) {
            slot.reset(Instant::now());
        }
    }

    /// The usage of `key` and its flight in progress.
    pub(crate) fn look(&self, key: &Hashed<K>, policy: &BudgetPolicy, now: Instant) -> Look {
        match self.slots.get(key) {
            Some(ByKey(slot)) => slot.look(policy, now),
            None => Look {
                usage: KeyBudget::default().usage(policy, now.into_std()),
                flight: None,
            },
        }
    }

    /// The usage of every key that has an attempt charged or a flight in progress.
    pub(crate) fn look_at_all(&self, policy: &BudgetPolicy, now: Instant) -> Vec<(K, Look)> {
        let slots = self.slots.iter().map(|ByKey(slot)| slot);
        slots
            .filter(|slot| slot.is_live(policy, now))
            .map(|slot| (slot.key.key.clone(), slot.look(policy, now)))
            .collect()
    }

    /// Follows the flights in progress.
    pub(crate) fn follow_all(&self) -> Vec<Following<T>> {
        let slots = self.slots.iter();
        slots.filter_map(|ByKey(slot)| slot.follow()).collect()
    }

    /// Forgets the keys that are idle, if that is due. Returns whether it was due by time.
    pub(crate) fn forget_idle(&mut self, policy: &BudgetPolicy, now: Instant) -> bool {
        let is_due = self.sweep.is_due(policy.config.window, now.into_std());
        if is_due || self.sweep.has_grown(self.slots.len()) {
            self.slots.retain(|ByKey(slot)| slot.is_live(policy, now));
            let (left, capacity) = (self.slots.len(), self.slots.capacity());
            if let Some(capacity) = self.sweep.swept(left, capacity) {
                self.slots.shrink_to(capacity);
            }
        }
        is_due
    }
}
