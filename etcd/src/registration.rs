//! The registration of a backend: what keeps a launcher that was paused from starting a second one that is used.

use std::sync::Arc;

use crate::core::Core;
use crate::error::EtcdError;
use crate::names::Names;
use crate::record::{Record, backend_text, parse_backend};
use crate::state::read_all;
use crate::wire::{Compare, KeyValue, PutRequest, RangeRequest, Request, TxnRequest};

/// The backend that is registered for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// The fencing token of its launch.
    pub fencing_token: u64,
    /// What it registered: its address, say.
    pub value: String,
}

/// Registers a backend, unless a younger launch has begun: it holds the lock, or wrote the record, or has registered a backend. Returns
/// whether it is registered.
pub(crate) async fn register(
    core: Arc<Core>,
    names: Names,
    token: u64,
    value: String,
) -> Result<bool, EtcdError> {
    let deadline = core.deadline();
    let text = backend_text(token, &value);
    loop {
        let answer = core.calls.call(&read_all(&names), deadline).await?;
        let entry = |name: &[u8]| answer.kvs.iter().find(|kv| kv.key == name);
        let mod_revision = |kv: Option<&KeyValue>| kv.map_or(0, |kv| kv.mod_revision);
        let backend = entry(&names.backend());
        let known = backend.map(parse_backend).transpose()?;
        if let Some(known) = known.filter(|known| known.fencing_token >= token) {
            // An earlier try of the same call may have written it.
            return Ok(known.fencing_token == token && known.value == value);
        }
        let lock = entry(&names.lock()).map_or(0, |lock| lock.create_revision.cast_unsigned());
        let record = entry(&names.record());
        let ledger = record.map(Record::parse).transpose()?;
        let ledger = ledger.and_then(Record::into_ledger);
        let launch = ledger.map_or(0, |ledger| ledger.fencing_token());
        if lock.max(launch) > token {
            return Ok(false);
        }
        let put = PutRequest {
            key: names.backend(),
            value: text.clone(),
            lease: 0,
        };
        let next = i64::try_from(token).unwrap_or(i64::MAX).saturating_add(1);
        let txn = TxnRequest {
            compare: vec![
                Compare::modified_at(names.backend(), mod_revision(backend)),
                Compare::modified_at(names.record(), mod_revision(record)),
                Compare::created_before(names.lock(), next),
            ],
            success: vec![Request::Put(put).into()],
            failure: Vec::new(),
        };
        if core.calls.call(&txn, deadline).await?.succeeded {
            return Ok(true);
        }
    }
}

/// The backend that is registered.
pub(crate) async fn registered(
    core: Arc<Core>,
    names: Names,
) -> Result<Option<Registration>, EtcdError> {
    entry(&core, &names)
        .await?
        .as_ref()
        .map(parse_backend)
        .transpose()
}

async fn entry(core: &Core, names: &Names) -> Result<Option<KeyValue>, EtcdError> {
    let request = RangeRequest {
        key: names.backend(),
        ..RangeRequest::default()
    };
    let answer = core.calls.call(&request, core.deadline()).await?;
    Ok(answer.kvs.into_iter().next())
}
