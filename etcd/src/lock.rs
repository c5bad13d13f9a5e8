//! The lock, as a gate uses it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::{BackendEnd, LedgerReading};
use spawn_gate::lock::{LockRequest, SpawnLock, SpawnLockError, TryAcquire};
use spawn_gate::{GateKey, async_trait};
use tokio::time::Instant;

use crate::acquire::{self, Tried};
use crate::builder::EtcdSpawnLockBuilder;
use crate::core::{Core, after};
use crate::error::EtcdError;
use crate::grant::RecordLease;
use crate::held::Held;
use crate::inspect::{self, Inspection};
use crate::names::Names;
use crate::record::{end_text, parse_end};
use crate::registration::{self, Registration};
use crate::state::read_all;
use crate::wire::{Compare, PutRequest, RangeRequest, Request, TxnRequest};

/// Spawn locks in etcd, for all hosts that reach the cluster. Clones share the connections.
///
/// Each key has a lock, on a lease that a thread of this lock renews, and a record with the budget and the last outcome. All gates
/// with the same prefix exclude each other and share budgets.
///
/// # Examples
///
/// ```no_run
/// use spawn_gate::SpawnGate;
/// use spawn_gate_etcd::EtcdSpawnLock;
///
/// # fn main() -> Result<(), spawn_gate_etcd::EtcdError> {
/// let lock = EtcdSpawnLock::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379"]).build()?;
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(lock).build();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdSpawnLock {
    pub(crate) core: Arc<Core>,
}

impl EtcdSpawnLock {
    /// Begins the settings of a lock on the cluster with these endpoints: URLs with host and port, of any of its members.
    pub fn builder<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
    ) -> EtcdSpawnLockBuilder {
        EtcdSpawnLockBuilder::new(endpoints.into_iter().map(Into::into).collect())
    }

    /// Checks that the cluster answers and lets this user read the keys. A gate works without it; a program calls it at its start
    /// to report a wrong setting at once.
    ///
    /// # Errors
    ///
    /// What a later request would get as the source of its error. A retry helps if [`EtcdError::retry_helps`] is true.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn check(&self, limit: Duration) -> Result<(), EtcdError> {
        let core = Arc::clone(&self.core);
        let names = Names::new(&self.core.config.prefix, &"");
        let deadline = after(limit);
        let checking = async move { core.calls.call(&read_all(&names), deadline).await.map(drop) };
        self.core.run(checking).await
    }

    /// Reads every key of the prefix: its holder, its budget and its last outcome. Takes no lock and disturbs no holder.
    ///
    /// # Errors
    ///
    /// If the cluster cannot be read; a retry helps if [`EtcdError::retry_helps`] is true. What others wrote below the prefix is
    /// listed, and no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, EtcdError> {
        self.core
            .run(inspect::inspect(Arc::clone(&self.core)))
            .await
    }

    /// Registers the backend of a launch, unless a younger launch has begun. Returns whether it is registered. The backend itself
    /// calls it before it serves, with the fencing token that its launcher gave it, and ends on `false`: its launcher was paused or
    /// cut off for longer than its lease, and another host took the lock meanwhile.
    ///
    /// A younger launch may begin later. So a backend looks at [`registered`](Self::registered) again, each few seconds, and ends
    /// once another one is registered.
    ///
    /// # Errors
    ///
    /// If the cluster cannot be asked; the backend may be registered. A retry helps if [`EtcdError::retry_helps`] is true.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the backend may be registered later.
    pub async fn register<K: GateKey>(
        &self,
        key: &K,
        fencing_token: u64,
        value: impl Into<String>,
    ) -> Result<bool, EtcdError> {
        let (core, names) = (Arc::clone(&self.core), self.names(key));
        let registering = registration::register(core, names, fencing_token, value.into());
        self.core.run(registering).await
    }

    /// Returns the backend that is registered, for a launcher's look. It may have ended since.
    ///
    /// # Errors
    ///
    /// If the cluster cannot be read. A retry helps if [`EtcdError::retry_helps`] is true.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn registered<K: GateKey>(&self, key: &K) -> Result<Option<Registration>, EtcdError> {
        let (core, names) = (Arc::clone(&self.core), self.names(key));
        self.core.run(registration::registered(core, names)).await
    }

    fn names<K: GateKey>(&self, key: &K) -> Names {
        Names::new(&self.core.config.prefix, key)
    }
}

