//! What the tests have in common.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod etcd;
pub(crate) mod host;

use spawn_gate::SpawnGate;

/// The gates of the tests.
pub(crate) type Gate = SpawnGate<String, u64>;

/// The key of most tests.
pub(crate) const KEY: &str = "indexer";
