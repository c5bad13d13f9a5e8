//! The methods for operators: snapshots, reset, abort, report of a backend's end, close.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::time::Instant;

use super::SpawnGate;
use crate::budget::{BudgetUpdate, ExhaustionReason, KeyState, Settlement};
use crate::error::{GateError, LaunchError, LockError, Stage, TimeoutError};
use crate::flight::{
    Flight, HeldLock, KeySnapshot, LONGEST_CALL, LockWait, Outcome, Shared, Tried, answered,
    lock_shard,
};
use crate::key::{GateKey, key_label};
use crate::ledger::{BackendEnd, Known, LedgerSession, this_process};
use crate::lock::{LedgerUpdate, SpawnLockError};
use crate::statistics::{ActiveFlights, Statistics};
use crate::trace;

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Returns what `key` has used of its budget, and its flight, if one is in progress.
    ///
    /// If the lock keeps a ledger, the budget is read from there and is that of all processes. If the ledger cannot be read
    /// within a second, the budget is this process's own count.
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
        let (mut usage, flight) = match shard.entry(&key, hash) {
            Some(entry) => entry.snapshot(policy, now),
            None => (KeyState::default().usage(policy, now.into_std()), None),
        };
        drop(shard);
        if let Some(read) = read {
            usage = read.ledger.usage(policy, self.shared.clock.now());
        }
        KeySnapshot::new(key, usage, flight)
    }

    /// Returns a snapshot of every key that has an attempt charged or a flight in progress in this process, in no particular
    /// order. Reads no ledger.
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
            // Unlocked before keys are cloned, which is user code.
            drop(shard);
            snapshots.extend(entries.iter().map(|entry| {
                let (usage, flight) = entry.snapshot(policy, now);
                KeySnapshot::new(entry.key.clone(), usage, flight)
            }));
        }
        snapshots
    }

    /// Returns what this gate has done since it was built, and what it does now: requests, launches, waits for the lock, flights,
    /// followers, losses of the lock. For a metrics page; requests pay one increment for it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use spawn_gate::{InMemorySpawnLock, SpawnGate, launcher_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), spawn_gate::GateError> {
    /// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
    /// let indexer = launcher_fn(|_| async { Ok(None) }, |_| async { Ok(7201) });
    /// gate.launch("indexer", indexer).await?;
    ///
    /// let statistics = gate.statistics().await;
    /// assert_eq!(statistics.requests.led, 1);
    /// assert_eq!(statistics.launches["launched"].count, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn statistics(&self) -> Statistics {
        let registry = &self.shared.registry;
        let mut active = ActiveFlights::default();
        let mut followers = 0;
        for shard in &registry.shards {
            let flights = lock_shard(shard).await.flights();
            for (stage, following) in flights.iter().filter_map(Flight::activity) {
                match stage {
                    Stage::Discover => active.discover += 1,
                    Stage::Launch => active.launch += 1,
                    _ => active.lock += 1,
                }
                followers += following as u64;
            }
        }
        self.shared.recorder.view(active, followers)
    }

    /// Resets the budget of `key`, once an operator has fixed the cause of its failures. A flight in progress continues, and
    /// its failure does not count.
    ///
    /// If the lock keeps a ledger, this resets the budget of all processes. For that it takes the lock, so it waits for a launch
    /// in progress by any process. Other processes that are refusing requests notice the reset within a second.
    ///
    /// # Errors
    ///
    /// Also on an error, this process's own count is reset.
    ///
    /// - [`GateError::Lock`]: the lock cannot be taken, was lost, or its ledger cannot be written. [`GateError::retry_helps`]
    ///   says whether a retry helps.
    /// - [`GateError::Timeout`] with [`Stage::Lock`]: the lock was not free in time. A retry helps.
    /// - [`GateError::ShutDown`]: the runtime was shut down. A retry helps only on another runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. If the future is dropped, the reset of a ledger continues in its own task, with the same deadline for the
    /// lock.
    ///
    /// # Panics
    ///
    /// If the lock keeps a ledger, outside of a tokio runtime with time enabled.
    pub async fn reset(&self, key: impl Into<K>) -> Result<(), GateError> {
        let key = key.into();
        let hash = self.shared.registry.hash(&key);
        reset_entry(&self.shared, &key, hash).await;
        if !self.shared.policy.is_in_ledger {
            trace::reset(|| key_label(&key).into());
            return Ok(());
        }
        // In its own task, so that a caller that stops polling does not keep the lock.
        let reset = tokio::spawn(reset_ledger(Arc::clone(&self.shared), key, hash));
        match reset.await {
            Ok(reset) => reset,
            Err(why) if why.is_panic() => resume_unwind(why.into_panic()),
            Err(_) => Err(GateError::ShutDown),
        }
    }

    /// Ends the flight of `key`: drops its launcher's future, releases the lock, and gives all callers
    /// [`LaunchError::Aborted`](crate::error::LaunchError::Aborted). Returns false if no flight was in progress.
    ///
    /// A launch that had begun stays charged, since something may have been started; the launcher must end what it started (with
    /// `kill_on_drop`, say). A permit that a caller of [`acquire`](Self::acquire) holds keeps the spawn lock until it is settled
    /// or dropped. If a launcher blocks its thread, the flight ends when that call returns.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Once it waits for the flight's end, the flight is aborted even if the future is dropped.
    ///
    /// # Panics
    ///
    /// If a flight is in progress, outside of a tokio runtime with time enabled.
    pub async fn abort(&self, key: impl Into<K>) -> bool {
        let key = key.into();
        let registry = &self.shared.registry;
        let hash = registry.hash(&key);
        let entry = registry.shard(hash).await.entry(&key, hash).cloned();
        let flight = entry.and_then(|entry| entry.current_flight());
        let Some(flight) = flight else {
            return false;
        };
        let outcome = flight.follow();
        let key = flight.label();
        trace::aborted(&key);
        self.end_flight(&flight, LaunchError::Aborted { key }.into());
        if let Some(mut outcome) = outcome {
            let deadline = Instant::now() + self.shared.timeouts.drain;
            outcome.outcome(deadline).await;
        }
        true
    }

    /// Reports that a backend has ended. `end` names its launch by the fencing token of the permit.
    ///
    /// An orderly end takes the charge of the launch back. After a failure the charge stays, and the next refusal gives the
    /// reason. Both apply only if the launch is the last success and not yet stable, so only with
    /// [`stable_after`](crate::SpawnGateBuilder::stable_after).
    ///
    /// It does not wait for the spawn lock, so a backend can report its own end while the holder of the lock waits for it to
    /// end.
    ///
    /// # Errors
    ///
    /// [`GateError::Lock`] if the report cannot be written beside the ledger; the launch then stays charged.
    /// [`GateError::retry_helps`] says whether a retry helps.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the report may be lost or may be written later.
    ///
    /// # Panics
    ///
    /// If the lock keeps a ledger, outside of a tokio runtime with time enabled.
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
            // It was up for long enough, so its success has reset the budget.
            Some(read) if read.ledger.is_stable(policy, now) => Ok(()),
            _ if !policy.is_in_ledger => Ok(()),
            _ => answered(LONGEST_CALL, lock.report_backend_end(&key, &end)).await,
        };
        let shard = registry.shard(hash).await;
        if let Some(entry) = shard.entry(&key, hash) {
            entry.backend_ended(policy, &end, Instant::now());
        }
        drop(shard);
        reported.map_err(|error| LockError::new(key_label(&key), error).into())
    }

    /// Closes the gate: refuses all requests from now on, and waits until the flights in progress have ended.
    ///
    /// Waiting callers get the outcome of their flight; give their tasks time to use it before the runtime ends. A flight that
    /// has not ended by the drain timeout is ended like by [`abort`](Self::abort), but its callers get [`GateError::Closed`].
    /// A further call, from any handle, waits again.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] with [`Stage::Drain`] if a flight had to be ended. The gate is closed; a retry is not needed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once polled, the gate is closed; dropping the future only ends the wait.
    ///
    /// # Panics
    ///
    /// If a flight is in progress, outside of a tokio runtime with time enabled.
    pub async fn close(&self) -> Result<(), TimeoutError> {
        let registry = &self.shared.registry;
        let is_first = registry.close();
        let mut flights = Vec::new();
        for shard in &registry.shards {
            let in_progress = lock_shard(shard).await.flights();
            flights.extend(in_progress.into_iter().filter_map(|flight| {
                let outcome = flight.follow()?;
                Some((flight, outcome))
            }));
        }
        if is_first {
            trace::closing(flights.len());
        }
        let limit = self.shared.timeouts.drain;
        let deadline = Instant::now() + limit;
        let mut undrained = 0;
        for (flight, mut outcome) in flights {
            if outcome.outcome(deadline).await.is_none() {
                undrained += 1;
                self.end_flight(&flight, GateError::Closed);
            }
        }
        if undrained == 0 {
            return Ok(());
        }
        trace::drain_timed_out(undrained);
        Err(TimeoutError {
            key: None,
            stage: Stage::Drain,
            after: limit,
            waiting_for: None,
            attempts_left: None,
        })
    }

    /// Ends a flight with `error`: its task does so, or this call if a caller holds the permit.
    fn end_flight(&self, flight: &Flight<K, T>, error: GateError) {
        let Some(error) = flight.interrupt(error) else {
            return;
        };
        let policy = &self.shared.policy;
        let reason = Arc::new(ExhaustionReason::launch_failed(error.message()));
        let update = BudgetUpdate::without_ledger(policy, Settlement::Failed, Some(reason));
        // The launch counts once its permit is settled or dropped.
        flight.end(policy, Outcome::Failed(error), false, update, |_| ());
    }
}

