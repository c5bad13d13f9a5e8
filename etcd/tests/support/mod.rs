//! What the tests have in common.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod etcd;
pub(crate) mod host;
pub(crate) mod skewed;

use spawn_gate::admin::{Ledger, LedgerReading};
use spawn_gate::lock::SpawnLock;
use spawn_gate::{Acquired, LaunchPermit, SpawnGate};
use spawn_gate_etcd::EtcdSpawnLock;

/// The gates of the tests.
pub(crate) type Gate = SpawnGate<String, u64>;

/// The key of most tests.
pub(crate) const KEY: &str = "indexer";

/// Asks for a permit and gets it.
pub(crate) async fn led(gate: &Gate) -> LaunchPermit<String, u64> {
    match gate.acquire(KEY).await.unwrap() {
        Acquired::Led(permit) => permit,
        Acquired::Joined(value) => panic!("joined {value}"),
    }
}

/// Reads the ledger of [`KEY`].
pub(crate) async fn ledger(lock: &EtcdSpawnLock) -> Ledger {
    match lock.read_ledger(&KEY.to_owned()).await.unwrap() {
        LedgerReading::Found(ledger) => *ledger,
        other => panic!("{other:?}"),
    }
}
