//! One try at a lock: grant a lease, create the lock, read the record, decide, write the record.

use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::LedgerReading;
use spawn_gate::lock::{LedgerUpdate, LockRequest};
use tokio::time::Instant;

use crate::age;
use crate::core::Core;
use crate::error::EtcdError;
use crate::grant::RecordLease;
use crate::lease::{EtcdLease, Restore};
use crate::names::Names;
use crate::record::{self, Record};
use crate::renewal::RenewedLease;
use crate::state::{KeyState, read_all, read_all_op};
use crate::watching::{Spare, Watches};
use crate::wire::{
    Compare, KeyValue, LeaseTimeToLiveRequest, PutRequest, Request, TxnRequest, TxnResponse,
};

/// The result of a try.
pub(crate) enum Tried {
    Taken(Box<EtcdLease>),
    Held(LedgerReading),
    Answered(LedgerReading),
}

/// Tries once. If the future is dropped, nothing is left: each part that was made takes itself back.
pub(crate) async fn try_once(
    core: Arc<Core>,
    names: Names,
    request: LockRequest,
    deadline: Instant,
) -> Result<Tried, EtcdError> {
    let watched = core.watches.of(&names).filter(|_| request.is_waiting);
    if request.is_waiting {
        let believed = watched.as_ref().and_then(|watched| watched.believed());
        let is_held = believed.as_ref().is_some_and(|state| state.lock.is_some());
        let state = match believed {
            Some(state) => state,
            // So that hosts do not take the lock one after the other to learn the same thing.
            None => read_state(&core, &names, deadline).await?,
        };
        let ledger = read(&core, &names, &state, deadline).await?;
        if request.is_answered_by(&ledger) {
            return Ok(Tried::Answered(ledger));
        }
        // Where the watch is not believed, the create below makes a new one if it is held.
        if is_held {
            return Ok(Tried::Held(ledger));
        }
    }
    let spare = watched.as_ref().map(|watched| watched.take_spare());
    let Spare { lock, record } = spare.unwrap_or_default();
    let lock = lock.filter(is_fresh);
    // A record is written at the age of its lease by this process's clock, which stands still while the host is suspended. The lock's
    // lease would not have survived that.
    let is_young = |record: &RecordLease| record.began.elapsed() < 2 * core.config.expires_in;
    let record = record.filter(|record| lock.is_some() && is_young(record));
    // At the same time, since neither needs the other.
    let (lease, fresh) = tokio::join!(
        async {
            match lock {
                Some(lease) => Ok(lease),
                None => RenewedLease::grant(&core, deadline).await,
            }
        },
        async {
            match record {
                Some(lease) => Ok(lease),
                None => RecordLease::grant(&core, deadline).await,
            }
        },
    );
    let (mut lease, fresh) = (lease?, fresh?);
    let renewed_before = lease.unconfirmed();
    let (answer, attempts, seen_before) = create_lock(&core, &names, &lease, deadline).await?;
    // Another attempt may yet arrive, when the lock is free.
    if attempts > 1 {
        lease.doubt();
    }
    let (revision, term) = answer
        .header
        .map_or((0, 0), |header| (header.revision, header.raft_term));
    let state = KeyState::new(&names, answer.into_kvs(), revision);
    // An earlier try of the same call may have made it.
    let own = state.lock.as_ref().filter(|lock| lock.lease == lease.id);
    let Some(token) = own.map(|lock| lock.create_revision) else {
        let watched = Watches::found(&core, &names, state.clone());
        watched.keep_spare(Spare {
            lock: Some(lease).filter(|_| attempts == 1),
            record: Some(fresh),
        });
        return Ok(Tried::Held(read(&core, &names, &state, deadline).await?));
    };
    if !lease.attach(names.lock(), token, renewed_before, term) {
        // It was renewed before an election, and perhaps in vain. It is revoked, and the next try has another one.
        Watches::found(&core, &names, state.clone());
        return Ok(Tried::Held(read(&core, &names, &state, deadline).await?));
    }
    core.calls.note_token(token, seen_before)?;
    let record_at = state.record.as_ref().map_or(0, |it| it.mod_revision);
    let mut held = EtcdLease::new(&core, names.clone(), token, lease, fresh, record_at);
    decide(&core, &names, state, request.update, deadline, &mut held).await?;
    Ok(Tried::Taken(Box::new(held)))
}

