//! A spawn lock that a test makes slow, broken or lost: an in-memory one with a scripted step before each of its own.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;

use async_trait::async_trait;
use spawn_gate::{GateKey, InMemorySpawnLock, SpawnLease, SpawnLock, SpawnLockError};

use super::script::Step;

type LockStep = Step<Result<(), SpawnLockError>>;

/// Clones count together.
#[derive(Clone)]
pub(crate) struct ScriptedLock<K> {
    real: InMemorySpawnLock<K>,
    pub(crate) tries: LockStep,
    verify: LockStep,
}

impl<K> ScriptedLock<K> {
    /// Does as `real` does.
    pub(crate) fn new(real: InMemorySpawnLock<K>) -> Self {
        Self {
            real,
            tries: Step::new(|_| async { Ok(()) }),
            verify: Step::new(|_| async { Ok(()) }),
        }
    }

    /// Does `step` before each try at the lock.
    pub(crate) fn on_try<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), SpawnLockError>> + Send + 'static,
    {
        self.tries = Step::new(step);
        self
    }

    /// Does `step` when a lease is verified.
    pub(crate) fn on_verify<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), SpawnLockError>> + Send + 'static,
    {
        self.verify = Step::new(step);
        self
    }
}

impl<K> fmt::Debug for ScriptedLock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedLock")
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for ScriptedLock<K> {
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        self.tries.call().await?;
        Ok(Box::new(ScriptedLease {
            real: self.real.try_acquire(key).await?,
            verify: self.verify.clone(),
        }))
    }
}

struct ScriptedLease {
    real: Box<dyn SpawnLease>,
    verify: LockStep,
}

impl fmt::Debug for ScriptedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedLease")
    }
}

#[async_trait]
impl SpawnLease for ScriptedLease {
    fn fencing_token(&self) -> u64 {
        self.real.fencing_token()
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.verify.call().await
    }
}

/// What a lock says whose file is gone.
pub(crate) fn lost() -> SpawnLockError {
    SpawnLockError::DeletedOrRecreated {
        path: PathBuf::from("key.lock"),
        opened_identity: None,
        current_identity: None,
    }
}
