//! Start each backend process exactly once.
//!
//! Many callers find at the same moment that a backend is not running. [`SpawnGate`] lets one of them launch it; the others
//! wait for that launch and share its outcome, value or error. A budget stops repeated failures and says when to retry, and
//! an OS lock keeps other processes from launching too.
//!
//! ```
//! use spawn_gate::{BackendLauncher, BoxError, How, InMemorySpawnLock, LaunchPermit, SpawnGate, async_trait};
//!
//! struct Indexer;
//!
//! #[async_trait]
//! impl BackendLauncher<String, u16> for Indexer {
//!     async fn discover(&self, _key: &String) -> Result<Option<u16>, BoxError> {
//!         Ok(None) // is one running already, perhaps launched by another process?
//!     }
//!
//!     async fn launch(&self, _permit: &LaunchPermit<String, u16>) -> Result<u16, BoxError> {
//!         Ok(7201) // start the process here, and return its port once it is ready
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), spawn_gate::GateError> {
//! // In a program: `SpawnGate::new(directory)`, with locks that other processes see.
//! let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
//!
//! let key = || "indexer".to_owned();
//! let (one, other) = tokio::try_join!(gate.launch(key(), Indexer), gate.launch(key(), Indexer))?;
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
//! | requests | [`SpawnGate::launch`] with a [`BackendLauncher`]; [`SpawnGate::acquire`] for the bare [`LaunchPermit`] |
//! | refusals and failures | [`GateError`], and one type for each stage below it |
//! | keys | [`GateKey`]: strings, [`BackendKey`], or a type of your own; [`LockName`] is how a key names its lock |
//! | locks | [`FileSpawnLock`], [`InMemorySpawnLock`], or a [`SpawnLock`] of your own; [`acquire_spawn_lock`] for one path |
//! | operators | [`SpawnGate::snapshots`], [`SpawnGate::reset`], [`SpawnGate::close`], [`inspect_spawn_lock`] |
//! | code without async | [`SpawnCoordinator`] |
//!
//! # Words
//!
//! A *key* names one backend. A *flight* is one launch in progress for a key; its *leader* launches, its *followers* wait for
//! the *outcome*. An *attempt* is one charge against the key's *budget*: at most so many in a *window*. The *spawn lock* is the
//! exclusive lock that the leader holds while it launches, and its *identity* says which file it is. A *permit* is the right
//! to launch: the leader's seat, a charged attempt, and the held lock. The *ledger* is the small record in a lock file: the
//! budget, the holder and the last outcome, shared by all processes.
//!
//! # Features and platforms
//!
//! There are no cargo features. Linux is tested; macOS and the BSDs share its code; for Windows most of the tests were run,
//! under wine and not on Windows itself. The gate needs a tokio runtime with time enabled.

// Rooms, in the order of the data flow; each imports only from those before it, and says in its `mod.rs` what it is for.
pub mod budget;
mod error;
mod flight;
mod gate;
mod key;
mod ledger;
pub mod lock;
mod util;

pub mod admin;

pub use crate::error::{
    AttemptsLeft, BoxError, BudgetExhausted, GateError, LaunchError, LockError, SharedError, Stage,
    TimeoutError,
};
pub use crate::flight::{
    BackendLauncher, How, Launch, LaunchPermit, Launched, LauncherFn, launcher_fn,
};
pub use crate::gate::{Acquired, SpawnGate, SpawnGateBuilder};
pub use crate::key::{BackendKey, BrokerInstanceKey, GateKey, LockName};
pub use crate::lock::{FileSpawnLock, InMemorySpawnLock};

/// For the implementations of this crate's traits.
pub use async_trait::async_trait;

// The names of the reference system, for whom an import is to be all that changes.
#[doc(hidden)]
pub use crate::budget::{
    DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW, SpawnBeginError,
    SpawnBudgetConfig, SpawnBudgetSnapshot, SpawnCoordinator, SpawnOutcome, SpawnPermit,
};
#[doc(hidden)]
pub use crate::lock::{SpawnLockError, SpawnLockFileIdentity, SpawnLockGuard, acquire_spawn_lock};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
