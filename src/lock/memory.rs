//! A spawn lock without files, for tests and for programs that are alone on their machine.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{SpawnLease, SpawnLock, SpawnLockError};
use crate::hashed::BuildPassOn;
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
    shared: Arc<Shared>,
    of: PhantomData<fn(&K)>,
}

struct Shared {
    /// The hashes of the keys whose locks are held. Two keys with the same one, of 64 bits and seeded at random, would exclude
    /// each other for a while, which does no harm.
    held: Mutex<HashSet<u64, BuildPassOn>>,
    hasher: RandomState,
    last_token: AtomicU64,
}

impl<K> InMemorySpawnLock<K> {
    /// Creates a family of locks of which none is held.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                held: Mutex::default(),
                hasher: RandomState::new(),
                last_token: AtomicU64::new(0),
            }),
            of: PhantomData,
        }
    }
}

impl Shared {
    /// The set is right after each single step, so a panic elsewhere cannot leave it half-changed.
    fn held(&self) -> MutexGuard<'_, HashSet<u64, BuildPassOn>> {
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
            of: PhantomData,
        }
    }
}

impl<K> fmt::Debug for InMemorySpawnLock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemorySpawnLock").finish_non_exhaustive()
    }
}

impl<K: GateKey> InMemorySpawnLock<K> {
    fn try_lock(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let hash = self.shared.hasher.hash_one(key);
        if !self.shared.held().insert(hash) {
            return Err(SpawnLockError::AlreadyLocked {
                path: PathBuf::from(key_label(key)),
            });
        }
        Ok(Box::new(Lease {
            shared: Arc::clone(&self.shared),
            hash,
            token: self.shared.last_token.fetch_add(1, Ordering::Relaxed) + 1,
        }))
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for InMemorySpawnLock<K> {
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        self.try_lock(key)
    }

    fn try_acquire_now(&self, key: &K) -> Option<Result<Box<dyn SpawnLease>, SpawnLockError>> {
        Some(self.try_lock(key))
    }
}

struct Lease {
    shared: Arc<Shared>,
    hash: u64,
    token: u64,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("token", &self.token).finish()
    }
}

#[async_trait]
impl SpawnLease for Lease {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        Ok(())
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        Some(Ok(()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.held().remove(&self.hash);
    }
}
