//! A spawn lock without files, for tests and for programs that are alone on their machine.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::error::SpawnLockError;
use super::traits::{LockRequest, SpawnLease, SpawnLock, TryAcquire};
use crate::key::{GateKey, key_label};
use crate::ledger::LedgerReading;
use crate::util::shard_index;

/// Spawn locks that live in this process. Clones share them, so two gates with clones of one lock exclude each other.
///
/// It does not keep other processes from launching; use [`FileSpawnLock`](crate::FileSpawnLock) for that.
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
    /// Sharded by the key's hash, so launches of different keys rarely contend.
    shards: [Mutex<Locks>; SHARDS],
    hasher: RandomState,
}

const SHARDS: usize = 16;

#[derive(Default)]
struct Locks {
    /// The hashes of the keys whose locks are held. Two keys with the same hash (64 bits, randomly seeded) only wait for each
    /// other.
    held: HashTable<u64>,
    last_token: u64,
}

impl<K> InMemorySpawnLock<K> {
    /// Creates a family of locks, none of them held.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                shards: std::array::from_fn(|_| Mutex::default()),
                hasher: RandomState::new(),
            }),
            of: PhantomData,
        }
    }
}

impl Shared {
    /// Hashes the key's fields, which differ for unequal keys; their [`Hash`](std::hash::Hash) may be the same.
    fn hash<K: GateKey>(&self, key: &K) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        key.fields(&mut |field| {
            // The length goes first: ("ab", "c") and ("a", "bc") are different keys.
            hasher.write_usize(field.len());
            hasher.write(field);
        });
        hasher.finish()
    }

    /// Ignores poisoning: each step leaves the locks consistent.
    fn locks(&self, hash: u64) -> MutexGuard<'_, Locks> {
        let shard = &self.shards[shard_index(hash, SHARDS)];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locks {
    /// Takes the lock of the key with this hash, if it is free. Returns the new holder's fencing token.
    fn take(&mut self, hash: u64) -> Option<u64> {
        let Entry::Vacant(place) = self.held.entry(hash, |&held| held == hash, |&held| held) else {
            return None;
        };
        place.insert(hash);
        self.last_token += 1;
        Some(self.last_token)
    }

    fn free(&mut self, hash: u64) {
        if let Ok(place) = self.held.find_entry(hash, |&held| held == hash) {
            place.remove();
        }
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
    fn try_lock(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        let hash = self.shared.hash(key);
        let token = self.shared.locks(hash).take(hash)?;
        Some(Box::new(Lease {
            shared: Arc::clone(&self.shared),
            hash,
            token,
        }))
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for InMemorySpawnLock<K> {
    async fn try_acquire(
        &self,
        key: &K,
        _request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        Ok(match self.try_lock(key) {
            Some(lease) => TryAcquire::Acquired(lease),
            None => TryAcquire::Held {
                lock: PathBuf::from(key_label(key)),
                ledger: LedgerReading::NotKept,
            },
        })
    }

    fn try_acquire_now(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        self.try_lock(key)
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

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        Some(Ok(()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.locks(self.hash).free(self.hash);
    }
}
