//! A held spawn lock, and the leader's turn at its ledger.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use crate::budget::{ClockReading, Settlement};
use crate::ledger::LedgerSession;
use crate::lock::{SpawnLease, SpawnLockError};
use crate::util::{CatchPanic, lazy_timeout};

/// A lease with the leader's session at its ledger. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct HeldLock {
    lease: Box<dyn SpawnLease>,
    /// `None` if the lock keeps no ledger.
    pub(crate) session: Option<Box<LedgerSession>>,
}

impl HeldLock {
    pub(crate) fn new(lease: Box<dyn SpawnLease>, session: Option<Box<LedgerSession>>) -> Self {
        Self { lease, session }
    }

    pub(crate) fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    /// Checks that the lock is still held.
    pub(crate) async fn verify(&self) -> Result<(), SpawnLockError> {
        match self.lease.verify_now() {
            Some(verified) => verified,
            None => Box::pin(self.answered(self.lease.verify())).await,
        }
    }

    /// Like [`verify`](Self::verify); `None` if that needs waiting.
    pub(crate) fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        self.lease.verify_now()
    }

    /// Resolves when the lock is known to be lost; never, if the lease does not announce a loss.
    pub(crate) async fn lost(&self) -> SpawnLockError {
        match self.lease.lost() {
            Some(lost) => lost.await,
            None => std::future::pending().await,
        }
    }

    /// Writes the current ledger, if the lock keeps one.
    pub(crate) async fn write_ledger(&mut self) -> Result<(), SpawnLockError> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let limit = call_limit(&*self.lease);
        answered(limit, self.lease.write_ledger(session.to_write())).await
    }

    /// Takes back the charge in the ledger. Returns whether that is written; false if there is no ledger.
    pub(crate) async fn refund(&mut self, now: ClockReading) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        session.settle(Settlement::Refund, None, now);
        self.write_ledger().await.is_ok()
    }

    /// Settles; `None` if that needs waiting.
    pub(crate) fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        match self.session {
            Some(_) => None,
            None => self.lease.settle_now(),
        }
    }

    /// Verifies the lock, writes the last record, and releases the lock; dropping this completes the release.
    pub(crate) async fn settle(
        &mut self,
        settlement: Settlement,
        failure: Option<&str>,
        now: ClockReading,
    ) -> Result<(), SpawnLockError> {
        if let Some(session) = &mut self.session {
            session.settle(settlement, failure, now);
        }
        let limit = call_limit(&*self.lease);
        let record = self.session.as_ref().map(|session| session.to_write());
        // A panic of the lock must not turn a success into a failure.
        let settled = pin!(CatchPanic::new(self.lease.settle(record)));
        match lazy_timeout(limit, settled).await {
            Some(Ok(settled)) => settled,
            Some(Err(message)) => Err(SpawnLockError::Service {
                lock: String::new(),
                source: message.into(),
                retry_helps: false,
            }),
            None => Err(SpawnLockError::Unresponsive { after: limit }),
        }
    }

    async fn answered<V>(
        &self,
        call: impl Future<Output = Result<V, SpawnLockError>>,
    ) -> Result<V, SpawnLockError> {
        answered(call_limit(&*self.lease), call).await
    }
}

/// The limit of a call of a lease that does not expire. A lock file's call takes microseconds, unless its file system hangs.
pub(crate) const LONGEST_CALL: Duration = Duration::from_secs(5);

fn call_limit(lease: &dyn SpawnLease) -> Duration {
    lease.expires_in().unwrap_or(LONGEST_CALL)
}

/// Awaits a call of the lock with a limit, so that a lock that hangs does not keep a flight from ending.
pub(crate) async fn answered<V>(
    limit: Duration,
    call: impl Future<Output = Result<V, SpawnLockError>>,
) -> Result<V, SpawnLockError> {
    lazy_timeout(limit, pin!(call))
        .await
        .unwrap_or(Err(SpawnLockError::Unresponsive { after: limit }))
}
