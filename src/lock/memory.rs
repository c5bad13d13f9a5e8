//! A spawn lock without files, for tests and for programs that are alone on their machine.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{SpawnLease, SpawnLock, SpawnLockError};
use crate::key::{GateKey, key_label};

/// Spawn locks that live in this process. Clones share them, so two gates with clones of one lock exclude each other.
///
/// It keeps no other process from launching: for that use [`FileSpawnLock`](crate::FileSpawnLock).
///
/// # Examples
///
/// ```
/// use spawn_gate::{InMemorySpawnLock, SpawnGate};
///
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// ```
pub struct InMemorySpawnLock<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    held: Mutex<HashSet<K>>,
    last_token: AtomicU64,
}

impl<K> InMemorySpawnLock<K> {
    /// Creates a family of locks of which none is held.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                held: Mutex::new(HashSet::new()),
                last_token: AtomicU64::new(0),
            }),
        }
    }
}

impl<K> Shared<K> {
    /// The set is right after each single step, so a panic elsewhere cannot leave it half-changed.
    fn held(&self) -> MutexGuard<'_, HashSet<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Default for InMemorySpawnLock<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Clone for InMemorySpawnLock<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K> fmt::Debug for InMemorySpawnLock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemorySpawnLock").finish_non_exhaustive()
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for InMemorySpawnLock<K> {
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let lease_key = key.clone();
        if !self.shared.held().insert(key.clone()) {
            return Err(SpawnLockError::AlreadyLocked {
                path: PathBuf::from(key_label(key)),
            });
        }
        Ok(Box::new(Lease {
            shared: Arc::clone(&self.shared),
            key: lease_key,
            token: self.shared.last_token.fetch_add(1, Ordering::Relaxed) + 1,
        }))
    }
}

struct Lease<K: Eq + Hash> {
    shared: Arc<Shared<K>>,
    key: K,
    token: u64,
}

impl<K: Eq + Hash> fmt::Debug for Lease<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("token", &self.token).finish()
    }
}

#[async_trait]
impl<K: GateKey> SpawnLease for Lease<K> {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        Ok(())
    }
}

impl<K: Eq + Hash> Drop for Lease<K> {
    fn drop(&mut self) {
        self.shared.held().remove(&self.key);
    }
}
