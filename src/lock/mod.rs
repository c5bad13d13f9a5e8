//! The spawn lock: what keeps another process from launching too.
//!
//! Use [`FileSpawnLock`]; [`InMemorySpawnLock`] is for tests and for programs that are alone on their machine. For a lock of
//! your own, implement [`SpawnLock`] and [`SpawnLease`].
//!
//! [`FileSpawnLock`]: crate::FileSpawnLock
//! [`InMemorySpawnLock`]: crate::InMemorySpawnLock

// Each imports only from those before it: identity, error, holder, traits, memory, file. Of the crate's other rooms, only
// `key`, `budget`, `ledger` and `util` may be imported here.
mod error;
mod file;
mod holder;
mod identity;
mod memory;
mod traits;

#[cfg(feature = "process")]
pub(crate) use self::error::is_shortage;
pub use self::error::{FileKind, SpawnLockError, Unsafety};
pub use self::file::{
    FileSpawnLock, LockReport, SpawnLockGuard, acquire_spawn_lock, inspect_spawn_lock,
};
pub use self::holder::LockHolder;
pub(crate) use self::holder::{Ago, Who};
pub use self::identity::SpawnLockFileIdentity;
pub use self::memory::InMemorySpawnLock;
pub use self::traits::{LeaseLost, LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
pub use crate::key::LockName;
