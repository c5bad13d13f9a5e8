//! When to look for idle keys, to forget them.

use std::time::{Duration, Instant};

/// Says when to look for idle keys: about once in a window, and when there are twice as many keys as the last look left. So
/// each key is looked at a bounded number of times in its life, and memory follows the keys that are in use.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    due_at: Option<Instant>,
    left: usize,
}

/// A very short window does not make a large table be swept all the time, and a very long one does not keep keys whose
/// backend has long been stable.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// So few keys are not worth a look out of turn, nor is the memory for them worth giving back.
const FEW: usize = 64;

impl Sweep {
    /// Whether it is time for a look.
    pub(crate) fn is_due(&mut self, window: Duration, now: Instant) -> bool {
        if self.due_at.is_some_and(|due_at| now < due_at) {
            return false;
        }
        let is_first = self.due_at.is_none();
        self.due_at = now.checked_add(window.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL));
        !is_first
    }

    /// Whether there are so many keys that a look is due before its time.
    pub(crate) fn has_grown(&self, keys: usize) -> bool {
        keys >= 2 * self.left.max(FEW)
    }

    /// Notes how many keys a look left. Returns the capacity that their table is to be shrunk to, if it is too large.
    pub(crate) fn swept(&mut self, left: usize, capacity: usize) -> Option<usize> {
        self.left = left;
        (capacity > 4 * left.max(FEW)).then_some(2 * left)
    }
}
