//! The gate's lock in memory, with waits and losses where the schedule wants them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use spawn_gate::lock::{
    LedgerUpdate, LockRequest, SpawnLease, SpawnLock, SpawnLockError, TryAcquire,
};
use spawn_gate::stand_in::tokio::time::Instant;
use spawn_gate::{InMemorySpawnLock, async_trait};

use crate::world::{Key, pause, percent};

#[derive(Clone, Debug)]
pub(crate) struct Lock {
    inner: Arc<InMemorySpawnLock<Key>>,
    /// It can be taken without waiting.
    is_instant: bool,
    /// It is never held, so that only the flight keeps a second launch away.
    is_open: bool,
    /// How many leases are still to be lost before their launch.
    losses: Arc<AtomicU32>,
}

impl Lock {
    /// Instant in every other schedule.
    pub(crate) fn new() -> Self {
        match percent(50) {
            true => Self::instant(),
            false => Self::slow(),
        }
    }

    pub(crate) fn instant() -> Self {
        Self {
            is_instant: true,
            ..Self::slow()
        }
    }

    /// Each of its calls may have to wait.
    pub(crate) fn slow() -> Self {
        Self {
            inner: Arc::default(),
            is_instant: false,
            is_open: false,
            losses: Arc::default(),
        }
    }

    /// Slow, and so many leases are lost.
    pub(crate) fn losing(losses: u32) -> Self {
        Self {
            losses: Arc::new(AtomicU32::new(losses)),
            ..Self::slow()
        }
    }

    /// Keeps nobody away in every other schedule.
    pub(crate) fn or_none() -> Self {
        Self {
            is_open: percent(50),
            ..Self::new()
        }
    }

    /// The locks to try: new ones each time if this is open.
    fn inner(&self) -> Arc<InMemorySpawnLock<Key>> {
        match self.is_open {
            true => Arc::default(),
            false => Arc::clone(&self.inner),
        }
    }

    /// Takes the lock as another process would.
    pub(crate) async fn take(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        let request = LockRequest::new(LedgerUpdate::none(), Instant::now());
        match self.inner.try_acquire(key, request).await {
            Ok(TryAcquire::Acquired(lease)) => Some(lease),
            _ => None,
        }
    }
}

#[async_trait]
impl SpawnLock<Key> for Lock {
    async fn try_acquire(
        &self,
        key: &Key,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        if !self.is_instant {
            pause().await;
        }
        let tried = self.inner().try_acquire(key, request).await?;
        Ok(match tried {
            TryAcquire::Acquired(lease) if !self.is_instant => {
                let losses = Arc::clone(&self.losses);
                TryAcquire::Acquired(Box::new(SlowLease { lease, losses }))
            }
            tried => tried,
        })
    }

    fn try_acquire_now(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        match self.is_instant {
            true => self.inner().try_acquire_now(key),
            false => None,
        }
    }
}

#[derive(Debug)]
struct SlowLease {
    lease: Box<dyn SpawnLease>,
    losses: Arc<AtomicU32>,
}

#[async_trait]
impl SpawnLease for SlowLease {
    fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        pause().await;
        let left = |losses: u32| losses.checked_sub(1);
        let lost = self
            .losses
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        match lost {
            Ok(_) => Err(SpawnLockError::LeaseLost {
                lock: String::new(),
                source: None,
            }),
            Err(_) => self.lease.verify().await,
        }
    }
}
