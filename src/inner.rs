//! What all handles of a gate, its leaders and its permits share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::budget::BudgetPolicy;
use crate::clock::SharedClock;
use crate::error::{BudgetExhausted, GateError};
use crate::flight::Flight;
use crate::key::{GateKey, key_label};
use crate::ledger::Ledger;
use crate::lock::SpawnLock;
use crate::table::{Entered, Table};

#[derive(Debug)]
pub(crate) struct Inner<K, T> {
    pub(crate) table: Mutex<Table<K, T>>,
    pub(crate) lock: Arc<dyn SpawnLock<K>>,
    pub(crate) clock: Arc<dyn SharedClock>,
    pub(crate) policy: BudgetPolicy,
    pub(crate) timeouts: Timeouts,
}

/// How long each stage may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) lock: Duration,
    pub(crate) discover: Duration,
    pub(crate) launch: Duration,
    pub(crate) follow: Duration,
    pub(crate) drain: Duration,
}

/// How long a look into a ledger may take; it is worth no more waiting.
const LONGEST_PEEK: Duration = Duration::from_secs(1);

/// A caller's part in a flight.
pub(crate) enum Part<T> {
    Follow(Arc<Flight<T>>),
    Lead(Arc<Flight<T>>),
}

impl<K: GateKey, T> Inner<K, T> {
    /// Enters the gate: the caller gets its part, or is refused.
    pub(crate) async fn enter(&self, key: &K, can_discover: bool) -> Result<Part<T>, GateError> {
        let entered = {
            let mut table = self.table.lock().await;
            // Read under the mutex, so that the times in the table are in order.
            table.enter(key, can_discover, Instant::now())
        };
        match entered {
            Entered::Follow(flight) => Ok(Part::Follow(flight)),
            Entered::Lead(flight) => Ok(Part::Lead(flight)),
            Entered::Refused(refusal) => Err(BudgetExhausted::new(key_label(key), refusal).into()),
            Entered::Closed => Err(GateError::Closed),
        }
    }

    /// Reads the ledger of `key` without its lock, if there is one and it answers.
    pub(crate) async fn peek(&self, key: &K) -> Option<Ledger> {
        let peeked = timeout(LONGEST_PEEK, self.lock.peek(key)).await;
        peeked.ok().flatten()
    }

    /// Settles the ended flight of `key` now rather than at the next request or sweep, if nobody is at the table. Nothing
    /// depends on it but memory.
    pub(crate) fn absorb(&self, key: &K) {
        if let Ok(mut table) = self.table.try_lock() {
            table.absorb(key);
        }
    }
}