/// Takes the lock of `key` and resets its ledger.
async fn reset_ledger<K: GateKey, T>(
    shared: Arc<Shared<K, T>>,
    key: K,
    hash: u64,
) -> Result<(), GateError> {
    let mut wait = LockWait::default();
    let lease = loop {
        let (policy, clock) = (shared.policy, Arc::clone(&shared.clock));
        let update = LedgerUpdate::new(move |reading, fencing_token| {
            let holder = this_process(clock.now());
            let session = LedgerSession::take_over(reading, fencing_token, &policy, holder);
            session.map(LedgerSession::into_reset)
        });
        // It wants the lock, whatever the ledger says.
        let known = Known::default();
        match wait.try_once(&shared, &key, update, known).await? {
            Tried::Taken(lease) => break lease,
            Tried::Held(_) | Tried::Answered(_) | Tried::Failed => {
                wait.check_deadline(&shared, &key)?;
                wait.until_released(&shared, &key).await;
            }
        }
    };
    let mut held = HeldLock::new(lease, None);
    let settled = held
        .settle(Settlement::Refund, None, shared.clock.now())
        .await;
    drop(held);
    // A flight that ended meanwhile may have brought an outdated picture of the ledger.
    reset_entry(&shared, &key, hash).await;
    // The reset was written when the lock was taken; only a loss of the lock undoes it.
    settled
        .or_else(|error| if error.is_lost() { Err(error) } else { Ok(()) })
        .inspect(|()| trace::reset(|| key_label(&key).into()))
        .map_err(|error: SpawnLockError| LockError::new(key_label(&key), error).into())
}

/// Forgets what this process knows of the key's budget.
async fn reset_entry<K: GateKey, T>(shared: &Shared<K, T>, key: &K, hash: u64) {
    if let Some(entry) = shared.registry.shard(hash).await.entry(key, hash) {
        entry.reset(Instant::now());
    }
}
