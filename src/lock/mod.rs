//! The spawn lock: what a gate needs of one, and the two that come with the crate.
//!
//! Each file imports only from those above it:
//!
//! - `identity`: which file a handle or a path is; `error`: what can go wrong.
//! - `contract`: the traits [`SpawnLock`] and [`SpawnLease`].
//! - `unix` or `windows`: the system calls.
//! - `file`: one lock on one path.
//! - `slots`: how a lock file holds its ledger, as bytes; `record`: reading and writing that.
//! - `report`: what a lock file says, for people.
//! - `inotify`, on Linux: hearing that a file was closed; `release`: waiting for a holder to let go.
//! - `directory`: the lock over a directory of such files; `memory`: the one without files.

mod contract;
mod directory;
mod error;
mod file;
mod identity;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod inotify;
mod memory;
mod record;
mod release;
mod report;
mod slots;
#[cfg(unix)]
#[path = "unix.rs"]
mod sys;
#[cfg(windows)]
#[path = "windows.rs"]
mod sys;

pub use self::contract::{LedgerReading, LockHolder, SpawnLease, SpawnLock};
pub use self::directory::FileSpawnLock;
pub use self::error::{FileKind, SpawnLockError, Unsafety};
pub use self::file::{SpawnLockGuard, acquire_spawn_lock};
pub use self::identity::SpawnLockFileIdentity;
pub use self::memory::InMemorySpawnLock;
pub use self::report::{LockReport, inspect_spawn_lock};
