//! Forgetting idle keys: when to look for them, and how.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};

/// Says when to look for idle keys: about once in a window, so that each key is looked at a bounded number of times in its
/// life, and memory follows the keys of the last two windows.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    due_at: Option<Instant>,
}

/// A very short window does not make a large table be swept all the time, and a very long one does not keep keys whose
/// backend has long been stable.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

impl Sweep {
    pub(crate) fn is_due(&mut self, window: Duration, now: Instant) -> bool {
        if self.due_at.is_some_and(|due_at| now < due_at) {
            return false;
        }
        let is_first = self.due_at.is_none();
        self.due_at = now.checked_add(window.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL));
        !is_first
    }
}

/// Keeps the entries that are live and gives back the memory of the others.
pub(crate) fn retain_live<K: Eq + Hash, V, S: BuildHasher>(
    keys: &mut HashMap<K, V, S>,
    mut is_live: impl FnMut(&mut V) -> bool,
) {
    keys.retain(|_, value| is_live(value));
    if keys.capacity() > 4 * keys.len() {
        keys.shrink_to(2 * keys.len());
    }
}
