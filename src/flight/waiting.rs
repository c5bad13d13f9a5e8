//! A wait that takes long, for the person who waits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Stage;
use crate::ledger::LedgerHolder;
use crate::lock::{Ago, Who};
use crate::util::caught;

/// A wait longer than this is shown.
pub(super) const LONG_WAIT: Duration = Duration::from_secs(1);

/// What a flight waits for, once the wait is longer than a second. The argument of
/// [`SpawnGateBuilder::on_wait`](crate::SpawnGateBuilder::on_wait).
///
/// It prints as `waiting for the spawn lock of indexer for 1.0s, for at most 139.0s more; process 4711 took the lock 3.2 s ago`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiting {
    /// The key as text.
    pub key: Arc<str>,
    /// What the flight waits for: [`Stage::Lock`]: another holder of the spawn lock. [`Stage::Discover`]: the launcher looks, or
    /// waits for a backend that is starting. [`Stage::Launch`]: this process's own launch.
    pub stage: Stage,
    /// How long the wait has taken so far.
    pub waited: Duration,
    /// How long it can take from now on: the stage then times out.
    pub left: Duration,
    /// The process that launches, if it is another one and the ledger names it.
    pub holder: Option<LedgerHolder>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            stage,
            waited,
            left,
            holder,
        } = self;
        write!(
            f,
            "{stage} {key} for {waited:.1?}, for at most {left:.1?} more"
        )?;
        match holder {
            Some(holder) => write!(
                f,
                "; {} took the lock{}",
                Who(holder.pid, holder.host.as_ref()),
                Ago(holder.since.system_time())
            ),
            None => Ok(()),
        }
    }
}

/// What to do once a call takes long. Boxed, so that calls without a hook have no room for it.
pub(super) type Notice<'a> = Box<dyn FnOnce() + Send + 'a>;

/// The hook of [`SpawnGateBuilder::on_wait`](crate::SpawnGateBuilder::on_wait).
#[derive(Clone)]
pub(crate) struct OnWait(Arc<dyn Fn(&Waiting) + Send + Sync>);

impl OnWait {
    pub(crate) fn new(hook: impl Fn(&Waiting) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Calls the hook. Its panic must not end the flight.
    pub(super) fn tell(&self, waiting: &Waiting) {
        let _ = caught(|| (self.0)(waiting));
    }
}

impl fmt::Debug for OnWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnWait")
    }
}
