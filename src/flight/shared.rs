//! The state that all handles, leaders and permits of a gate share.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::registry::Registry;
use super::waiting::OnWait;
use crate::budget::{BudgetPolicy, SharedClock};
use crate::key::GateKey;
use crate::ledger::{Ledger, LedgerReading};
use crate::lock::SpawnLock;
use crate::statistics::Recorder;

#[derive(Debug)]
pub(crate) struct Shared<K, T> {
    pub(crate) registry: Registry<K, T>,
    pub(crate) lock: Arc<dyn SpawnLock<K>>,
    pub(crate) clock: Arc<dyn SharedClock>,
    pub(crate) policy: BudgetPolicy,
    pub(crate) timeouts: Timeouts,
    pub(crate) recorder: Recorder,
    pub(crate) on_wait: Option<OnWait>,
}

/// The limit of each stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) lock: Duration,
    pub(crate) discover: Duration,
    pub(crate) launch: Duration,
    pub(crate) follow: Duration,
    pub(crate) drain: Duration,
}

/// The limit of a read without the lock; the step that takes the lock reads the ledger anyway.
const LONGEST_READ: Duration = Duration::from_secs(1);

/// A ledger that was read without its lock.
#[derive(Debug)]
pub(crate) struct UnlockedLedger {
    pub(crate) ledger: Box<Ledger>,
    /// The time right before the read: a reset during the read makes it outdated.
    pub(crate) at: Instant,
}

impl<K: GateKey, T> Shared<K, T> {
    /// Reads the ledger of `key` without its lock. `None` if there is none or it cannot be read in time.
    pub(crate) async fn read_ledger(&self, key: &K) -> Option<UnlockedLedger> {
        if !self.policy.is_in_ledger {
            return None;
        }
        let at = Instant::now();
        let read = timeout(LONGEST_READ, self.lock.read_ledger(key)).await;
        self.unlocked(read.ok()?.ok()?, at)
    }

    /// A reading from `at` on, by this process's clock. `None` if only a holder of the lock can decide on it.
    pub(crate) fn unlocked(&self, reading: LedgerReading, at: Instant) -> Option<UnlockedLedger> {
        match reading {
            LedgerReading::Found(mut ledger) => {
                ledger.by_clock_of_reader(self.clock.now());
                Some(UnlockedLedger { ledger, at })
            }
            _ => None,
        }
    }
}
