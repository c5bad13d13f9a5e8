//! What an operator does with a gate: look, reset, close.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::error::{GateError, LockError, Stage, TimeoutError};
use crate::gate::SpawnGate;
use crate::held::Held;
use crate::inner::{Inner, lock_table};
use crate::key::{GateKey, key_label};
use crate::lock_wait::LockWait;
use crate::open_ledger;
use crate::snapshot::KeySnapshot;

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Returns what `key` has used of its budget, and its flight, if one is in progress.
    ///
    /// If the lock keeps a ledger, the budget is that of all processes, and read from there. If it cannot be read within a
    /// second, it is this process's own count.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Panics
    ///
    /// If the lock keeps a ledger, outside of a tokio runtime with time enabled.
    pub async fn snapshot(&self, key: K) -> KeySnapshot<K> {
        let inner = &*self.inner;
        let hash = inner.hash(&key);
        let ledger = inner.peek(&key).await;
        let now = Instant::now();
        let table = inner.table(hash).await;
        let (mut usage, flight) = table.snapshot(&key, hash, &inner.policy, now);
        drop(table);
        if let Some(ledger) = ledger {
            usage = open_ledger::usage(&ledger, &inner.policy, &*inner.clock);
        }
        KeySnapshot::new(key, usage, flight)
    }

    /// Returns a snapshot of every key that has an attempt charged or a flight in progress, in no particular order, as far as
    /// this process knows; it reads no ledger.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn snapshots(&self) -> Vec<KeySnapshot<K>> {
        let mut snapshots = Vec::new();
        for table in &self.inner.tables {
            let table = lock_table(table).await;
            let now = Instant::now();
            let slots = table.live_slots(&self.inner.policy, now);
            // Before keys are cloned, which is the user's code.
            drop(table);
            snapshots.extend(slots.iter().map(|slot| {
                let (usage, flight) = slot.snapshot(&self.inner.policy, now);
                KeySnapshot::new(slot.key.clone(), usage, flight)
            }));
        }
        snapshots
    }

    /// Forgets what `key` has used, for an operator who has mended the cause. A flight in progress goes on, and its failure
    /// does not count.
    ///
    /// If the lock keeps a ledger, it is reset for all processes, for which this waits for the lock, so for a launch in
    /// progress, by any process. Other processes that are refusing requests notice it within a second.
    ///
    /// # Errors
    ///
    /// [`GateError::Lock`] if the lock cannot be taken or the ledger not be written, [`GateError::Timeout`] with
    /// [`Stage::Lock`] if the lock is not free in time, [`GateError::ShutDown`] if the runtime is shut down meanwhile. This
    /// process has forgotten its count all the same. A retry helps as with [`launch`](Self::launch).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. The reset of a ledger goes on if the future is dropped: in a task of its own, it waits for the lock as
    /// long as it would have.
    ///
    /// # Panics
    ///
    /// If the lock keeps a ledger, outside of a tokio runtime with time enabled.
    pub async fn reset(&self, key: &K) -> Result<(), GateError> {
        let inner = &self.inner;
        let hash = inner.hash(key);
        inner.table(hash).await.reset(key, hash);
        if !inner.policy.is_in_ledger {
            return Ok(());
        }
        // In a task of its own: a caller that is kept and not polled must not keep the lock.
        let reset = tokio::spawn(reset_ledger(Arc::clone(inner), key.clone(), hash));
        match reset.await {
            Ok(reset) => reset,
            Err(why) if why.is_panic() => resume_unwind(why.into_panic()),
            Err(_) => Err(GateError::ShutDown),
        }
    }

    /// Closes the gate: every request from now on is refused, and this call waits for the flights in progress to end.
    ///
    /// Followers that are waiting hear their flight's outcome; give their tasks time to pass it on before the runtime ends.
    /// Calling it again, from any handle, waits again.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] with [`Stage::Drain`] if a flight has not ended in time; [`snapshots`](Self::snapshots) tells which.
    /// The gate stays closed; a retry waits on.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the gate stays closed, only the waiting ends.
    ///
    /// # Panics
    ///
    /// If a flight is in progress, outside of a tokio runtime with time enabled.
    pub async fn close(&self) -> Result<(), TimeoutError> {
        self.inner.is_closed.store(true, Ordering::SeqCst);
        let mut flights = Vec::new();
        for table in &self.inner.tables {
            flights.append(&mut lock_table(table).await.follow_all());
        }
        let limit = self.inner.timeouts.drain;
        let deadline = Instant::now() + limit;
        for mut flight in flights {
            if flight.outcome(deadline).await.is_none() {
                return Err(TimeoutError {
                    key: None,
                    stage: Stage::Drain,
                    after: limit,
                    waiting_for: None,
                });
            }
        }
        Ok(())
    }
}

/// Resets the ledger of `key`, for which it waits for the lock.
async fn reset_ledger<K: GateKey, T>(
    inner: Arc<Inner<K, T>>,
    key: K,
    hash: u64,
) -> Result<(), GateError> {
    let mut wait = LockWait::new(&inner);
    let lease = wait.take(&inner, &key, |_| {}).await?;
    let mut held = Held::new(lease, &inner.policy, &inner.clock);
    if let Some(ledger) = &mut held.ledger {
        ledger.reset();
    }
    let written = held.write_ledger().await;
    drop(held);
    // What a flight that ended meanwhile brought along is outdated.
    inner.table(hash).await.reset(&key, hash);
    written.map_err(|error| LockError::new(key_label(&key), error).into())
}
