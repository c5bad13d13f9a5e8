//! Runs the gate under many schedules, and checks after each what docs/design.md promises.
//!
//! The build script copies `../src` and puts stand-ins over `shuttle` in place of the standard library's mutexes, atomics and
//! hashers and of tokio's tasks, channels and timers ([`stand_in`]). So one thread runs all tasks, every step at a mutex, an
//! atomic or a channel can change to another task, and a schedule says to which. Time moves when the schedule says so. There are
//! no lock files, no threads and no clocks; the lock is the one in memory, made slow, lossy or useless by the scenario.
//!
//! The scenarios are in `tests/schedules`, [`explore`] chooses the schedules: half of them by chance, half by priorities that
//! change a few times (PCT). Each scenario ends with these checks: no two launches of a key were in progress, every caller got an
//! outcome, the charges are those of the launches that failed, no task and no timer is left, and nothing is in flight.
//!
//! # How to run
//!
//! ```text
//! cargo test --release --manifest-path schedules/Cargo.toml                     some hundred schedules of each
//! SCHEDULES=100000 cargo test --release --manifest-path schedules/Cargo.toml    so many of each
//! SCHEDULES_SEED=1 ...                                                          others
//! ```
//!
//! `-- --nocapture` shows how many schedules each scenario took, and how long. Without a seed, the schedules are always the same.
//!
//! # How to replay
//!
//! A schedule that fails is printed, with the command that runs this one again:
//!
//! ```text
//! SCHEDULES_REPLAY='9102...' cargo test --release --manifest-path schedules/Cargo.toml --test schedules NAME -- --exact
//! ```
//!
//! The spaces and line breaks in a schedule do not matter. It fits the source that it was found with, and no other.
//!
//! # What it does not explore
//!
//! - Weak memory: `shuttle` runs every atomic as if it were sequentially consistent, which the gate's flag is.
//! - Panics of launchers, ledgers, lock files, several runtimes and a runtime's end. Other tests have them.
//!
//! `mutations.py` breaks the source in several ways, and shows that a scenario notices each.

// Without the lock files, some helpers are not used.
#![allow(dead_code)]

include!(concat!(env!("OUT_DIR"), "/gate/lib.rs"));

pub mod explore;
pub mod stand_in;
