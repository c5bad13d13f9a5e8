//! Caps on the lock files that this process has open at once, so that a gate waits instead of running out of descriptors.
//!
//! There is a cap for each use, so that no use waits for another: a lease is held for a whole launch, a wait for a holder may
//! take as long, and a look takes a moment. Only a lease waits for a lease, until its lock deadline at most.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::sys;
use crate::lock::error::SpawnLockError;

/// The right to have a lock file open, until it is dropped.
pub(super) type Slot = SemaphorePermit<'static>;

/// The caps of this process.
struct Caps {
    held: Semaphore,
    watched: Semaphore,
    looked_at: Semaphore,
}

/// A look takes microseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LONGEST_LOOKS: u32 = 50;

const FEWEST: usize = 16;
const MOST: usize = 1024;

/// The cap on leases: a quarter of the descriptors, since a lease may have two and the rest of the program needs some, too.
fn held_at_once() -> usize {
    // The limit is that of the first use.
    static HELD: OnceLock<usize> = OnceLock::new();
    *HELD.get_or_init(|| (sys::descriptor_limit() / 4).clamp(FEWEST, MOST))
}

impl Caps {
    /// The caps that go with this cap on leases.
    fn of(held: usize) -> Self {
        Self {
            held: Semaphore::new(held),
            watched: Semaphore::new(held / 2),
            looked_at: Semaphore::new(held / 4),
        }
    }
}

fn caps() -> &'static Caps {
    static CAPS: OnceLock<Caps> = OnceLock::new();
    CAPS.get_or_init(|| Caps::of(held_at_once()))
}

/// The right to open one more lock file for a lease; `None` if that has to be waited for.
pub(super) fn for_lease_now() -> Option<Slot> {
    caps().held.try_acquire().ok()
}

/// Waits until this process may open one more lock file for a lease.
pub(super) async fn for_lease(path: &Path, deadline: Instant) -> Result<Slot, SpawnLockError> {
    match timeout_at(deadline, caps().held.acquire()).await {
        Ok(Ok(slot)) => Ok(slot),
        _ => Err(SpawnLockError::TooManyLocks {
            path: path.to_path_buf(),
            limit: held_at_once(),
        }),
    }
}

/// The right to keep a lock file open while waiting for its holder; `None` if too many are.
pub(super) fn for_wait() -> Option<Slot> {
    caps().watched.try_acquire().ok()
}

/// Waits until this process may open a lock file for a moment; not for long, since a file system that hangs must not keep others
/// from looking.
///
/// Does not queue: its future may be one that its caller has stopped polling.
pub(super) async fn for_look() -> Option<Slot> {
    for _ in 0..LONGEST_LOOKS {
        if let Ok(slot) = caps().looked_at.try_acquire() {
            return Some(slot);
        }
        sleep(LOOK_AGAIN).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_looks_have_smaller_caps_than_leases() {
        let caps = Caps::of(64);
        let caps = [caps.held, caps.watched, caps.looked_at];
        assert_eq!(caps.map(|cap| cap.available_permits()), [64, 32, 16]);
    }

    #[tokio::test]
    async fn a_look_counts_against_its_cap_until_it_is_over() {
        assert!(for_look().await.is_some());
    }
}
