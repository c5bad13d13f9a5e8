//! How old a record is, without comparing the clocks of two hosts.
//!
//! Two clocks tell: etcd's, by the remaining time of the record's lease, which nobody renews; and this process's own, for a record
//! that it wrote itself or saw written. Both are used so that a record never seems older than it is. Otherwise a budget would
//! allow more than its maximum.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The records that this process has seen, by the names of their keys.
#[derive(Default)]
pub(crate) struct Ages(Mutex<HashMap<String, Seen>>);

#[derive(Clone, Copy)]
struct Seen {
    mod_revision: i64,
    at: Instant,
    /// Its age then, at least.
    age: Duration,
}

/// More are not remembered; etcd is then asked again.
const MOST: usize = 4096;

impl Ages {
    /// Notes that this record was this old at this moment, at least.
    pub(crate) fn saw(&self, name: &str, mod_revision: i64, age: Duration) {
        let at = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST && !seen.contains_key(name) {
            seen.clear();
        }
        let known = seen.get(name);
        // A second look at the same record knows no better, unless it was older than thought.
        if known.is_none_or(|known| known.mod_revision < mod_revision || known.now() < age) {
            seen.insert(
                name.to_owned(),
                Seen {
                    mod_revision,
                    at,
                    age,
                },
            );
        }
    }

    /// The age of this record, at least; `None` if this process has not seen it.
    pub(crate) fn of(&self, name: &str, mod_revision: i64) -> Option<Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen
            .get(name)
            .filter(|seen| seen.mod_revision == mod_revision)?;
        Some(seen.now())
    }
}

impl Seen {
    fn now(&self) -> Duration {
        self.age + self.at.elapsed()
    }
}

/// The age of a record, at least: written when its lease was `position` old, of which `remaining` of `granted` whole seconds are
/// left. Etcd rounds what remains down. After a change of its leader, all of the time remains again, and the record seems new.
pub(crate) fn by_lease(granted: i64, remaining: i64, position: Duration) -> Duration {
    let spent = granted.saturating_sub(remaining).saturating_sub(1);
    let spent = Duration::from_secs(u64::try_from(spent).unwrap_or(0));
    spent.saturating_sub(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_never_seems_older_than_it_is() {
        let seconds = Duration::from_secs_f64;
        for granted in [5, 86_400] {
            for millis in (0..4_000).step_by(37) {
                let lease_age = millis as f64 / 1000.0;
                // As etcd does.
                let remaining = (granted as f64 - lease_age) as i64;
                for position in [0.0, 0.5, 1.0, 2.25] {
                    let age = by_lease(granted, remaining, seconds(position));
                    assert!(age <= seconds((lease_age - position).max(0.0)));
                    assert!(age >= seconds((lease_age - position - 1.001).max(0.0)));
                }
            }
        }
    }

    #[test]
    fn a_record_seems_new_after_a_change_of_the_leader() {
        assert_eq!(by_lease(60, 60, Duration::from_secs(7)), Duration::ZERO);
        assert_eq!(by_lease(60, -1, Duration::from_secs(70)), Duration::ZERO);
    }
}
