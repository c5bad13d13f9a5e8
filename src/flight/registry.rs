//! The registry: all entries of a gate, in shards.

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
use crate::util::shard_index;

#[derive(Debug)]
pub(crate) struct Registry<K, T> {
    /// Sharded by the key's hash, so requests for different keys rarely contend.
    pub(crate) shards: [Mutex<Shard<K, T>>; SHARDS],
    /// Set first by `close`, so that the gate is closed even if that call is dropped.
    is_closed: AtomicBool,
    /// Randomly seeded, so keys cannot be chosen to collide.
    hasher: RandomState,
}

/// Enough for a few dozen threads to rarely contend.
const SHARDS: usize = 16;

impl<K: GateKey, T> Registry<K, T> {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            is_closed: AtomicBool::new(false),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Refuses all requests from now on. Returns whether the gate was open.
    pub(crate) fn close(&self) -> bool {
        !self.is_closed.swap(true, Ordering::SeqCst)
    }

    /// The hash of a key, computed once per request. It picks the shard and the place in its table.
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Locks the shard of the keys with this hash.
    pub(crate) async fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<K, T>> {
        lock_shard(&self.shards[shard_index(hash, SHARDS)]).await
    }

    /// Gives a request for `key`, whose hash is `hash`, its role in the locked shard, or refuses it.
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
        // A local, so that it is unlocked before the key is dropped, also on a panic.
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

    /// Sweeps all shards that are due and not locked, since no request may ever come for their keys.
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
    /// The request's key, if the entry already existed with its own.
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

/// Locks a shard. Polls `try_lock`: a queued waiter that is never polled would block everyone. A shard is never locked across an
/// await, so a request that finds it locked wakes itself and tries again. (Tokio's `yield_now`
/// and cooperative budget would leave the wake-up to the thread's scheduler, which may be blocked.)
pub(crate) async fn lock_shard<K, T>(shard: &Mutex<Shard<K, T>>) -> MutexGuard<'_, Shard<K, T>> {
    let mut may_give_way = true;
    poll_fn(|context| {
        // A future that is always ready must yield to other tasks now and then, which `try_lock` never does.
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
