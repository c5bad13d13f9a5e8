//! Leases as they are granted: revoked again unless somebody keeps them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::core::{Core, new_lease_id, seconds};
use crate::error::{EtcdError, says_lease_exists};
use crate::wire::LeaseGrantRequest;

/// The lease of a record. Nobody renews it: its remaining time tells the record's age.
pub(crate) struct RecordLease {
    granted: Granted,
    /// When the grant was sent. The lease is not older than this.
    pub(crate) began: Instant,
}

impl RecordLease {
    /// Grants a lease. If it is dropped unused, it is revoked.
    pub(crate) async fn grant(core: &Arc<Core>, deadline: Instant) -> Result<Self, EtcdError> {
        let granted = Granted::new(core);
        let began = Instant::now();
        grant(core, granted.id, core.config.kept_for, deadline).await?;
        Ok(Self { granted, began })
    }

    /// Its id.
    pub(crate) fn id(&self) -> i64 {
        self.granted.id
    }

    /// Returns its id, for a record to be attached to. From then on, dropping this does not revoke it.
    pub(crate) fn into_id(self) -> i64 {
        self.granted.keep()
    }
}

/// An id that may have been granted. Dropping it revokes the lease.
pub(crate) struct Granted {
    core: Arc<Core>,
    pub(crate) id: i64,
    is_kept: bool,
}

impl Granted {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Self {
            core: Arc::clone(core),
            id: new_lease_id(),
            is_kept: false,
        }
    }

    pub(crate) fn keep(mut self) -> i64 {
        self.is_kept = true;
        self.id
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if !self.is_kept {
            self.core.revoke(self.id);
        }
    }
}

/// Grants a lease with this id. Returns for how long.
pub(crate) async fn grant(
    core: &Core,
    id: i64,
    ttl: Duration,
    deadline: Instant,
) -> Result<Duration, EtcdError> {
    let request = LeaseGrantRequest {
        ttl: seconds(ttl),
        id,
    };
    match core.calls.call(&request, deadline).await {
        Ok(answer) => Ok(Duration::from_secs(
            u64::try_from(answer.ttl).unwrap_or_default(),
        )),
        // An earlier try was answered too late.
        Err(error) if says_lease_exists(&error) => Ok(ttl),
        Err(error) => Err(error),
    }
}
