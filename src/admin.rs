//! Types for operators and admin pages: snapshots and statistics of a gate, reports of lock files, ends of backends.
//!
//! [`SpawnGate::snapshot`](crate::SpawnGate::snapshot) and [`snapshots`](crate::SpawnGate::snapshots) show keys of one gate,
//! [`statistics`](crate::SpawnGate::statistics) what the gate has done so far, for a metrics page;
//! [`inspect_spawn_lock`] shows the ledger that all processes share. [`SpawnGate::reset`](crate::SpawnGate::reset),
//! [`abort`](crate::SpawnGate::abort), [`backend_ended`](crate::SpawnGate::backend_ended) and
//! [`close`](crate::SpawnGate::close) change the gate's state. [`Waiting`] is for a person at a terminal, see
//! [`SpawnGateBuilder::on_wait`](crate::SpawnGateBuilder::on_wait).
//!
//! # Events
//!
//! With the feature `tracing`, a gate records this, all with the target `spawn_gate`:
//!
//! | event | level | fields |
//! | --- | --- | --- |
//! | span `launch`, one for each leader; its task runs in it | INFO | `key`, `attempt`, `fencing_token`, `outcome` |
//! | `launched`, `discovered` | INFO, DEBUG | `key`, `elapsed` |
//! | `joined`, for each follower | TRACE | `key`, `elapsed` |
//! | `failed`, `panicked`, `timed out` | WARN | `key`, `attempt`, `stage`, `error.type` |
//! | `the error in full`, after one of these | DEBUG | `key`, `error.type`, `error` |
//! | `refused`, the first since an attempt was last free | WARN | `key`, `retry_after`, `why` |
//! | `refused again` | DEBUG | `key`, `retry_after`, `why` |
//! | `waiting for the spawn lock`, once a flight has waited for a second | INFO | `key`, `holder`, `waited` |
//! | `the spawn lock was lost` | ERROR | `key`, `fencing_token` |
//! | `leader gone, attempt refunded` | DEBUG | `key` |
//! | `reset` | INFO | `key` |
//! | `aborted` | WARN | `key` |
//! | `closed` | INFO | `flights` |
//! | `the drain timed out, flights were ended` | WARN | `flights` |
//!
//! `outcome` is `launched`, `discovered`, `leader_gone` or an [error type](crate::GateError::error_type), `stage` is
//! [`Stage::as_str`](crate::error::Stage::as_str), `why` is [`ExhaustionReason::as_str`](crate::budget::ExhaustionReason::as_str).
//! `attempt` is left out if nothing was charged.
//!
//! The value of a launch is in none of them. A launcher's own words and the text of a panic are only in `error`, so below INFO; a
//! launcher that puts a password into its error puts it there. A key is in the fields and in no label of the statistics.

pub use crate::flight::{FlightSnapshot, KeySnapshot, Waiting};
pub use crate::ledger::{
    BackendEnd, LastOutcome, Ledger, LedgerHolder, LedgerReading, ParseLedgerError, ProcessHost,
};
pub use crate::lock::{LockHolder, LockReport, inspect_spawn_lock};
pub use crate::statistics::{ActiveFlights, DurationHistogram, RequestCounts, Statistics};
