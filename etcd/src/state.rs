//! The entries of one key at one revision.

use std::time::Duration;

use spawn_gate::admin::LedgerReading;

use crate::error::EtcdError;
use crate::names::{Entry, Names};
use crate::record::{self, Record};
use crate::wire::{Event, KeyValue, RangeRequest, Request, RequestOp};

/// What etcd has for one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyState {
    pub(crate) lock: Option<KeyValue>,
    pub(crate) record: Option<KeyValue>,
    ended: Option<KeyValue>,
    /// The revision of the cluster when this was read.
    pub(crate) revision: i64,
}

impl KeyState {
    pub(crate) fn new(
        names: &Names,
        kvs: impl IntoIterator<Item = KeyValue>,
        revision: i64,
    ) -> Self {
        let mut state = Self {
            revision,
            ..Self::default()
        };
        for kv in kvs {
            if let Some(place) = state.place(names, &kv.key) {
                *place = Some(kv);
            }
        }
        state
    }

    /// Applies a change that a watch reports, unless it is older than this.
    pub(crate) fn apply(&mut self, names: &Names, event: Event) {
        let is_delete = event.is_delete();
        let Some(kv) = event.kv.filter(|kv| kv.mod_revision > self.revision) else {
            return;
        };
        if let Some(place) = self.place(names, &kv.key) {
            *place = (!is_delete).then_some(kv);
        }
    }

    /// The ledger, with this age of its record.
    pub(crate) fn reading(&self, age: Duration) -> Result<LedgerReading, EtcdError> {
        if let Some(lock) = &self.lock {
            record::check_lock(lock)?;
        }
        let Some(record) = &self.record else {
            return Ok(LedgerReading::Found(Box::default()));
        };
        let end = self.ended.as_ref().and_then(record::parse_end);
        Ok(Record::parse(record)?.into_reading(age, end.as_ref()))
    }

    fn place(&mut self, names: &Names, key: &[u8]) -> Option<&mut Option<KeyValue>> {
        Some(match names.entry(key)? {
            Entry::Lock => &mut self.lock,
            Entry::Record => &mut self.record,
            Entry::Ended => &mut self.ended,
            // Of no concern for the lock.
            Entry::Backend => return None,
        })
    }
}

/// The request for all entries of a key.
pub(crate) fn read_all(names: &Names) -> RangeRequest {
    let (key, range_end) = names.range();
    RangeRequest {
        key,
        range_end,
        limit: 0,
    }
}

/// The same, as a part of a transaction.
pub(crate) fn read_all_op(names: &Names) -> RequestOp {
    Request::Range(read_all(names)).into()
}
