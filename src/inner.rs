//! What all handles of a gate, its leaders and its permits share.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout};

use crate::clock::SharedClock;
use crate::error::GateError;
use crate::flight::Part;
use crate::key::GateKey;
use crate::ledger::Ledger;
use crate::lock::SpawnLock;
use crate::policy::BudgetPolicy;
use crate::shard::shard;
use crate::slot::Slot;
use crate::table::Table;

#[derive(Debug)]
pub(crate) struct Inner<K, T> {
    /// Each key has its place in one of these tables, by its hash, so that requests for different keys seldom meet.
    pub(crate) tables: [Mutex<Table<K, T>>; TABLES],
    /// Set first of all by a close, so that one which is dropped half-way closes all tables.
    pub(crate) is_closed: AtomicBool,
    /// Seeded at random: whoever chooses the keys cannot choose where they come to lie.
    hasher: RandomState,
    pub(crate) lock: Arc<dyn SpawnLock<K>>,
    pub(crate) clock: Arc<dyn SharedClock>,
    pub(crate) policy: BudgetPolicy,
    pub(crate) timeouts: Timeouts,
}

/// As many as it takes for a few dozen threads to be seldom in each other's way.
const TABLES: usize = 16;

/// How long each stage may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) lock: Duration,
    pub(crate) discover: Duration,
    pub(crate) launch: Duration,
    pub(crate) follow: Duration,
    pub(crate) drain: Duration,
}

/// How long a look into a ledger may take; it is worth no more waiting.
const LONGEST_PEEK: Duration = Duration::from_secs(1);

impl<K: GateKey, T> Inner<K, T> {
    pub(crate) fn new(
        lock: Arc<dyn SpawnLock<K>>,
        clock: Arc<dyn SharedClock>,
        policy: BudgetPolicy,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            tables: std::array::from_fn(|_| Mutex::default()),
            is_closed: AtomicBool::new(false),
            hasher: RandomState::new(),
            lock,
            clock,
            policy,
            timeouts,
        }
    }

    /// The hash of a key, which is computed once for each request: it picks the table and the place there.
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The table of the keys with such a hash.
    pub(crate) async fn table(&self, hash: u64) -> MutexGuard<'_, Table<K, T>> {
        lock_table(&self.tables[shard(hash, TABLES)]).await
    }

    /// Enters the gate by the table of `hash`, which is that of `key`: the caller gets its part, or is refused.
    #[inline]
    pub(crate) fn enter(
        &self,
        table: MutexGuard<'_, Table<K, T>>,
        key: K,
        hash: u64,
        can_discover: bool,
        unneeded: &mut Unneeded<K, T>,
    ) -> Result<Part<K, T>, GateError> {
        // Dropped before the key, whatever happens.
        let mut table = table;
        // Read under the mutex: a close that comes later finds the flight.
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(GateError::Closed);
        }
        // Read under the mutex, so that the times in the table are in order.
        let now = Instant::now();
        let is_sweep_due = table.forget_idle(&self.policy, now, &mut unneeded.idle);
        let number = table.number_flight();
        let entered = match table.slot(&key, hash) {
            Some(slot) => {
                unneeded.key = Some(key);
                slot.enter(&self.policy, number, can_discover, now)
            }
            None => {
                let slot = table.add(key, hash);
                slot.enter(&self.policy, number, can_discover, now)
            }
        };
        drop(table);
        if is_sweep_due {
            self.forget_idle(&mut unneeded.idle);
        }
        entered.map_err(GateError::from)
    }

    /// Forgets the idle keys of all tables where nobody is and that is due: no request may ever come for some of them.
    fn forget_idle(&self, idle: &mut Vec<Arc<Slot<K, T>>>) {
        for table in &self.tables {
            if let Ok(mut table) = table.try_lock() {
                table.forget_idle(&self.policy, Instant::now(), idle);
            }
        }
    }

    /// Reads the ledger of `key` without its lock, if there is one and it answers.
    pub(crate) async fn peek(&self, key: &K) -> Option<Ledger> {
        if !self.policy.is_in_ledger {
            return None;
        }
        let peeked = timeout(LONGEST_PEEK, self.lock.peek(key)).await;
        peeked.ok().flatten()
    }
}

/// What a request leaves over: its key, if there was a slot with that key, and slots that are idle. To be dropped after a
/// leader has its seat, while no table is held: a key's `Drop` is the user's code, and can panic.
#[derive(Debug)]
pub(crate) struct Unneeded<K, T> {
    key: Option<K>,
    idle: Vec<Arc<Slot<K, T>>>,
}

impl<K, T> Default for Unneeded<K, T> {
    fn default() -> Self {
        Self {
            key: None,
            idle: Vec::new(),
        }
    }
}

/// Locks a table. Nobody queues for it: a request that is kept and not polled would be handed the table, and keep it from all
/// others. Nor need they: a table is never held while a future waits, so whoever finds it held wakes itself and tries again
/// when it is polled next. (Tokio's `yield_now`, and a budget of operations that is used up, leave the waking to the thread's
/// scheduler, which may be held up itself.)
pub(crate) async fn lock_table<K, T>(table: &Mutex<Table<K, T>>) -> MutexGuard<'_, Table<K, T>> {
    let mut may_give_way = true;
    poll_fn(|context| {
        // What is ready at once must give way to the runtime's other tasks now and then. `try_lock` never does.
        let gives_way =
            mem::take(&mut may_give_way) && pin!(consume_budget()).poll(context).is_pending();
        let locked = if gives_way {
            None
        } else {
            table.try_lock().ok()
        };
        if locked.is_none() {
            context.waker().wake_by_ref();
        }
        locked.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
