//! A lock of files with a ledger, where a test's hook runs before and after each step that reads or writes one.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{
    FileSpawnLock, GateKey, Ledger, LedgerReading, SpawnLease, SpawnLock, SpawnLockError,
};

use super::halt::Halt;

/// Where the hook runs. Each step is numbered from 1 over all leases of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before a write of the ledger. An error is what comes of the write.
    Write(u32),
    /// When a write has been made, but its caller has not heard of it.
    Written(u32),
    /// Before a look at the ledger. An error leaves the look without an answer.
    Look(u32),
    /// A try found the lock held, the ledger has been looked at, and the wait for the release begins.
    Wait(u32),
}

type Hook = Box<dyn Fn(At) -> Pin<Box<dyn Future<Output = Hooked> + Send>> + Send + Sync>;

pub(crate) type Hooked = Result<(), SpawnLockError>;

/// Clones count together.
#[derive(Clone)]
pub(crate) struct HookedLock(Arc<Inner>);

struct Inner {
    real: FileSpawnLock,
    hook: Hook,
    writes: AtomicU32,
    looks: AtomicU32,
    waits: AtomicU32,
}

impl HookedLock {
    pub(crate) fn new<F>(directory: &Path, hook: impl Fn(At) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Hooked> + Send + 'static,
    {
        Self(Arc::new(Inner {
            real: FileSpawnLock::new(directory).unwrap(),
            hook: Box::new(move |at| Box::pin(hook(at))),
            writes: AtomicU32::new(0),
            looks: AtomicU32::new(0),
            waits: AtomicU32::new(0),
        }))
    }

    /// One that halts wherever `halts_at` says so.
    pub(crate) fn halting(
        directory: &Path,
        halts_at: impl Fn(At) -> bool + Send + Sync + 'static,
    ) -> (Self, Halt) {
        let halt = Halt::new();
        let lock = Self::new(directory, {
            let halt = halt.clone();
            move |at| {
                let halt = halts_at(at).then(|| halt.clone());
                async move {
                    if let Some(halt) = halt {
                        halt.halt().await;
                    }
                    Ok(())
                }
            }
        });
        (lock, halt)
    }
}

fn next(count: &AtomicU32) -> u32 {
    count.fetch_add(1, Ordering::SeqCst) + 1
}

impl fmt::Debug for HookedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookedLock")
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for HookedLock {
    async fn try_acquire(&self, key: &K) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        Ok(Box::new(HookedLease {
            real: self.0.real.try_acquire(key).await?,
            lock: self.clone(),
        }))
    }

    async fn released(&self, key: &K, pause: Duration) {
        let _ = (self.0.hook)(At::Wait(next(&self.0.waits))).await;
        self.0.real.released(key, pause).await;
    }

    fn keeps_ledger(&self) -> bool {
        true
    }

    async fn peek(&self, key: &K) -> Option<Ledger> {
        let looks = (self.0.hook)(At::Look(next(&self.0.looks))).await;
        looks.ok()?;
        self.0.real.peek(key).await
    }
}

struct HookedLease {
    real: Box<dyn SpawnLease>,
    lock: HookedLock,
}

impl fmt::Debug for HookedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookedLease")
    }
}

#[async_trait]
impl SpawnLease for HookedLease {
    fn fencing_token(&self) -> u64 {
        self.real.fencing_token()
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.real.verify().await
    }

    fn ledger(&self) -> LedgerReading {
        self.real.ledger()
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let HookedLock(inner) = &self.lock;
        let write = next(&inner.writes);
        (inner.hook)(At::Write(write)).await?;
        self.real.write_ledger(ledger).await?;
        (inner.hook)(At::Written(write)).await
    }
}
