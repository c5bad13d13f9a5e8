//! What operators read: every key of the prefix, its holder, its budget and its last outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::admin::LedgerReading;

use crate::acquire::age_of;
use crate::core::Core;
use crate::error::EtcdError;
use crate::names::{Names, range_below, split};
use crate::record;
use crate::state::KeyState;
use crate::wire::{KeyValue, RangeRequest};

/// All entries below the prefix, as [`EtcdSpawnLock::inspect`](crate::EtcdSpawnLock::inspect) reads them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Inspection {
    /// The keys, ordered by name.
    pub keys: Vec<KeyReport>,
    /// Entries below the prefix that this crate did not write, or a newer version of it. They are left alone.
    pub foreign: Vec<String>,
}

/// What etcd has for one key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyReport {
    /// The name of its entries: a readable part of the key, and the hash of all of it.
    pub name: String,
    /// The fencing token of the lock, if it is held.
    pub held_by: Option<u64>,
    /// The process id in the lock, if it is held. Host and process namespace are in the ledger once the attempt is charged.
    pub pid: Option<u32>,
    /// The ledger: budget, holder, last outcome. Its times are by the clock of the host that wrote it.
    pub ledger: LedgerReading,
    /// How long ago the ledger was written, by etcd; the second before may be missing. `None` if there is none.
    pub age: Option<Duration>,
}

/// So many entries are read with one call.
const PAGE: i64 = 500;

pub(crate) async fn inspect(core: Arc<Core>) -> Result<Inspection, EtcdError> {
    let mut inspection = Inspection::default();
    let mut keys: BTreeMap<String, Vec<KeyValue>> = BTreeMap::new();
    for kv in read_all_below(&core).await? {
        match split(&kv.key) {
            Some((base, _)) if record::is_ours(&kv) => {
                keys.entry(base.to_owned()).or_default().push(kv);
            }
            _ => inspection
                .foreign
                .push(String::from_utf8_lossy(&kv.key).into_owned()),
        }
    }
    for (base, kvs) in keys {
        inspection.keys.push(report(&core, base, kvs).await?);
    }
    Ok(inspection)
}

async fn read_all_below(core: &Core) -> Result<Vec<KeyValue>, EtcdError> {
    let (mut key, range_end) = range_below(&format!("{}/", core.config.prefix));
    let mut found = Vec::new();
    loop {
        let request = RangeRequest {
            key,
            range_end: range_end.clone(),
            limit: PAGE,
        };
        let answer = core.calls.call(&request, core.deadline()).await?;
        found.extend(answer.kvs);
        match found.last() {
            // The next key after the last one.
            Some(last) if answer.more => key = [&last.key[..], b"\0"].concat(),
            _ => return Ok(found),
        }
    }
}

async fn report(core: &Core, base: String, kvs: Vec<KeyValue>) -> Result<KeyReport, EtcdError> {
    let prefix = core.config.prefix.len() + 1;
    let name = base[prefix..].trim_end_matches('/').to_owned();
    let names = Names::of_base(base);
    let state = KeyState::new(&names, kvs, 0);
    let age = age_of(core, &names, state.record.as_ref(), core.deadline()).await?;
    Ok(KeyReport {
        name,
        held_by: state
            .lock
            .as_ref()
            .map(|lock| lock.create_revision.cast_unsigned()),
        pid: state.lock.as_ref().and_then(record::pid_of_lock),
        ledger: state.reading(age)?,
        age: state.record.map(|_| age),
    })
}
