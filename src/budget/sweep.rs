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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_swept_once_per_window_and_not_by_its_first_request() {
        let window = Duration::from_secs(10);
        let now = Instant::now();
        let mut sweep = Sweep::default();
        assert!(!sweep.is_due(window, now));
        assert!(!sweep.is_due(window, now + window - Duration::from_millis(1)));
        assert!(sweep.is_due(window, now + window));
        assert!(!sweep.is_due(window, now + window));
        assert!(sweep.is_due(window, now + 2 * window));
    }

    #[test]
    fn a_table_is_swept_early_once_it_has_twice_the_keys_that_the_last_sweep_left() {
        let mut sweep = Sweep::default();
        assert!(!sweep.has_grown(2 * FEW - 1));
        assert!(sweep.has_grown(2 * FEW));
        sweep.swept(1000, 1000);
        assert!(!sweep.has_grown(1999));
        assert!(sweep.has_grown(2000));
    }

    #[test]
    fn a_table_with_room_for_more_than_four_times_its_keys_is_shrunk_to_twice_its_keys() {
        let mut sweep = Sweep::default();
        assert_eq!(sweep.swept(1000, 4000), None);
        assert_eq!(sweep.swept(1000, 4001), Some(2000));
        assert_eq!(sweep.swept(10, 4 * FEW), None);
        assert_eq!(sweep.swept(10, 4 * FEW + 1), Some(20));
    }
}
