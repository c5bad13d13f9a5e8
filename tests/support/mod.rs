//! What the integration tests share.
#![allow(
    dead_code,
    reason = "each test crate includes all of it and uses a part"
)]

pub(crate) mod halt;
pub(crate) mod hooked_key;
pub(crate) mod hooked_lock;
pub(crate) mod lock_file;
pub(crate) mod script;
pub(crate) mod scripted_lock;
pub(crate) mod step_clock;

use std::fmt::Debug;
use std::time::Duration;

use spawn_gate::budget::ExhaustionReason;
use spawn_gate::error::BudgetExhausted;
use spawn_gate::{Acquired, GateError, GateKey, InMemorySpawnLock, LaunchPermit, SpawnGate};

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A gate with a lock in memory, and the rest as it is by default.
pub(crate) fn gate<K: GateKey>() -> SpawnGate<K, u32> {
    SpawnGate::builder(InMemorySpawnLock::new()).build()
}

/// Asks for a permit, which must be had: nobody else launches.
pub(crate) async fn lead<K, V>(gate: &SpawnGate<K, V>, key: K) -> LaunchPermit<K, V>
where
    K: GateKey,
    V: Clone + Debug + Send + Sync + 'static,
{
    led(gate.acquire(key).await)
}

/// The permit of a request that came to lead.
#[track_caller]
pub(crate) fn led<K: GateKey, V: Debug>(
    acquired: Result<Acquired<K, V>, GateError>,
) -> LaunchPermit<K, V> {
    match acquired {
        Ok(Acquired::Led(permit)) => permit,
        Ok(Acquired::Joined(value)) => panic!("joined: {value:?}"),
        Err(error) => panic!("does not lead: {error:?}"),
    }
}

/// Makes an attempt that fails at once, which leaves the key with a charge.
pub(crate) async fn fail_once<K: GateKey>(gate: &SpawnGate<K, u32>, key: K) {
    lead(gate, key).await.fail("no such program").await;
}

/// Why a request was refused, whose key has no attempts left.
#[track_caller]
pub(crate) fn refusal<V: Debug>(heard: Result<V, GateError>) -> BudgetExhausted {
    match heard {
        Err(GateError::BudgetExhausted(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Why the last launch failed, as the refusal tells it; `None` if it tells something else.
pub(crate) fn launch_failure(refusal: &BudgetExhausted) -> Option<String> {
    match &*refusal.reason {
        ExhaustionReason::LaunchFailed { message } => Some(message.clone()),
        _ => None,
    }
}

pub(crate) async fn attempts_used<K: GateKey>(gate: &SpawnGate<K, u32>, key: K) -> u32 {
    gate.snapshot(key).await.budget.attempts_used
}

/// Lets other tasks run until the flight of `key` waits for another process that holds its lock.
pub(crate) async fn until_held<K: GateKey>(gate: &SpawnGate<K, u32>, key: K) {
    loop {
        let flight = gate.snapshot(key.clone()).await.flight;
        if flight.is_some_and(|flight| flight.waiting_for.is_some()) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Lets other tasks run until `count` callers wait for the flight of `key`. Paused time stands still meanwhile.
pub(crate) async fn until_waiting<K: GateKey>(gate: &SpawnGate<K, u32>, key: K, count: usize) {
    loop {
        let flight = gate.snapshot(key.clone()).await.flight;
        if flight.is_some_and(|flight| flight.waiting == count) {
            return;
        }
        tokio::task::yield_now().await;
    }
}
