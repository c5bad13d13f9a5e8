//! A spawn lock that a test makes slow, broken or lost: a real one, with a scripted step before each of its own.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading};
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{GateKey, SpawnLockError};

use super::script::Step;

/// What a scripted step comes to. After an error the real lock does not do its own step.
pub(crate) type Scripted = Result<(), SpawnLockError>;

type LockStep = Step<Scripted>;
type Hook = Arc<dyn Fn() + Send + Sync>;

/// Clones count together.
#[derive(Clone)]
pub(crate) struct ScriptedLock<K> {
    real: Arc<dyn SpawnLock<K>>,
    pub(crate) tries: LockStep,
    /// How many tries are yet answered at once.
    at_once: Arc<AtomicU32>,
    found_held: Hook,
    /// `None`: it pauses instead of waiting for the release.
    waits: Option<LockStep>,
    looks: LockStep,
    lease: LeaseSteps,
}

#[derive(Clone)]
struct LeaseSteps {
    /// `None`: it is verified as the real one is.
    verify: Option<LockStep>,
    write: LockStep,
    written: LockStep,
    release: Hook,
}

impl<K> ScriptedLock<K> {
    /// Does as `real` does, but never answers at once, and pauses instead of waiting for a release.
    pub(crate) fn new(real: impl SpawnLock<K>) -> Self {
        let nothing = || Step::new(|_| async { Ok(()) });
        Self {
            real: Arc::new(real),
            tries: nothing(),
            at_once: Arc::default(),
            found_held: Arc::new(|| ()),
            waits: None,
            looks: nothing(),
            lease: LeaseSteps {
                verify: None,
                write: nothing(),
                written: nothing(),
                release: Arc::new(|| ()),
            },
        }
    }

    /// Does `step` before each try at the lock.
    pub(crate) fn on_try<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.tries = Step::new(step);
        self
    }

    /// Answers the first `count` tries at once, without the step of a try, and verifies their leases at once.
    pub(crate) fn at_once(self, count: u32) -> Self {
        self.at_once.store(count, Ordering::SeqCst);
        self
    }

    /// Runs `hook` after each try that found the real lock held.
    pub(crate) fn on_found_held(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.found_held = Arc::new(hook);
        self
    }

    /// Does `step` before each wait for the release, and then waits as the real lock does; an error ends the wait.
    pub(crate) fn on_wait<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.waits = Some(Step::new(step));
        self
    }

    /// Does `step` before each look at the ledger; an error leaves the look without an answer.
    pub(crate) fn on_look<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.looks = Step::new(step);
        self
    }

    /// Does `step` before each check of a lease. None is verified at once then.
    pub(crate) fn on_verify<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.lease.verify = Some(Step::new(step));
        self
    }

    /// Does `step` before each write of the ledger.
    pub(crate) fn on_write<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.lease.write = Step::new(step);
        self
    }

    /// Does `step` when the ledger has been written, but the writer does not know it yet.
    pub(crate) fn on_written<F>(mut self, step: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        self.lease.written = Step::new(step);
        self
    }

    /// Runs `hook` when a lease is dropped, before the lock is free.
    pub(crate) fn on_release(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.lease.release = Arc::new(hook);
        self
    }

    fn leased(&self, real: Box<dyn SpawnLease>, at_once: bool) -> Box<dyn SpawnLease> {
        Box::new(ScriptedLease {
            real,
            at_once: at_once && self.lease.verify.is_none(),
            steps: self.lease.clone(),
        })
    }

    /// Makes a change of the ledger, with a step before and after.
    async fn update(
        &self,
        lease: Box<dyn SpawnLease>,
        reading: LedgerReading,
        update: LedgerUpdate,
    ) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let before = match &reading {
            LedgerReading::Found(ledger) => (**ledger).clone(),
            _ => Ledger::default(),
        };
        let Some(ledger) = update.apply(reading, lease.fencing_token()) else {
            return Ok(lease);
        };
        let mut undelivered = Undelivered(Some((lease, before)));
        let written = match &mut undelivered.0 {
            Some((lease, _)) => self.write(&mut **lease, &ledger).await,
            None => Ok(()),
        };
        let (lease, _) = undelivered.0.take().unwrap();
        written.map(|()| lease)
    }

    async fn write(&self, lease: &mut dyn SpawnLease, ledger: &Ledger) -> Scripted {
        self.lease.write.call().await?;
        lease.write_ledger(ledger).await?;
        self.lease.written.call().await
    }
}

