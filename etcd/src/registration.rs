//! The registration of a backend: what keeps a launcher that was paused from starting a second one that is used.

use std::sync::Arc;

use crate::core::Core;
use crate::error::EtcdError;
use crate::names::Names;
use crate::record::{backend_text, parse_backend};
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

/// Registers a backend, unless a younger launch has registered one. Returns whether it is registered.
pub(crate) async fn register(
    core: Arc<Core>,
    names: Names,
    token: u64,
    value: String,
) -> Result<bool, EtcdError> {
    let deadline = core.deadline();
    let text = backend_text(token, &value);
    loop {
        let entry = entry(&core, &names).await?;
        let known = entry.as_ref().map(parse_backend).transpose()?;
        if let Some(known) = known.filter(|known| known.fencing_token >= token) {
            // An earlier try of the same call may have written it.
            return Ok(known.fencing_token == token && known.value == value);
        }
        let seen = entry.map_or(0, |entry| entry.mod_revision);
        let put = PutRequest {
            key: names.backend(),
            value: text.clone(),
            lease: 0,
        };
        let txn = TxnRequest {
            compare: vec![Compare::modified_at(names.backend(), seen)],
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
