//! A family of scripted locks, in memory: with a ledger as text, or without one. Its answers can be late, and its writes can
//! fail, before or after they are made.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading};
use spawn_gate::lock::{LeaseLost, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{SpawnLockError, async_trait};
use tokio::sync::Notify;

use crate::world::{Fault, Key, World};

#[derive(Clone)]
pub(crate) struct Store(Arc<Shared>);

struct Shared {
    world: Arc<World>,
    locks: Mutex<BTreeMap<&'static str, Lock>>,
    /// Something was released, or lost.
    changed: Notify,
}

#[derive(Default)]
struct Lock {
    holder: Option<u64>,
    last_token: u64,
    record: String,
    ends: Vec<BackendEnd>,
}

impl Lock {
    fn ledger(&self) -> LedgerReading {
        let mut ledger = match self.record.as_str() {
            "" => Ledger::default(),
            record => record.parse().expect("a record that was written"),
        };
        for end in &self.ends {
            ledger.note_backend_end(end);
        }
        LedgerReading::Found(Box::new(ledger))
    }
}

impl Store {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self(Arc::new(Shared {
            world: Arc::clone(world),
            locks: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Takes the lock away from its holder, whose token it returns.
    pub(crate) fn revoke(&self, key: &Key) -> Option<u64> {
        let token = self.0.lock(key, |lock| lock.holder.take());
        self.0.changed.notify_waiters();
        token
    }

    fn keeps(&self) -> bool {
        self.0.world.config.has_ledger
    }

    fn take(&self, key: &Key) -> Option<Lease> {
        let token = self.0.lock(key, |lock| {
            if lock.holder.is_some() {
                return None;
            }
            lock.last_token += 1;
            lock.holder = Some(lock.last_token);
            lock.holder
        })?;
        Some(Lease {
            shared: Arc::clone(&self.0),
            key: key.clone(),
            token,
            before: None,
        })
    }
}

impl Shared {
    fn lock<V>(&self, key: &Key, step: impl FnOnce(&mut Lock) -> V) -> V {
        step(self.locks.lock().unwrap().entry(key.name).or_default())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

#[async_trait]
impl SpawnLock<Key> for Store {
    async fn try_acquire(
        &self,
        key: &Key,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let ledger = match self.keeps() {
            true => self.0.lock(key, |lock| lock.ledger()),
            false => LedgerReading::NotKept,
        };
        if request.is_answered_by(&ledger) {
            return Ok(TryAcquire::Answered(ledger));
        }
        let Some(mut lease) = self.take(key) else {
            let lock = PathBuf::from(key.name);
            return Ok(TryAcquire::Held { lock, ledger });
        };
        if self.keeps() {
            // Until the caller has the lease, its drop takes back what was written.
            lease.before = Some(self.0.lock(key, |lock| lock.record.clone()));
            if let Some(ledger) = request.update.apply(ledger, lease.token) {
                let fault = self.0.world.fault();
                if fault == Fault::Before {
                    return Err(failed());
                }
                lease.write(&ledger)?;
                if fault == Fault::After {
                    lease.before = None;
                    return Err(failed());
                }
            }
        }
        self.0.world.dawdle().await;
        lease.verify().await?;
        lease.before = None;
        Ok(TryAcquire::Acquired(Box::new(lease)))
    }

    fn try_acquire_now(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        if self.keeps() {
            return None;
        }
        Some(Box::new(self.take(key)?))
    }

    async fn released(&self, key: &Key, _pause: std::time::Duration) {
        let changed = self.0.changed.notified();
        if self.0.lock(key, |lock| lock.holder.is_some()) {
            changed.await;
        }
    }

    fn keeps_ledger(&self) -> bool {
        self.keeps()
    }

    async fn read_ledger(&self, key: &Key) -> Result<LedgerReading, SpawnLockError> {
        Ok(match self.keeps() {
            true => self.0.lock(key, |lock| lock.ledger()),
            false => LedgerReading::NotKept,
        })
    }

    async fn report_backend_end(&self, key: &Key, end: &BackendEnd) -> Result<(), SpawnLockError> {
        self.0.lock(key, |lock| lock.ends.push(end.clone()));
        Ok(())
    }
}

struct Lease {
    shared: Arc<Shared>,
    key: Key,
    token: u64,
    before: Option<String>,
}

impl Lease {
    fn is_held(&self) -> bool {
        let holder = self.shared.lock(&self.key, |lock| lock.holder);
        holder == Some(self.token)
    }

    fn write(&self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        if !self.is_held() {
            return Err(lost());
        }
        let record = ledger.to_string();
        self.shared.lock(&self.key, |lock| lock.record = record);
        Ok(())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease {}", self.token)
    }
}

#[async_trait]
impl SpawnLease for Lease {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.is_held().then_some(()).ok_or_else(lost)
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        Some(self.is_held().then_some(()).ok_or_else(lost))
    }

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        self.verify_now()
    }

    fn lost(&self) -> Option<LeaseLost<'_>> {
        if !self.shared.world.config.tells_loss {
            return None;
        }
        Some(Box::pin(async {
            loop {
                let changed = self.shared.changed.notified();
                if !self.is_held() {
                    return lost();
                }
                changed.await;
            }
        }))
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        self.write(ledger)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_held() {
            return;
        }
        let before = self.before.take();
        self.shared.lock(&self.key, |lock| {
            lock.holder = None;
            if let Some(before) = before {
                lock.record = before;
            }
        });
        self.shared.changed.notify_waiters();
    }
}

pub(crate) fn failed() -> SpawnLockError {
    SpawnLockError::Service {
        lock: "scripted".into(),
        source: "it failed".into(),
        retry_helps: true,
    }
}

fn lost() -> SpawnLockError {
    SpawnLockError::LeaseLost {
        lock: "scripted".into(),
        source: None,
    }
}
