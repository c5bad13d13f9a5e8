//! In place of the lock files: the same names, and nothing behind them. Schedules use locks in memory.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::ledger::LedgerReading;
use crate::lock::{LockRequest, SpawnLock, SpawnLockError, TryAcquire};

/// There is none.
#[derive(Clone, Debug)]
pub enum FileSpawnLock {}

/// There is none.
#[derive(Debug)]
pub enum SpawnLockGuard {}

/// There is none.
#[derive(Clone, Debug)]
pub struct LockReport {
    pub path: PathBuf,
    pub is_held: bool,
    pub ledger: LedgerReading,
}

impl FileSpawnLock {
    pub fn new(_: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Err(no_files())
    }
}

#[async_trait]
impl<K: Sync> SpawnLock<K> for FileSpawnLock {
    async fn try_acquire(&self, _: &K, _: LockRequest) -> Result<TryAcquire, SpawnLockError> {
        match *self {}
    }
}

pub fn acquire_spawn_lock(_: impl AsRef<Path>) -> Result<SpawnLockGuard, SpawnLockError> {
    Err(no_files())
}

pub fn inspect_spawn_lock(_: impl AsRef<Path>) -> Result<LockReport, SpawnLockError> {
    Err(no_files())
}

fn no_files() -> SpawnLockError {
    SpawnLockError::Service {
        lock: String::new(),
        source: "there are no files here".into(),
        retry_helps: false,
    }
}