impl fmt::Debug for EtcdSpawnLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSpawnLock")
            .field("endpoints", &self.core.config.endpoints)
            .field("prefix", &self.core.config.prefix)
            .finish_non_exhaustive()
    }
}

/// How long a try may outlast the deadline, so that its error says more than a timeout. The gate waits for a second.
const OVERTIME: Duration = Duration::from_millis(800);

#[async_trait]
impl<K: GateKey> SpawnLock<K> for EtcdSpawnLock {
    async fn try_acquire(
        &self,
        key: &K,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let names = self.names(key);
        // By the caller's clock, which a test may pause.
        let left = request.deadline.saturating_duration_since(Instant::now());
        let (core, of_task) = (Arc::clone(&self.core), names.clone());
        let trying = async move {
            let deadline = after(left.saturating_add(OVERTIME));
            acquire::try_once(core, of_task, request, deadline).await
        };
        match self.core.run(trying).await {
            Ok(Tried::Taken(mut lease)) => {
                lease.claim();
                Ok(TryAcquire::Acquired(Box::new(Held::new(lease))))
            }
            Ok(Tried::Held(ledger)) => Ok(TryAcquire::Held {
                lock: PathBuf::from(names.shown()),
                ledger,
            }),
            Ok(Tried::Answered(ledger)) => Ok(TryAcquire::Answered(ledger)),
            Err(error) => Err(error.into_lock_error(names.shown())),
        }
    }

    async fn released(&self, key: &K, pause: Duration) {
        match self.core.watches.of(&self.names(key)) {
            Some(watched) => watched.released().await,
            None => tokio::time::sleep(pause).await,
        }
    }

    fn keeps_ledger(&self) -> bool {
        true
    }

    async fn read_ledger(&self, key: &K) -> Result<LedgerReading, SpawnLockError> {
        let names = self.names(key);
        let reading = match acquire::watched_ledger(&self.core, &names) {
            Some(reading) => reading,
            None => {
                let reading = acquire::read_ledger(Arc::clone(&self.core), names.clone());
                self.core.run(reading).await
            }
        };
        reading.map_err(|error| error.into_lock_error(names.shown()))
    }

    async fn report_backend_end(&self, key: &K, end: &BackendEnd) -> Result<(), SpawnLockError> {
        let names = self.names(key);
        let reporting = report(Arc::clone(&self.core), names.clone(), end.clone());
        let reported = self.core.run(reporting).await;
        reported.map_err(|error| error.into_lock_error(names.shown()))
    }
}

/// Writes the report of a backend's end, on a lease of its own, unless there is one of the same launch or a younger one.
async fn report(core: Arc<Core>, names: Names, end: BackendEnd) -> Result<(), EtcdError> {
    let deadline = core.deadline();
    // Revoked, and the report with it, unless this is done.
    let lease = RecordLease::grant(&core, deadline).await?;
    loop {
        let key = names.ended();
        let read = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let found = core.calls.call(&read, deadline).await?.kvs;
        let found = found.into_iter().next();
        let (found_at, elder) = match &found {
            // An earlier attempt of the call below has written it.
            Some(found) if found.lease == lease.id() => break,
            Some(found) => (found.mod_revision, found.lease),
            None => (0, 0),
        };
        let known = found.as_ref().and_then(parse_end);
        if known.is_some_and(|known| known.launch >= end.launch) {
            return Ok(());
        }
        let put = PutRequest {
            key: key.clone(),
            value: end_text(&end),
            lease: lease.id(),
        };
        let txn = TxnRequest {
            compare: vec![Compare::modified_at(key, found_at)],
            success: vec![Request::Put(put).into()],
            failure: Vec::new(),
        };
        if core.calls.call(&txn, deadline).await?.succeeded {
            if elder != 0 {
                core.revoke(elder);
            }
            break;
        }
    }
    lease.into_id();
    Ok(())
}
