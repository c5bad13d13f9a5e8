//! A table of slots, one for each key that is in use. It stands behind a mutex of the gate's.

use std::sync::Arc;

use hashbrown::HashTable;
use tokio::time::Instant;

use crate::budget::{KeyBudget, Usage};
use crate::key::GateKey;
use crate::outcome::Following;
use crate::policy::BudgetPolicy;
use crate::slot::Slot;
use crate::snapshot::FlightSnapshot;
use crate::sweep::Sweep;

#[derive(Debug)]
pub(crate) struct Table<K, T> {
    slots: HashTable<Arc<Slot<K, T>>>,
    last_flight: u64,
    sweep: Sweep,
}

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self {
            slots: HashTable::new(),
            last_flight: 0,
            sweep: Sweep::default(),
        }
    }
}

impl<K: GateKey, T> Table<K, T> {
    /// The slot of `key`, if it has one.
    pub(crate) fn slot(&self, key: &K, hash: u64) -> Option<&Arc<Slot<K, T>>> {
        self.slots
            .find(hash, |slot| slot.hash == hash && slot.key == *key)
    }

    /// Gives a slot to a key that has none.
    pub(crate) fn add(&mut self, key: K, hash: u64) -> &Arc<Slot<K, T>> {
        let slot = Arc::new(Slot::new(key, hash));
        let added = self.slots.insert_unique(hash, slot, |slot| slot.hash);
        added.into_mut()
    }

    /// Returns a number that no flight of this table has yet.
    pub(crate) fn number_flight(&mut self) -> u64 {
        self.last_flight += 1;
        self.last_flight
    }

    /// Forgets what `key` has used; a flight in progress goes on.
    pub(crate) fn reset(&self, key: &K, hash: u64) {
        if let Some(slot) = self.slot(key, hash) {
            slot.reset(Instant::now());
        }
    }

    /// What `key` has used, and its flight in progress.
    pub(crate) fn snapshot(
        &self,
        key: &K,
        hash: u64,
        policy: &BudgetPolicy,
        now: Instant,
    ) -> (Usage, Option<FlightSnapshot>) {
        match self.slot(key, hash) {
            Some(slot) => slot.snapshot(policy, now),
            None => (KeyBudget::default().usage(policy, now.into_std()), None),
        }
    }

    /// The slot of every key that has an attempt charged or a flight in progress.
    pub(crate) fn live_slots(&self, policy: &BudgetPolicy, now: Instant) -> Vec<Arc<Slot<K, T>>> {
        let slots = self.slots.iter();
        slots
            .filter(|slot| slot.is_live(policy, now))
            .cloned()
            .collect()
    }

    /// Follows the flights in progress.
    pub(crate) fn follow_all(&self) -> Vec<Following<T>> {
        let slots = self.slots.iter();
        slots.filter_map(|slot| slot.follow()).collect()
    }

    /// Forgets the keys that are idle, if that is due, and adds their slots to `idle`. Returns whether it was due by time.
    pub(crate) fn forget_idle(
        &mut self,
        policy: &BudgetPolicy,
        now: Instant,
        idle: &mut Vec<Arc<Slot<K, T>>>,
    ) -> bool {
        let is_due = self.sweep.is_due(policy.config.window, now.into_std());
        if is_due || self.sweep.has_grown(self.slots.len()) {
            let is_idle = |slot: &mut Arc<Slot<K, T>>| !slot.is_live(policy, now);
            idle.extend(self.slots.extract_if(is_idle));
            let (left, capacity) = (self.slots.len(), self.slots.capacity());
            if let Some(capacity) = self.sweep.swept(left, capacity) {
                self.slots.shrink_to(capacity, |slot| slot.hash);
            }
        }
        is_due
    }
}
