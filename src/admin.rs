//! Types for operators and admin pages: snapshots and statistics of a gate, reports of lock files, ends of backends.
//!
//! [`SpawnGate::snapshot`](crate::SpawnGate::snapshot) and [`snapshots`](crate::SpawnGate::snapshots) show keys of one gate,
//! [`statistics`](crate::SpawnGate::statistics) what the gate has done so far, for a metrics page;
//! [`inspect_spawn_lock`] shows the ledger that all processes share. [`SpawnGate::reset`](crate::SpawnGate::reset),
//! [`abort`](crate::SpawnGate::abort), [`backend_ended`](crate::SpawnGate::backend_ended) and
//! [`close`](crate::SpawnGate::close) change the gate's state.

pub use crate::flight::{FlightSnapshot, KeySnapshot, Waiting};
pub use crate::ledger::{
    BackendEnd, LastOutcome, Ledger, LedgerHolder, LedgerReading, ParseLedgerError, ProcessHost,
};
pub use crate::lock::{LockHolder, LockReport, inspect_spawn_lock};
pub use crate::statistics::{ActiveFlights, DurationHistogram, RequestCounts, Statistics};
