//! The lock that is attached to a lease, and what it says about the lease's renewals.
//!
//! A leader that hangs may answer renewals from memory while another leader, elected meanwhile, lets the lease expire (etcd before
//! 3.4.31 and 3.5.13). So once a lock is attached, a renewal counts only if the lock is read afterwards, in the same term: that read
//! takes a majority, so no other leader had been elected when the lease was renewed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::time::Instant;

use crate::core::Core;
use crate::error::EtcdError;
use crate::wire::RangeRequest;

/// What the renewals of a lease know of its lock. All that use it run in one thread.
#[derive(Default)]
pub(crate) struct Attached {
    /// The key of the lock and its create revision.
    pub(crate) lock: OnceLock<(Vec<u8>, i64)>,
    /// The lock may be deleted by its holder.
    pub(crate) is_releasing: AtomicBool,
    unconfirmed: Mutex<Unconfirmed>,
}

/// The renewals before a lock was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    pub(crate) count: u64,
    /// The term that the last one was answered in.
    pub(crate) term: u64,
}

impl Attached {
    pub(crate) fn unconfirmed(&self) -> Unconfirmed {
        *self
            .unconfirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a renewal that nothing confirms.
    fn note_unconfirmed(&self, term: u64) {
        let mut unconfirmed = self
            .unconfirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unconfirmed.count += 1;
        unconfirmed.term = term;
    }

    /// Returns whether the lock shows that a renewal in this term was that of the cluster's leader; an error if the lock is gone.
    pub(crate) async fn confirms(
        &self,
        core: &Core,
        id: i64,
        term: u64,
        end: Instant,
    ) -> Result<bool, EtcdError> {
        let Some((key, token)) = self.lock.get() else {
            self.note_unconfirmed(term);
            return Ok(true);
        };
        let read = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let Ok(answer) = core.renewals.call(&read, end).await else {
            return Ok(false);
        };
        if answer.kvs.iter().any(|lock| lock.create_revision == *token) {
            return Ok(answer.header.is_some_and(|header| header.raft_term == term));
        }
        match self.is_releasing.load(Ordering::SeqCst) {
            true => Ok(false),
            false => Err(EtcdError::LeaseGone { lease: id }),
        }
    }
}
