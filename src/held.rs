//! What a leader holds from taking the lock to settling: the lock, and the ledger if it keeps one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::{Attempt, BudgetRefusal};
use crate::catch_panic::CatchPanic;
use crate::clock::SharedClock;
use crate::lock::{SpawnLease, SpawnLockError};
use crate::open_ledger::OpenLedger;
use crate::policy::BudgetPolicy;
use crate::slot::{Claim, Settling};
use crate::within::within;

/// A held lock and its ledger. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct Held {
    lease: Box<dyn SpawnLease>,
    pub(crate) ledger: Option<Box<OpenLedger>>,
}

impl Held {
    pub(crate) fn new(
        lease: Box<dyn SpawnLease>,
        policy: &BudgetPolicy,
        clock: &Arc<dyn SharedClock>,
    ) -> Self {
        Self {
            ledger: OpenLedger::new(&*lease, policy, clock).map(Box::new),
            lease,
        }
    }

    pub(crate) fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    /// Checks that the lock is still held.
    pub(crate) async fn verify(&self) -> Result<(), SpawnLockError> {
        match self.lease.verify_now() {
            Some(verified) => verified,
            None => Box::pin(answered(self.lease.verify())).await,
        }
    }

    /// Charges the ledger's budget if there is one; else the attempt was charged when the flight was begun. `has_looked`: no
    /// backend runs.
    pub(crate) fn charge(
        &mut self,
        claim: Claim,
        has_looked: bool,
    ) -> Result<Attempt, BudgetRefusal> {
        let Some(ledger) = &mut self.ledger else {
            return match claim {
                Claim::Launch(attempt) => Ok(attempt),
                Claim::Look(refusal) => Err(refusal),
            };
        };
        ledger.charge(has_looked).map_err(|refusal| match claim {
            Claim::Launch(_) => refusal,
            // Only this process knows whether it has reported this storm already; the ledger does not say.
            Claim::Look(BudgetRefusal { first, .. }) => BudgetRefusal { first, ..refusal },
        })
    }

    /// Writes the ledger, if there is one, as it is now.
    pub(crate) async fn write_ledger(&mut self) -> Result<(), SpawnLockError> {
        match &self.ledger {
            Some(ledger) => answered(self.lease.write_ledger(ledger.to_write())).await,
            None => Ok(()),
        }
    }

    /// As [`release`](Self::release), at once, if there is no ledger to write.
    pub(crate) fn release_now(self, settling: Settling) -> Result<Settling, (Self, Settling)> {
        match self.ledger {
            Some(_) => Err((self, settling)),
            None => Ok(settling),
        }
    }

    /// Lets go without a launch. An attempt that the ledger was charged is given back.
    pub(crate) async fn leave(mut self, settling: Settling) -> Settling {
        if let Some(ledger) = &mut self.ledger {
            ledger.leave();
        }
        self.release(settling).await
    }

    /// Writes the ledger and releases the lock. Returns what is to happen to the budget that this process counts: it follows
    /// the ledger, or settles by itself, as `settling` says, if there is none.
    pub(crate) async fn release(mut self, settling: Settling) -> Settling {
        // If that fails, what was written before stands: a charge without an outcome, which counts as failed. It must not
        // take a launch that succeeded with it.
        let _ = CatchPanic::new(self.write_ledger()).await;
        match &self.ledger {
            Some(ledger) => Settling::Ledger(Box::new(ledger.seen())),
            None => settling,
        }
    }
}

/// How long a single call of a lock may take. A file's takes microseconds, unless its file system hangs.
const LONGEST_CALL: Duration = Duration::from_secs(5);

/// Waits for a call of the lock, which must not keep a flight from ending.
pub(crate) async fn answered<V>(
    call: impl Future<Output = Result<V, SpawnLockError>>,
) -> Result<V, SpawnLockError> {
    within(LONGEST_CALL, call)
        .await
        .unwrap_or(Err(SpawnLockError::Unresponsive {
            after: LONGEST_CALL,
        }))
}
