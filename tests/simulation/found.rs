//! What the simulation has found, each reduced to its interleaving.

use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::lock::{LockRequest, SpawnLock, TryAcquire};
use spawn_gate::{FileSpawnLock, InMemorySpawnLock, SpawnGate, SpawnLockError};
use tokio_test::{assert_pending, task::spawn};

/// A lock in memory that does not answer at once, so that a permit waits for its caller to collect it.
#[derive(Debug)]
struct Later(InMemorySpawnLock<&'static str>);

#[async_trait]
impl SpawnLock<&'static str> for Later {
    async fn try_acquire(
        &self,
        key: &&'static str,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        self.0.try_acquire(key, request).await
    }
}

/// How much is charged once a permit that nobody collected was aborted and dropped.
async fn used_after_abort(lock: impl SpawnLock<&'static str>) -> u32 {
    let gate: SpawnGate<&'static str, u32> = SpawnGate::builder(lock).build();
    let mut asks = spawn(gate.acquire("a"));
    assert_pending!(asks.poll());
    // Time passes once the permit is ready; its caller has two seconds to collect it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(gate.abort("a").await);
    drop(asks);
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.snapshot("a").await.budget.attempts_used
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_nobody_collected_costs_nothing_if_it_is_aborted() {
    assert_eq!(used_after_abort(Later(InMemorySpawnLock::new())).await, 0);
}

#[tokio::test(start_paused = true)]
async fn with_a_ledger_a_permit_that_nobody_collected_costs_nothing_if_it_is_aborted() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    assert_eq!(used_after_abort(lock).await, 0);
}
