//! What an operator does with a gate: look, reset, abort, report a backend's end, close.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::time::Instant;

use super::SpawnGate;
use crate::budget::{BudgetUpdate, ExhaustionReason, Settlement};
use crate::error::{GateError, LaunchError, LockError, Stage, TimeoutError};
use crate::flight::{
    Flight, HeldLock, KeySnapshot, LONGEST_CALL, LockWait, Outcome, Shared, Tried, answered,
    lock_shard,
};
use crate::key::{GateKey, key_label};
use crate::ledger::{BackendEnd, LedgerSession};
use crate::lock::{LedgerUpdate, SpawnLockError};

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
    pub async fn snapshot(&self, key: impl Into<K>) -> KeySnapshot<K> {
        let key = key.into();
        let Shared {
            registry, policy, ..
        } = &*self.shared;
        let hash = registry.hash(&key);
        let read = self.shared.read_ledger(&key).await;
        let now = Instant::now();
        let shard = registry.shard(hash).await;
        let (mut usage, flight) = shard.snapshot(&key, hash, policy, now);
        drop(shard);
        if let Some(read) = read {
            usage = read.ledger.usage(policy, self.shared.clock.now());
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
        let Shared {
            registry, policy, ..
        } = &*self.shared;
        let mut snapshots = Vec::new();
        for shard in &registry.shards {
            let shard = lock_shard(shard).await;
            let now = Instant::now();
            let entries = shard.live_entries(policy, now);
            // Before keys are cloned, which is the user's code.
            drop(shard);
            snapshots.extend(entries.iter().map(|entry| {
                let (usage, flight) = entry.snapshot(policy, now);
                KeySnapshot::new(entry.key.clone(), usage, flight)
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
    pub async fn reset(&self, key: impl Into<K>) -> Result<(), GateError> {
        let key = key.into();
        let hash = self.shared.registry.hash(&key);
        self.shared.registry.shard(hash).await.reset(&key, hash);
        if !self.shared.policy.is_in_ledger {
            return Ok(());
        }
        // In a task of its own: a caller that is kept and not polled must not keep the lock.
        let reset = tokio::spawn(reset_ledger(Arc::clone(&self.shared), key, hash));
        match reset.await {
            Ok(reset) => reset,
            Err(why) if why.is_panic() => resume_unwind(why.into_panic()),
            Err(_) => Err(GateError::ShutDown),
        }
    }

    /// Ends the flight of `key` that is in progress: its launcher's future is dropped, the lock released, and all callers hear
    /// [`LaunchError::Aborted`](crate::LaunchError::Aborted). Returns false if there was none.
    ///
    /// If it was launching, something may have been started: the attempt stays charged, and what was started is for the launcher
    /// to end. A permit that a caller of [`acquire`](Self::acquire) holds stays with it, and with it the spawn lock, until it is
    /// settled or dropped. A flight whose launcher blocks its thread ends when the launcher lets go of that.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the flight is aborted also if the future is dropped while it waits for the flight's end.
    ///
    /// # Panics
    ///
    /// If a flight is in progress, outside of a tokio runtime with time enabled.
    pub async fn abort(&self, key: impl Into<K>) -> bool {
        let key = key.into();
        let registry = &self.shared.registry;
        let hash = registry.hash(&key);
        let flight = registry.shard(hash).await.flight(&key, hash);
        let Some(flight) = flight else {
            return false;
        };
        let outcome = flight.follow();
        let key = flight.label();
        self.end_flight(&flight, LaunchError::Aborted { key }.into());
        if let Some(mut outcome) = outcome {
            let deadline = Instant::now() + self.shared.timeouts.drain;
            outcome.outcome(deadline).await;
        }
        true
    }

    /// Takes note that a backend has ended, for whoever starts and watches backends. `end` names the launch by the fencing token
    /// that its permit had.
    ///
    /// If it ended in an orderly way, the charge of its launch is taken back, so that the next start is not refused for it. If it
    /// failed, the charge stays, and the reason is told in the next refusal. Either way that changes something only if the launch
    /// is the last that succeeded, and its success has not reset the budget yet: so only with
    /// [`stable_after`](crate::SpawnGateBuilder::stable_after).
    ///
    /// It does not wait for the spawn lock, so a backend may report its own end while a launcher that holds the lock waits for it
    /// to go.
    ///
    /// # Errors
    ///
    /// [`GateError::Lock`] if the report cannot be written beside the ledger; the launch then stays charged.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the report may be lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use spawn_gate::admin::BackendEnd;
    /// use spawn_gate::{InMemorySpawnLock, SpawnGate, launcher_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), spawn_gate::GateError> {
    /// let gate: SpawnGate<String, u64> = SpawnGate::builder(InMemorySpawnLock::new())
    ///     .stable_after(Duration::from_secs(30))
    ///     .build();
    /// let indexer = launcher_fn(|_| async { Ok(None) }, |launch| async move { Ok(launch.fencing_token) });
    /// let launch = gate.launch("indexer", indexer).await?.value;
    /// assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 1);
    ///
    /// gate.backend_ended("indexer", BackendEnd::orderly(launch)).await?;
    /// assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn backend_ended(&self, key: impl Into<K>, end: BackendEnd) -> Result<(), GateError> {
        let key = key.into();
        let Shared {
            registry,
            policy,
            lock,
            ..
        } = &*self.shared;
        let hash = registry.hash(&key);
        let read = self.shared.read_ledger(&key).await;
        let now = self.shared.clock.now();
        let reported = match &read {
            // It stayed up for long enough, so its success has reset the budget.
            Some(read) if read.ledger.is_stable(policy, now) => Ok(()),
            _ if !policy.is_in_ledger => Ok(()),
            _ => answered(LONGEST_CALL, lock.report_backend_end(&key, &end)).await,
        };
        let shard = registry.shard(hash).await;
        shard.backend_ended(&key, hash, policy, &end);
        drop(shard);
        reported.map_err(|error| LockError::new(key_label(&key), error).into())
    }

    /// Closes the gate: every request from now on is refused, and this call waits for the flights in progress to end.
    ///
    /// Followers that are waiting hear their flight's outcome; give their tasks time to pass it on before the runtime ends.
    /// Flights that have not ended by the drain timeout are ended as by [`abort`](Self::abort), except that their callers hear
    /// [`GateError::Closed`].
    /// Calling it again, from any handle, waits again.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] with [`Stage::Drain`] if a flight had to be ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the gate stays closed, only the waiting ends.
    ///
    /// # Panics
    ///
    /// If a flight is in progress, outside of a tokio runtime with time enabled.
    pub async fn close(&self) -> Result<(), TimeoutError> {
        let registry = &self.shared.registry;
        registry.close();
        let mut flights = Vec::new();
        for shard in &registry.shards {
            let in_progress = lock_shard(shard).await.flights();
            flights.extend(in_progress.into_iter().filter_map(|flight| {
                let outcome = flight.follow()?;
                Some((flight, outcome))
            }));
        }
        let limit = self.shared.timeouts.drain;
        let deadline = Instant::now() + limit;
        let mut is_drained = true;
        for (flight, mut outcome) in flights {
            if outcome.outcome(deadline).await.is_none() {
                is_drained = false;
                self.end_flight(&flight, GateError::Closed);
            }
        }
        if is_drained {
            return Ok(());
        }
        Err(TimeoutError {
            key: None,
            stage: Stage::Drain,
            after: limit,
            waiting_for: None,
            attempts_left: None,
        })
    }

    /// Ends a flight with `error`: by its task, or here if its permit is with a caller.
    fn end_flight(&self, flight: &Flight<K, T>, error: GateError) {
        let Some(error) = flight.interrupt(error) else {
            return;
        };
        let policy = &self.shared.policy;
        let update = match policy.is_in_ledger {
            true => BudgetUpdate::Keep,
            false => BudgetUpdate::Settle {
                settlement: Settlement::Failed,
                reason: Some(Arc::new(ExhaustionReason::launch_failed(error.message()))),
                launch: 0,
                now: Instant::now().into_std(),
            },
        };
        flight.end(policy, Outcome::Failed(error), update);
    }
}

/// Resets the ledger of `key`, for which it waits for the lock.
async fn reset_ledger<K: GateKey, T>(
    shared: Arc<Shared<K, T>>,
    key: K,
    hash: u64,
) -> Result<(), GateError> {
    let mut wait = LockWait::default();
    let lease = loop {
        let (policy, clock) = (shared.policy, Arc::clone(&shared.clock));
        let update = LedgerUpdate::new(move |reading, fencing_token| {
            let session = LedgerSession::take_over(reading, fencing_token, &policy, clock.now());
            session.map(LedgerSession::into_reset)
        });
        match wait.try_once(&shared, &key, update).await? {
            Tried::Taken(lease) => break lease,
            Tried::Held(_) | Tried::Failed => wait.until_released(&shared, &key).await,
        }
    };
    let mut held = HeldLock::new(lease, None);
    let settled = held
        .settle(Settlement::Refund, None, shared.clock.now())
        .await;
    drop(held);
    // What a flight that ended meanwhile brought along is outdated.
    shared.registry.shard(hash).await.reset(&key, hash);
    // Once it is reset, only the loss of the lock makes that void.
    settled
        .or_else(|error| if error.is_lost() { Err(error) } else { Ok(()) })
        .map_err(|error: SpawnLockError| LockError::new(key_label(&key), error).into())
}
