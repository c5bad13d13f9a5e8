//! A held lock: its writes, each a transaction on the lock's create revision and the record's mod revision. So a duplicate of a write
//! that arrives late changes nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::Ledger;
use tokio::time::Instant;

use crate::core::Core;
use crate::error::EtcdError;
use crate::grant::RecordLease;
use crate::names::Names;
use crate::place::Places;
use crate::record::{has_charge, record_text};
use crate::renewal::RenewedLease;
use crate::settled::{Last, gone, is_held, is_settled, is_success};
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
    /// The mod revision of the record that was read or written last; zero if there was none.
    record_at: i64,
    /// Records that were sent, and it is unknown whether they were written.
    unanswered: Vec<Vec<u8>>,
    /// The last record, once it was sent with the release.
    last: Option<Last>,
    /// When etcd last said that the lock is held.
    confirmed: Option<Instant>,
}

/// What became of a write that was answered.
enum Answered {
    Written,
    /// The lock is held, but the record is another one than was thought, or its lease is gone. The write is to be made anew.
    Again,
}

/// A write is made anew this often: for a record whose lease expired, and for one that an unanswered write left.
const TRIES: usize = 3;

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
    /// `fresh`: the lease for a record with a new charge. `record_at`: the mod revision of the record that was found with the lock.
    pub(crate) fn new(
        core: &Arc<Core>,
        names: Names,
        token: i64,
        lease: RenewedLease,
        fresh: RecordLease,
        record_at: i64,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            names,
            token,
            lease: Some(lease),
            places: Places::new(fresh),
            restore: None,
            record_at,
            unanswered: Vec::new(),
            last: None,
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
        let (token, last) = (self.token, self.last.clone());
        let (deadline, left) = (self.deadline(), self.left());
        async move {
            left?;
            let answer = core.calls.call(&read_all(&names), deadline).await?;
            let revision = answer.header.map_or(0, |header| header.revision);
            let state = KeyState::new(&names, answer.kvs, revision);
            match is_held(&state, token) || is_settled(&state, token, last.as_ref()) {
                true => Ok(()),
                false => Err(gone(&state)),
            }
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
        if let Some(lease) = &self.lease {
            lease.is_about_to_be_released();
        }
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
        for _ in 0..TRIES {
            // Before anything is granted or sent.
            self.left()?;
            let mut writes: Vec<RequestOp> = release.iter().cloned().collect();
            let mut record = None;
            if let Some(ledger) = ledger {
                let put = self.put(ledger, deadline).await?;
                if release.is_some() {
                    self.last = Some(Last {
                        text: put.value.clone(),
                        is_success: is_success(ledger, self.token()),
                        after: self.record_at,
                    });
                }
                record = Some(put.value.clone());
                writes.push(Request::Put(put).into());
            }
            match self
                .commit(writes, record, release.is_some(), deadline)
                .await?
            {
                Answered::Written => {
                    self.places.moved();
                    return Ok(());
                }
                Answered::Again => {}
            }
        }
        Err(EtcdError::RecordChanged {
            key: self.names.shown().to_owned(),
        })
    }

    /// Commits if the lock is still that of this lease and the record is the one that it read or wrote last, or finds that an
    /// earlier attempt of the same call did.
    async fn commit(
        &mut self,
        writes: Vec<RequestOp>,
        record: Option<Vec<u8>>,
        is_release: bool,
        deadline: Instant,
    ) -> Result<Answered, EtcdError> {
        self.confirmed = None;
        self.left()?;
        let mut compare = vec![Compare::created_at(self.names.lock(), self.token)];
        if record.is_some() {
            compare.push(Compare::modified_at(self.names.record(), self.record_at));
        }
        let txn = TxnRequest {
            compare,
            success: writes,
            failure: vec![read_all_op(&self.names)],
        };
        let answer = match self.core.calls.call(&txn, deadline).await {
            Ok(answer) => answer,
            // Etcd itself says that a lease is gone that the record was to be attached to. An earlier attempt cannot have written it.
            Err(EtcdError::LeaseGone { .. }) if record.is_some() && self.left().is_ok() => {
                self.places.forget();
                return Ok(Answered::Again);
            }
            // Whether it is written or not: nobody else is kept from launching now.
            Err(error) => {
                self.unanswered.extend(record);
                return Err(self.left().err().unwrap_or(error));
            }
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            if record.is_some() {
                self.wrote(revision);
            }
            self.confirmed = Some(Instant::now());
            return Ok(Answered::Written);
        }
        let state = KeyState::new(&self.names, answer.into_kvs(), revision);
        if !is_held(&state, self.token) {
            if is_release && is_settled(&state, self.token, self.last.as_ref()) {
                return Ok(Answered::Written);
            }
            self.places.revoke_unused(&self.core, state.record.as_ref());
            return Err(gone(&state));
        }
        let (found_at, found) = match &state.record {
            Some(found) => (found.mod_revision, Some(&found.value)),
            None => (0, None),
        };
        // With the release, it would have deleted the lock.
        if !is_release && record.is_some() && found == record.as_ref() {
            self.wrote(found_at);
            return Ok(Answered::Written);
        }
        match found {
            // Its lease has expired.
            None => self.places.forget(),
            // An earlier write was made after all.
            Some(found) if self.unanswered.contains(found) => {}
            Some(_) => {
                return Err(EtcdError::RecordChanged {
                    key: self.names.shown().to_owned(),
                });
            }
        }
        self.record_at = found_at;
        Ok(Answered::Again)
    }

    /// The record was written at this revision, at this moment or before.
    fn wrote(&mut self, revision: i64) {
        self.record_at = revision;
        self.unanswered.clear();
        self.core
            .ages
            .saw(self.names.shown(), revision, Duration::ZERO);
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
            failure: vec![read_all_op(&self.names)],
        };
        let (core, deadline) = (Arc::clone(&self.core), self.core.deadline());
        let (names, mut places) = (self.names.clone(), std::mem::take(&mut self.places));
        self.core.run_alone(async move {
            if let Ok(answer) = core.calls.call(&txn, deadline).await {
                let kvs = answer.into_kvs();
                // If it was restored, nothing is found, and nothing is attached to the lease of what was taken back.
                let state = KeyState::new(&names, kvs, 0);
                places.revoke_unused(&core, state.record.as_ref());
            }
            // The lock's lease is held until then.
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