/// Reads the record of the lock that was just created, and writes the one that the update returns.
async fn decide(
    core: &Core,
    names: &Names,
    state: KeyState,
    update: LedgerUpdate,
    deadline: Instant,
    held: &mut EtcdLease,
) -> Result<(), EtcdError> {
    let age = age_of(core, names, state.record.as_ref(), deadline).await?;
    if let Some(old) = &state.record {
        let position = Record::parse(old)?.position;
        held.places().found(old.lease, position + age);
    }
    let reading = state.reading(age)?;
    let is_readable = matches!(reading, LedgerReading::Found(_));
    let Some(ledger) = update.apply(reading, held.token()) else {
        return Ok(());
    };
    if !is_readable {
        held.places().leave();
    }
    held.restore_if_dropped(Restore::new(state.record));
    held.write(&ledger, deadline).await
}

/// Creates the lock unless it exists. Returns also the number of attempts, and the newest fencing token that was known before.
async fn create_lock(
    core: &Core,
    names: &Names,
    lease: &RenewedLease,
    deadline: Instant,
) -> Result<(TxnResponse, usize, i64), EtcdError> {
    let put = PutRequest {
        key: names.lock(),
        value: record::lock_text(),
        lease: lease.id,
    };
    let create = TxnRequest {
        compare: vec![Compare::created_at(names.lock(), 0)],
        success: vec![Request::Put(put).into(), read_all_op(names)],
        failure: vec![read_all_op(names)],
    };
    let seen_before = core.calls.newest_token();
    let (answer, attempts) = core.calls.call_counted(&create, deadline).await?;
    Ok((answer, attempts, seen_before))
}

/// The ledger in this state.
pub(crate) async fn read(
    core: &Core,
    names: &Names,
    state: &KeyState,
    deadline: Instant,
) -> Result<LedgerReading, EtcdError> {
    let age = age_of(core, names, state.record.as_ref(), deadline).await?;
    state.reading(age)
}

/// Reads the ledger without the lock.
pub(crate) async fn read_ledger(core: Arc<Core>, names: Names) -> Result<LedgerReading, EtcdError> {
    let deadline = core.deadline();
    let state = read_state(&core, &names, deadline).await?;
    read(&core, &names, &state, deadline).await
}

async fn read_state(core: &Core, names: &Names, deadline: Instant) -> Result<KeyState, EtcdError> {
    let answer = core.calls.call(&read_all(names), deadline).await?;
    let revision = answer.header.map_or(0, |header| header.revision);
    Ok(KeyState::new(names, answer.kvs, revision))
}

/// The ledger as a watch tells it. `None` if etcd has to be asked.
pub(crate) fn watched_ledger(
    core: &Core,
    names: &Names,
) -> Option<Result<LedgerReading, EtcdError>> {
    let state = core.watches.of(names)?.believed()?;
    let age = match &state.record {
        Some(record) => core.ages.of(names.shown(), record.mod_revision)?,
        None => Duration::ZERO,
    };
    Some(state.reading(age))
}

/// How old the record is, at least.
pub(crate) async fn age_of(
    core: &Core,
    names: &Names,
    record: Option<&KeyValue>,
    deadline: Instant,
) -> Result<Duration, EtcdError> {
    let Some(record) = record else {
        return Ok(Duration::ZERO);
    };
    if let Some(age) = core.ages.of(names.shown(), record.mod_revision) {
        return Ok(age);
    }
    let position = Record::parse(record)?.position;
    let mut age = Duration::ZERO;
    if record.lease != 0 {
        let request = LeaseTimeToLiveRequest { id: record.lease };
        let answer = core.calls.call(&request, deadline).await?;
        age = age::by_lease(answer.granted_ttl, answer.ttl, position);
    }
    core.ages.saw(names.shown(), record.mod_revision, age);
    Ok(age)
}

/// Whether a lease that was granted for a wait still holds for long enough.
fn is_fresh(lease: &RenewedLease) -> bool {
    lease.left().is_ok_and(|left| left > lease.expires_in / 2)
}
