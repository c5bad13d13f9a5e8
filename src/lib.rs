//! Start each backend process exactly once.
//!
//! Many callers find at the same moment that a backend is not running. [`SpawnGate`] lets one of them launch it; the others
//! wait for that launch and share its outcome, value or error. A budget limits repeated launches and says when to retry. An
//! OS lock keeps other processes from launching too.
//!
//! ```
//! use spawn_gate::{How, InMemorySpawnLock, SpawnGate, launcher_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), spawn_gate::GateError> {
//! // In a program: `SpawnGate::new(directory)`, with locks that other processes see.
//! let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
//!
//! let indexer = launcher_fn(
//!     |_key| async { Ok(None) },   // look: is one running already, perhaps launched by another process?
//!     |_launch| async { Ok(7201) }, // launch: start the process, and return its port once it is ready
//! );
//! let (one, other) = tokio::try_join!(gate.launch("indexer", indexer), gate.launch("indexer", indexer))?;
//! assert_eq!((one.value, one.how), (7201, How::Led));
//! assert_eq!((other.value, other.how), (7201, How::Joined));
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! | for | see |
//! | --- | --- |
//! | requests | [`SpawnGate::launch`] with [`launcher_fn`] or a [`BackendLauncher`]; [`SpawnGate::acquire`] for the bare [`LaunchPermit`] |
//! | refusals and failures | [`GateError`]; the module [`error`]: one type for each stage |
//! | keys | [`GateKey`]: strings, integers, [`BackendKey`], or a type of your own; [`lock::LockName`] names a key's lock file |
//! | locks | [`FileSpawnLock`], [`InMemorySpawnLock`]; the module [`lock`] for a lock of your own and for one lock file |
//! | budgets | the module [`budget`]: limits, windows, reasons of a refusal, and the coordinator for code without async |
//! | processes | the module `process` (feature `process`): start a command, wait until it is ready, find it, stop it |
//! | operators | the module [`admin`]: snapshots, statistics, events, reset, abort, reports of a backend's end, what a lock file says |
//!
//! # Guides
//!
//! [A broker](guide::broker), [a tool with a daemon](guide::tool), [settings](guide::settings), [production](guide::operations),
//! [alternatives and migration](guide::alternatives).
//!
//! # Words
//!
//! A *key* names one backend. A *flight* is one launch in progress for a key; its *leader* launches, its *followers* wait for
//! the *outcome*. An *attempt* is one charge against the key's *budget*: at most so many in a *window*. The *spawn lock* is the
//! exclusive lock that the leader holds while it launches; a held lock is a *lease*. A *permit* is the right to launch: leader
//! of the flight, charged attempt, held and verified lock. The *ledger* is the record in a lock file: budget, holder and last
//! outcome, shared by all processes. The *fencing token* is a number that grows from holder to holder of one lock.
//!
//! # Features and platforms
//!
//! The feature `tracing` (off by default) records events and a span for each launch, see [`admin`]; [statistics](SpawnGate::statistics)
//! need no feature. The feature `process` (off by default, Rust 1.87) has a launcher for backends that are processes. The feature
//! `serde` (off by default) serializes snapshots, reports and their parts; keys and budgets can be deserialized, too. Linux is tested;
//! macOS and the BSDs share its code; for Windows most of the tests were run, under wine and not on Windows itself. The gate needs a
//! tokio runtime with time enabled.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(any(unix, windows)))]
compile_error!("spawn-gate needs file locks and processes: it builds for Unix and Windows only");

// docs/design.md, "Rooms", says which room may import which. Each `mod.rs` says what its room is for.
pub mod budget;
pub mod error;
mod flight;
mod gate;
mod key;
mod ledger;
pub mod lock;
#[cfg(feature = "process")]
pub mod process;
mod statistics;
mod trace;
mod util;

pub mod admin;
#[cfg(any(doc, doctest))]
pub mod guide;

pub use crate::error::{BoxError, GateError};
pub use crate::flight::{
    BackendLauncher, How, Launch, LaunchPermit, Launched, LauncherFn, launcher_fn,
};
pub use crate::gate::{Acquired, SpawnGate, SpawnGateBuilder};
pub use crate::key::{BackendKey, BrokerInstanceKey, GateKey};
pub use crate::lock::{FileSpawnLock, InMemorySpawnLock};

/// Put it on implementations of this crate's async traits.
pub use async_trait::async_trait;

// The names of the reference system, so that its users only change an import.
#[doc(hidden)]
pub use crate::budget::{
    DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW, SpawnBeginError,
    SpawnBudgetConfig, SpawnBudgetSnapshot, SpawnCoordinator, SpawnOutcome, SpawnPermit,
};
#[doc(hidden)]
pub use crate::lock::{SpawnLockError, SpawnLockFileIdentity, SpawnLockGuard, acquire_spawn_lock};

/// Compiles the README's example, which starts a process, as a doctest.
#[cfg(all(doctest, feature = "process"))]
#[doc = include_str!("../README.md")]
struct Readme;
