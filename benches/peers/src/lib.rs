//! Runs spawn-gate beside what a user would pick instead, on the same machine, in the same minutes.
//!
//! `measure` runs contenders in turn, `report` prints what came out; `flights` holds the contenders for single flight,
//! `paths` one module for each thing that is measured.

pub mod flights;
pub mod keys;
pub mod measure;
pub mod paths;
pub mod report;
pub mod watchdog;
