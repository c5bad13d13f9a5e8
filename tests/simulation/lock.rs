//! A gate's handle of a lock. It reports what the gate does with it, and it can be slow, fail, or hang.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading};
use spawn_gate::lock::{LeaseLost, LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{SpawnLockError, async_trait};

use crate::store::failed;
use crate::world::{Fault, Key, World};

pub(crate) struct GateLock {
    pub(crate) inner: Arc<dyn SpawnLock<Key>>,
    pub(crate) gate: usize,
    pub(crate) world: Arc<World>,
}

impl fmt::Debug for GateLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateLock {}", self.gate)
    }
}

impl GateLock {
    fn leased(&self, key: &Key, lease: Box<dyn SpawnLease>) -> Box<dyn SpawnLease> {
        let token = lease.fencing_token();
        let taken = |checks: &mut crate::checks::Checks| checks.taken(key.name, self.gate, token);
        self.world.see(taken);
        Box::new(GateLease {
            inner: Some(lease),
            key: key.name,
            token,
            world: Arc::clone(&self.world),
        })
    }
}

/// A try whose lock was taken and whose caller has no lease yet.
struct Undelivered {
    world: Arc<World>,
    key: &'static str,
    token: Arc<Mutex<Option<u64>>>,
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        let token = self.token.lock().unwrap().take();
        if let Some(token) = token {
            self.world.see(|checks| checks.undelivered(self.key, token));
        }
    }
}

#[async_trait]
impl SpawnLock<Key> for GateLock {
    async fn try_acquire(
        &self,
        key: &Key,
        mut request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        self.world.see(|checks| checks.tries(key.name, self.gate));
        self.world.dawdle().await;
        if self.world.fault() != Fault::None {
            return Err(failed());
        }
        let undelivered = Undelivered {
            world: Arc::clone(&self.world),
            key: key.name,
            token: Arc::default(),
        };
        let update = std::mem::replace(&mut request.update, LedgerUpdate::none());
        let (world, name, slot) = (
            Arc::clone(&self.world),
            key.name,
            Arc::clone(&undelivered.token),
        );
        let gate = self.gate;
        request.update = LedgerUpdate::new(move |reading, token| {
            let written = update.apply(reading, token);
            *slot.lock().unwrap() = Some(token);
            world.see(|checks| checks.applied(name, gate, token, written.as_ref()));
            written
        });
        match self.inner.try_acquire(key, request).await? {
            TryAcquire::Acquired(lease) => {
                undelivered.token.lock().unwrap().take();
                Ok(TryAcquire::Acquired(self.leased(key, lease)))
            }
            held => Ok(held),
        }
    }

    fn try_acquire_now(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        if !self.world.config.at_once {
            return None;
        }
        let lease = self.inner.try_acquire_now(key)?;
        Some(self.leased(key, lease))
    }

    async fn released(&self, key: &Key, pause: Duration) {
        self.inner.released(key, pause).await;
    }

    fn keeps_ledger(&self) -> bool {
        self.inner.keeps_ledger()
    }

    async fn read_ledger(&self, key: &Key) -> Result<LedgerReading, SpawnLockError> {
        self.world.dawdle().await;
        if self.world.fault() != Fault::None {
            return Err(failed());
        }
        self.inner.read_ledger(key).await
    }

    async fn report_backend_end(&self, key: &Key, end: &BackendEnd) -> Result<(), SpawnLockError> {
        self.world.dawdle().await;
        self.inner.report_backend_end(key, end).await
    }
}

struct GateLease {
    inner: Option<Box<dyn SpawnLease>>,
    key: &'static str,
    token: u64,
    world: Arc<World>,
}

impl GateLease {
    fn inner(&self) -> &dyn SpawnLease {
        &**self.inner.as_ref().unwrap()
    }

    fn verified(&self, verified: &Result<(), SpawnLockError>) {
        let is_held = verified.is_ok();
        self.world
            .see(|checks| checks.verified(self.key, self.token, is_held));
    }

    /// Writes, or fails before or after that.
    async fn write(&mut self, ledger: &Ledger, is_last: bool) -> Result<(), SpawnLockError> {
        let fault = self.world.fault();
        if fault == Fault::Before {
            return Err(failed());
        }
        let inner = self.inner.as_mut().unwrap();
        match is_last {
            true => inner.settle(Some(ledger)).await?,
            false => inner.write_ledger(ledger).await?,
        }
        if fault == Fault::After {
            return Err(failed());
        }
        Ok(())
    }
}

impl fmt::Debug for GateLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateLease {}", self.token)
    }
}

#[async_trait]
impl SpawnLease for GateLease {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.world
            .see(|checks| checks.verifies(self.key, self.token));
        self.world.dawdle().await;
        if self.world.fault() != Fault::None {
            return Err(failed());
        }
        let verified = self.inner().verify().await;
        self.verified(&verified);
        verified
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        let now = self.world.config.at_once;
        let verified = now.then(|| self.inner().verify_now()).flatten()?;
        self.world
            .see(|checks| checks.verifies(self.key, self.token));
        self.verified(&verified);
        Some(verified)
    }

    fn lost(&self) -> Option<LeaseLost<'_>> {
        self.inner().lost()
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        self.world.see(|checks| checks.writes(self.key, self.token));
        self.world.dawdle().await;
        self.write(ledger, false).await
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        self.world
            .see(|checks| checks.settles(self.key, self.token));
        self.world.dawdle().await;
        let settled = match ledger {
            Some(ledger) => self.write(ledger, true).await,
            None => self.inner.as_mut().unwrap().settle(None).await,
        };
        if settled.is_ok() {
            self.world
                .see(|checks| checks.settled(self.key, self.token));
        }
        settled
    }

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        let now = self.world.config.at_once;
        let settled = now.then(|| self.inner().settle_now()).flatten()?;
        self.world.see(|checks| {
            checks.settles(self.key, self.token);
            if settled.is_ok() {
                checks.settled(self.key, self.token);
            }
        });
        Some(settled)
    }
}

impl Drop for GateLease {
    fn drop(&mut self) {
        drop(self.inner.take());
        self.world
            .see(|checks| checks.released(self.key, self.token));
    }
}
