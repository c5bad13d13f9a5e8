//! A held lock: its writes, each a transaction on the lock's create revision.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::Ledger;
use tokio::time::Instant;

use crate::core::Core;
use crate::error::EtcdError;
use crate::names::Names;
use crate::place::Places;
use crate::record::{has_charge, record_text};
use crate::renewal::{RecordLease, RenewedLease};
use crate::state::{KeyState, read_all, read_all_op};
use crate::wire::{Compare, DeleteRequest, KeyValue, PutRequest, Request, RequestOp, TxnRequest};

/// A held lock, with the place of its record. Dropping it releases the lock; until it is [claimed](Self::claim), that takes back
/// what was written, too.
pub(crate) struct EtcdLease {
    core: Arc<Core>,
    names: Names,
    /// The create revision of the lock.
    token: i64,
    /// `None` once settled or dropped.
    lease: Option<RenewedLease>,
    places: Places,
    /// To be written if this is dropped before it is claimed.
    restore: Option<Restore>,
    /// The last record, if it is unknown whether it was written.
    last_record: Option<Vec<u8>>,
    /// When etcd last said that the lock is held.
    confirmed: Option<Instant>,
}

/// The record before a try.
pub(crate) struct Restore(Option<KeyValue>);

impl Restore {
    pub(crate) fn new(record: Option<KeyValue>) -> Self {
        Self(record)
    }
}

/// A lock that was confirmed this recently needs not be asked for.
const CONFIRMED_FOR: Duration = Duration::from_millis(500);

