//! A shard of the registry: an entry for each key in use. The registry keeps it behind a mutex.

use std::num::NonZeroU64;
use std::sync::Arc;

use hashbrown::HashTable;
use tokio::time::Instant;

use super::entry::{Entry, Flight};
use crate::budget::{BudgetPolicy, Sweep};
use crate::key::GateKey;

#[derive(Debug)]
pub(crate) struct Shard<K, T> {
    entries: HashTable<Arc<Entry<K, T>>>,
    last_flight: NonZeroU64,
    sweep: Sweep,
}

impl<K, T> Default for Shard<K, T> {
    fn default() -> Self {
        Self {
            entries: HashTable::new(),
            last_flight: NonZeroU64::MIN,
            sweep: Sweep::default(),
        }
    }
}

impl<K: GateKey, T> Shard<K, T> {
    /// The entry of `key`, if it has one.
    pub(crate) fn entry(&self, key: &K, hash: u64) -> Option<&Arc<Entry<K, T>>> {
        self.entries
            .find(hash, |entry| entry.hash == hash && entry.key == *key)
    }

    /// Adds an entry for a key that has none.
    pub(crate) fn add(&mut self, key: K, hash: u64) -> &Arc<Entry<K, T>> {
        let entry = Arc::new(Entry::new(key, hash));
        let added = self.entries.insert_unique(hash, entry, |entry| entry.hash);
        added.into_mut()
    }

    /// Returns a number that no flight of this shard has had.
    pub(crate) fn number_flight(&mut self) -> NonZeroU64 {
        self.last_flight = self.last_flight.saturating_add(1);
        self.last_flight
    }

    /// The entry of every key that has an attempt charged or a flight in progress.
    pub(crate) fn live_entries(
        &self,
        policy: &BudgetPolicy,
        now: Instant,
    ) -> Vec<Arc<Entry<K, T>>> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.is_live(policy, now))
            .cloned()
            .collect()
    }

    /// The flights in progress.
    pub(crate) fn flights(&self) -> Vec<Flight<K, T>> {
        let entries = self.entries.iter();
        entries.filter_map(Entry::current_flight).collect()
    }

    /// Removes idle keys if a sweep is due, and moves their entries to `idle`. Returns whether the sweep was due by time.
    pub(crate) fn forget_idle(
        &mut self,
        policy: &BudgetPolicy,
        now: Instant,
        idle: &mut Vec<Arc<Entry<K, T>>>,
    ) -> bool {
        let is_due = self.sweep.is_due(policy.config.window, now.into_std());
        if is_due || self.sweep.has_grown(self.entries.len()) {
            let is_idle = |entry: &mut Arc<Entry<K, T>>| !entry.is_live(policy, now);
            idle.extend(self.entries.extract_if(is_idle));
            let (left, capacity) = (self.entries.len(), self.entries.capacity());
            if let Some(capacity) = self.sweep.swept(left, capacity) {
                self.entries.shrink_to(capacity, |entry| entry.hash);
            }
        }
        is_due
    }
}
