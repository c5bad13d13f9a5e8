//! A held lock, as a gate uses it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::Ledger;
use spawn_gate::async_trait;
use spawn_gate::lock::{LeaseLost, SpawnLease, SpawnLockError};

use crate::error::EtcdError;
use crate::lease::EtcdLease;

/// A held lock, as a gate uses it: each call is a task of the lock's thread.
pub(crate) struct Held {
    token: u64,
    expires_in: Option<Duration>,
    /// `None` while a call that writes is in progress. If that is dropped, its task drops the lease, which releases the lock.
    lease: Option<Box<EtcdLease>>,
}

impl Held {
    pub(crate) fn new(lease: Box<EtcdLease>) -> Self {
        Self {
            token: lease.token(),
            expires_in: lease.lease().map(|lease| lease.expires_in),
            lease: Some(lease),
        }
    }

    fn lease(&self) -> Result<&EtcdLease, SpawnLockError> {
        self.lease.as_deref().ok_or_else(cut_short)
    }

    /// Runs a call that writes.
    async fn write<F>(
        &mut self,
        call: impl FnOnce(Box<EtcdLease>) -> F + Send,
    ) -> Result<(), SpawnLockError>
    where
        F: Future<Output = (Box<EtcdLease>, Result<(), EtcdError>)> + Send + 'static,
    {
        let lease = self.lease.take().ok_or_else(cut_short)?;
        let core = Arc::clone(lease.core());
        let name = lease.names().shown().to_owned();
        let call = call(lease);
        let (lease, written) = core
            .run(async move { Ok(call.await) })
            .await
            .map_err(|error| error.into_lock_error(&name))?;
        self.lease = Some(lease);
        written.map_err(|error| error.into_lock_error(&name))
    }
}

fn cut_short() -> SpawnLockError {
    SpawnLockError::LeaseLost {
        lock: String::new(),
        source: None,
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(f)
    }
}

#[async_trait]
impl SpawnLease for Held {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        let lease = self.lease()?;
        let verified = lease.core().run(lease.verify()).await;
        verified.map_err(|error| error.into_lock_error(lease.names().shown()))
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        let lease = self.lease.as_ref()?;
        let verified = lease.verified()?;
        Some(verified.map_err(|error| error.into_lock_error(lease.names().shown())))
    }

    fn lost(&self) -> Option<LeaseLost<'_>> {
        let lease = self.lease.as_ref()?;
        let name = lease.names().shown().to_owned();
        let lost = lease.lease()?.lost();
        Some(Box::pin(async move {
            SpawnLockError::LeaseLost {
                lock: name,
                source: lost.await.map(Into::into),
            }
        }))
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let ledger = ledger.clone();
        self.write(async move |mut lease| {
            let deadline = lease.deadline();
            let written = lease.write(&ledger, deadline).await;
            (lease, written)
        })
        .await
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        let ledger = ledger.cloned();
        self.write(async move |mut lease| {
            let settled = lease.settle(ledger.as_ref()).await;
            (lease, settled)
        })
        .await
    }
}
