//! Runs spawn-gate beside what a user would pick instead, on the same machine, in the same minutes.
//!
//! `paths` holds one module for each thing that is measured, `flights` the contenders for single flight; `measure` runs
//! contenders in turn, and `report` writes down what came out.

pub mod clock;
pub mod file_by_hand;
pub mod flights;
pub mod keys;
pub mod measure;
pub mod other;
pub mod paths;
pub mod report;
pub mod targets;
pub mod watchdog;
