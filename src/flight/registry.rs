//! The registry of keys: an entry for each key that is in use, in shards.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::entry::{Entry, Role};
use super::shard::Shard;
use crate::budget::BudgetPolicy;
use crate::error::GateError;
use crate::key::GateKey;
use crate::util::shard;

#[derive(Debug)]
pub(crate) struct Registry<K, T> {
    /// Each key has its place in one of these shards, by its hash, so that requests for different keys seldom meet.
    pub(crate) shards: [Mutex<Shard<K, T>>; SHARDS],
    /// Set first of all by a close, so that one which is dropped half-way closes all shards.
    is_closed: AtomicBool,
    /// Randomly seeded, so keys cannot be chosen to collide.
    hasher: RandomState,
}

/// As many as it takes for a few dozen threads to be seldom in each other's way.
const SHARDS: usize = 16;

impl<K: GateKey, T> Registry<K, T> {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            is_closed: AtomicBool::new(false),
            hasher: RandomState::new(),
        }
    }

    /// Refuses all requests from now on.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// The hash of a key, which is computed once for each request: it picks the table and the place there.
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The shard of the keys with such a hash.
    pub(crate) async fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<K, T>> {
        lock_shard(&self.shards[shard(hash, SHARDS)]).await
    }

    /// Enters the gate by the shard of `hash`, which is that of `key`: the caller gets its role, or is refused.
    #[inline]
    pub(crate) fn enter(
        &self,
        shard: MutexGuard<'_, Shard<K, T>>,
        key: K,
        hash: u64,
        policy: &BudgetPolicy,
        can_look: bool,
        leftovers: &mut Leftovers<K, T>,
    ) -> Result<Role<K, T>, GateError> {
        // Dropped before the key, whatever happens.
        let mut shard = shard;
        // Read under the mutex: a close that comes later finds the flight.
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(GateError::Closed);
        }
        // Read under the mutex, so that the times in the shard are in order.
        let now = Instant::now();
        let is_sweep_due = shard.forget_idle(policy, now, &mut leftovers.idle);
        let number = shard.number_flight();
        let role = match shard.entry(&key, hash) {
            Some(entry) => {
                leftovers.key = Some(key);
                entry.enter(policy, number, can_look, now)
            }
            None => {
                let entry = shard.add(key, hash);
                entry.enter(policy, number, can_look, now)
            }
        };
        drop(shard);
        if is_sweep_due {
            self.forget_idle(policy, &mut leftovers.idle);
        }
        role.map_err(GateError::from)
    }

    /// Forgets the idle keys of all shards where nobody is and that is due: no request may ever come for some of them.
    fn forget_idle(&self, policy: &BudgetPolicy, idle: &mut Vec<Arc<Entry<K, T>>>) {
        for shard in &self.shards {
            if let Ok(mut shard) = shard.try_lock() {
                shard.forget_idle(policy, Instant::now(), idle);
            }
        }
    }
}

/// Values to drop after the leader owns its flight and the shard is unlocked: a key's `Drop` may panic.
#[derive(Debug)]
pub(crate) struct Leftovers<K, T> {
    /// The request's key, if there was an entry with that key.
    key: Option<K>,
    idle: Vec<Arc<Entry<K, T>>>,
}

impl<K, T> Default for Leftovers<K, T> {
    fn default() -> Self {
        Self {
            key: None,
            idle: Vec::new(),
        }
    }
}

/// Locks a shard. Polls `try_lock`: a queued waiter that is never polled would block everyone. A shard is never held while a
/// future waits, so a request that finds it held wakes itself and tries again when it is polled next. (Tokio's `yield_now`, and
/// a used-up budget of operations, leave the waking to the thread's scheduler, which may be held up itself.)
pub(crate) async fn lock_shard<K, T>(shard: &Mutex<Shard<K, T>>) -> MutexGuard<'_, Shard<K, T>> {
    let mut may_give_way = true;
    poll_fn(|context| {
        // What is ready at once must give way to the runtime's other tasks now and then. `try_lock` never does.
        let gives_way =
            mem::take(&mut may_give_way) && pin!(consume_budget()).poll(context).is_pending();
        let locked = if gives_way {
            None
        } else {
            shard.try_lock().ok()
        };
        if locked.is_none() {
            context.waker().wake_by_ref();
        }
        locked.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
