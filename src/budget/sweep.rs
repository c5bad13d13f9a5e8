//! When to sweep a table for idle keys.

use std::time::{Duration, Instant};

/// Schedules sweeps: about one per window, and one when there are twice as many keys as the last sweep left. So each key is
/// visited a bounded number of times, and memory follows the keys in use.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    due_at: Option<Instant>,
    left: usize,
}

/// Bound the interval: a short window must not sweep a large table all the time, and a long one must not keep keys whose
/// backend has long been stable.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// A table of this size is neither swept early nor shrunk.
const FEW: usize = 64;

impl Sweep {
    /// Whether a sweep is due by time.
    pub(crate) fn is_due(&mut self, window: Duration, now: Instant) -> bool {
        if self.due_at.is_some_and(|due_at| now < due_at) {
            return false;
        }
        let is_first = self.due_at.is_none();
        self.due_at = now.checked_add(window.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL));
        !is_first
    }

    /// Whether the table has grown so much that a sweep is due early.
    pub(crate) fn has_grown(&self, keys: usize) -> bool {
        keys >= 2 * self.left.max(FEW)
    }

    /// Records how many keys a sweep left. Returns the capacity to shrink the table to, if it is too large.
    pub(crate) fn swept(&mut self, left: usize, capacity: usize) -> Option<usize> {
        self.left = left;
        (capacity > 4 * left.max(FEW)).then_some(2 * left)
    }
}
