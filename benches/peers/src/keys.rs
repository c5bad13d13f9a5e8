//! The keys that contenders are given: made before the clock starts, and handed over.

use std::fmt::Debug;

use spawn_gate::{BackendKey, BrokerInstanceKey, GateKey};

/// A kind of key that every contender can use.
pub trait PeerKey: GateKey + Debug {
    /// Returns the key of that number; the same content whatever the kind.
    fn nth(number: usize) -> Self;
}

impl PeerKey for BackendKey {
    fn nth(number: usize) -> Self {
        Self::new(BrokerInstanceKey::Shared, service(number), VERSION)
    }
}

impl PeerKey for String {
    fn nth(number: usize) -> Self {
        format!("shared/{}/{VERSION}", service(number))
    }
}

/// Returns the service name in the key of that number.
pub fn service(number: usize) -> String {
    format!("service-{number}")
}

/// The version in all keys.
pub const VERSION: &str = "1.11.20";