/// A lease that its caller does not have yet. If it never comes for it, what was written is taken back.
struct Undelivered(Option<(Box<dyn SpawnLease>, Ledger)>);

impl Drop for Undelivered {
    fn drop(&mut self) {
        if let Some((mut lease, before)) = self.0.take() {
            tokio::spawn(async move { lease.write_ledger(&before).await });
        }
    }
}

impl<K> fmt::Debug for ScriptedLock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedLock")
    }
}

#[async_trait]
impl<K: GateKey> SpawnLock<K> for ScriptedLock<K> {
    async fn try_acquire(
        &self,
        key: &K,
        mut request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        self.tries.call().await?;
        let read = Arc::new(Mutex::new(LedgerReading::NotKept));
        let reader = LedgerUpdate::new({
            let read = Arc::clone(&read);
            move |reading, _| {
                *read.lock().unwrap() = reading;
                None
            }
        });
        let update = std::mem::replace(&mut request.update, reader);
        match self.real.try_acquire(key, request).await? {
            TryAcquire::Acquired(real) => {
                let reading = read.lock().unwrap().clone();
                let real = match reading {
                    LedgerReading::NotKept => real,
                    reading => self.update(real, reading, update).await?,
                };
                Ok(TryAcquire::Acquired(self.leased(real, false)))
            }
            held => {
                (self.found_held)();
                Ok(held)
            }
        }
    }

    fn try_acquire_now(&self, key: &K) -> Option<Box<dyn SpawnLease>> {
        let one_less = |left: u32| left.checked_sub(1);
        let at_once = &self.at_once;
        let is_at_once = at_once.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        is_at_once.ok()?;
        let real = self.real.try_acquire_now(key)?;
        Some(self.leased(real, true))
    }

    async fn released(&self, key: &K, pause: Duration) {
        let Some(waits) = &self.waits else {
            return tokio::time::sleep(pause).await;
        };
        if waits.call().await.is_ok() {
            self.real.released(key, pause).await;
        }
    }

    fn keeps_ledger(&self) -> bool {
        self.real.keeps_ledger()
    }

    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        self.looks.call().await?;
        self.real.read_ledger(key).await
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        self.real.report_backend_end(key, end).await
    }
}

struct ScriptedLease {
    real: Box<dyn SpawnLease>,
    /// It is verified at once.
    at_once: bool,
    steps: LeaseSteps,
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
        if let Some(verify) = &self.steps.verify {
            verify.call().await?;
        }
        self.real.verify().await
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        match self.at_once {
            true => self.real.verify_now(),
            false => None,
        }
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        self.steps.write.call().await?;
        self.real.write_ledger(ledger).await?;
        self.steps.written.call().await
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        if let Some(verify) = &self.steps.verify {
            verify.call().await?;
        }
        if ledger.is_some() {
            self.steps.write.call().await?;
        }
        self.real.settle(ledger).await?;
        match ledger {
            Some(_) => self.steps.written.call().await,
            None => Ok(()),
        }
    }

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        match self.at_once {
            true => self.real.settle_now(),
            false => None,
        }
    }
}

impl Drop for ScriptedLease {
    fn drop(&mut self) {
        (self.steps.release)();
    }
}

/// What a lock says that somebody else holds.
pub(crate) fn held() -> SpawnLockError {
    SpawnLockError::AlreadyLocked {
        path: PathBuf::from("key.lock"),
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
