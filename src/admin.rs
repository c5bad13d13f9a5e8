//! For operators and admin pages: what a gate and its lock files say, and how backends ended.
//!
//! [`SpawnGate::snapshots`](crate::SpawnGate::snapshots) shows the keys of one gate, [`inspect_spawn_lock`] what a lock file says
//! to all processes. [`SpawnGate::reset`](crate::SpawnGate::reset), [`abort`](crate::SpawnGate::abort) and
//! [`close`](crate::SpawnGate::close) change something.

pub use crate::flight::{FlightSnapshot, KeySnapshot};
pub use crate::ledger::{
    BackendEnd, LastOutcome, Ledger, LedgerHolder, LedgerReading, ParseLedgerError, ProcessHost,
};
pub use crate::lock::{LockHolder, LockReport, inspect_spawn_lock};
