//! spawn-gate: `acquire`, and the permit settled.

use std::future::Future;

use spawn_gate::{Acquired, InMemorySpawnLock, SpawnGate};

use super::Flights;
use crate::keys::PeerKey;

/// A gate with the default budget and the in-memory lock.
pub struct Ours<K>(SpawnGate<K, u64>);

impl<K: PeerKey> Default for Ours<K> {
    fn default() -> Self {
        Self(SpawnGate::builder(InMemorySpawnLock::new()).build())
    }
}

impl<K: PeerKey> Flights<K> for Ours<K> {
    const NAME: &'static str = "spawn-gate";
    const WITHOUT: &'static str = "";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        match self.0.acquire(key).await.expect("nothing fails here") {
            Acquired::Led(permit) => {
                let value = work().await;
                permit.succeed(value).await.expect("the lock is not lost");
                value
            }
            Acquired::Joined(value) => value,
        }
    }

    async fn waiting(&self, key: K) -> Option<usize> {
        let flight = self.0.snapshot(key).await.flight;
        Some(flight.map_or(0, |flight| flight.waiting))
    }
}
