//! What the integration tests share.
#![allow(
    dead_code,
    reason = "each test crate includes all of it and uses a part"
)]

pub(crate) mod halt;
pub(crate) mod held_file;
pub(crate) mod hooked_key;
pub(crate) mod hooked_lock;
pub(crate) mod script;
pub(crate) mod scripted_lock;
pub(crate) mod step_clock;

use spawn_gate::{GateKey, SpawnGate};

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
