//! Start each backend process exactly once.

mod budget;
mod catch_panic;
mod coordinator;
mod error;
mod flight;
mod gate;
mod inner;
mod key;
mod launcher;
mod lock;
mod lock_wait;
mod permit;
mod run;
mod table;

pub use crate::budget::{
    BudgetRefusal, DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW,
    SpawnBudgetConfig, WindowKind,
};
pub use crate::coordinator::{
    AttemptId, SpawnBeginError, SpawnBudgetSnapshot, SpawnCoordinator, SpawnOutcome, SpawnPermit,
};
pub use crate::error::{
    BudgetExhausted, GateError, LaunchError, LockError, SharedError, Stage, TimeoutError,
};
pub use crate::gate::{Acquired, FlightSnapshot, KeySnapshot, SpawnGate, SpawnGateBuilder};
pub use crate::key::{BackendKey, BrokerInstanceKey, GateKey, LockName};
pub use crate::launcher::{BackendLauncher, How, Launched};
pub use crate::lock::{
    FileKind, FileSpawnLock, InMemorySpawnLock, LockHolder, SpawnLease, SpawnLock, SpawnLockError,
    SpawnLockFileIdentity, SpawnLockGuard, Unsafety, acquire_spawn_lock, read_lock_holder,
};
pub use crate::permit::LaunchPermit;