impl EtcdLease {
    /// `fresh`: the lease for a record with a new charge.
    pub(crate) fn new(
        core: &Arc<Core>,
        names: Names,
        token: i64,
        lease: RenewedLease,
        fresh: RecordLease,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            names,
            token,
            lease: Some(lease),
            places: Places::new(fresh),
            restore: None,
            last_record: None,
            confirmed: Some(Instant::now()),
        }
    }

    pub(crate) fn token(&self) -> u64 {
        self.token.cast_unsigned()
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    pub(crate) fn lease(&self) -> Option<&RenewedLease> {
        self.lease.as_ref()
    }

    /// The caller has the lease: from now on, dropping it only releases the lock.
    pub(crate) fn claim(&mut self) {
        self.restore = None;
        self.places.revoke_left_behind(&self.core);
    }

    /// Where the record is.
    pub(crate) fn places(&mut self) -> &mut Places {
        &mut self.places
    }

    pub(crate) fn restore_if_dropped(&mut self, restore: Restore) {
        self.restore = Some(restore);
    }

    /// Whether the lock is held, as far as that is known without asking.
    pub(crate) fn verified(&self) -> Option<Result<(), EtcdError>> {
        if let Err(lost) = self.left() {
            return Some(Err(lost));
        }
        let is_new = |at: Instant| at.elapsed() < CONFIRMED_FOR;
        self.confirmed.is_some_and(is_new).then_some(Ok(()))
    }

    /// Asks whether the lock is held, or was released by the [`settle`](Self::settle) before.
    pub(crate) fn verify(
        &self,
    ) -> impl Future<Output = Result<(), EtcdError>> + Send + 'static + use<> {
        let (core, names) = (Arc::clone(&self.core), self.names.clone());
        let (token, last_record) = (self.token, self.last_record.clone());
        let (deadline, left) = (self.deadline(), self.left());
        async move {
            left?;
            let answer = core.calls.call(&read_all(&names), deadline).await?;
            let revision = answer.header.map_or(0, |header| header.revision);
            let state = KeyState::new(&names, answer.kvs, revision);
            is_ours(&state, token, last_record.as_deref())
        }
    }

    /// Writes the record.
    pub(crate) async fn write(
        &mut self,
        ledger: &Ledger,
        deadline: Instant,
    ) -> Result<(), EtcdError> {
        self.write_and(Some(ledger), None, deadline).await
    }

    /// Writes the last record and deletes the lock.
    pub(crate) async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), EtcdError> {
        let key = self.names.lock();
        let release = Request::Delete(DeleteRequest { key }).into();
        self.write_and(ledger, Some(release), self.deadline())
            .await?;
        if let Some(lease) = self.lease.take() {
            lease.let_expire();
        }
        Ok(())
    }

    async fn write_and(
        &mut self,
        ledger: Option<&Ledger>,
        release: Option<RequestOp>,
        deadline: Instant,
    ) -> Result<(), EtcdError> {
        let mut is_first = true;
        loop {
            let mut writes: Vec<RequestOp> = release.iter().cloned().collect();
            let mut record = None;
            if let Some(ledger) = ledger {
                let put = self.put(ledger, deadline).await?;
                record = Some(put.value.clone());
                writes.push(Request::Put(put).into());
            }
            if release.is_some() {
                self.last_record.clone_from(&record);
            }
            let committed = self.commit(writes, record.as_deref(), deadline).await;
            match committed {
                Ok(()) => {
                    self.places.moved();
                    return Ok(());
                }
                // The record's lease may have expired, and not the lock's.
                Err(EtcdError::LeaseGone { .. }) if is_first && self.left().is_ok() => {
                    is_first = false;
                    self.places.forget();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits if the lock is still that of this lease, or finds that an earlier try did.
    async fn commit(
        &mut self,
        writes: Vec<RequestOp>,
        record: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<(), EtcdError> {
        self.confirmed = None;
        self.left()?;
        let txn = TxnRequest {
            compare: vec![Compare::created_at(self.names.lock(), self.token)],
            success: writes,
            failure: vec![read_all_op(&self.names)],
        };
        let answer = match self.core.calls.call(&txn, deadline).await {
            Ok(answer) => answer,
            // Whether it is written or not: nobody else is kept from launching now.
            Err(error) => return Err(self.left().err().unwrap_or(error)),
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            self.core
                .ages
                .saw(self.names.shown(), revision, Duration::ZERO);
        } else {
            let state = KeyState::new(&self.names, answer.into_kvs(), revision);
            is_ours(&state, 0, record)?;
        }
        self.confirmed = Some(Instant::now());
        Ok(())
    }

    /// The request to write the record.
    async fn put(&mut self, ledger: &Ledger, deadline: Instant) -> Result<PutRequest, EtcdError> {
        let is_charged = has_charge(ledger, self.token());
        let place = self.places.next(&self.core, is_charged, deadline).await?;
        Ok(PutRequest {
            key: self.names.record(),
            value: record_text(place.now(), ledger),
            lease: place.lease,
        })
    }

    /// An error, if the lease is lost.
    fn left(&self) -> Result<(), EtcdError> {
        let Some(lease) = &self.lease else {
            return Err(EtcdError::LeaseGone { lease: 0 });
        };
        match lease.left() {
            Ok(_) => Ok(()),
            Err(Some(error)) => Err(error),
            Err(None) => Err(EtcdError::LeaseGone { lease: lease.id }),
        }
    }

    /// A call of a lease is of no use after its end.
    pub(crate) fn deadline(&self) -> Instant {
        let left = self.lease.as_ref().map(RenewedLease::left);
        Instant::now() + left.and_then(Result::ok).unwrap_or_default()
    }
}

/// Whether the lock is the one with this token, or this record was the last one with it.
fn is_ours(state: &KeyState, token: i64, record: Option<&[u8]>) -> Result<(), EtcdError> {
    let lock = state.lock.as_ref();
    let is_held = lock.is_some_and(|lock| lock.create_revision == token);
    let written = state.record.as_ref().map(|record| &record.value[..]);
    let is_settled = record.is_some() && written == record;
    match is_held || is_settled {
        true => Ok(()),
        false => Err(EtcdError::LeaseGone {
            lease: lock.map_or(0, |lock| lock.lease),
        }),
    }
}

impl Drop for EtcdLease {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else {
            self.places.revoke_left_behind(&self.core);
            return;
        };
        let Some(Restore(before)) = self.restore.take() else {
            self.places.revoke_left_behind(&self.core);
            return;
        };
        let key = self.names.record();
        let restore = match before {
            Some(before) => Request::Put(PutRequest {
                key,
                value: before.value,
                lease: before.lease,
            }),
            None => Request::Delete(DeleteRequest { key }),
        };
        let delete = DeleteRequest {
            key: self.names.lock(),
        };
        let txn = TxnRequest {
            compare: vec![Compare::created_at(self.names.lock(), self.token)],
            success: vec![restore.into(), Request::Delete(delete).into()],
            failure: Vec::new(),
        };
        let (core, deadline) = (Arc::clone(&self.core), self.core.deadline());
        self.core.run_alone(async move {
            // The lock's lease is held until then.
            let _ = core.calls.call(&txn, deadline).await;
            drop(lease);
        });
    }
}

impl fmt::Debug for EtcdLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLease")
            .field("lock", &self.names.shown())
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
