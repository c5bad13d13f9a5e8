//! The scenarios, by promise of docs/design.md. `src/lib.rs` says how to run them and how to replay a schedule that failed.

mod budgets;
mod callers;
mod cancelling;
mod closing;
mod forgetting;
mod lock;
mod operators;
mod sharing;
mod world;
