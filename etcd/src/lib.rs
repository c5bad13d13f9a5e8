//! The spawn lock of [`spawn_gate`] for a whole cluster, on etcd.
//!
//! The same `SpawnGate`, with an [`EtcdSpawnLock`] instead of lock files, launches each backend once for all hosts, with one budget
//! for all of them and fencing tokens that grow across them.
//!
//! ```no_run
//! use spawn_gate::SpawnGate;
//! use spawn_gate_etcd::EtcdSpawnLock;
//!
//! # fn main() -> Result<(), spawn_gate_etcd::EtcdError> {
//! let lock = EtcdSpawnLock::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379"]).build()?;
//! let gate: SpawnGate<String, u16> = SpawnGate::builder(lock).build();
//! # Ok(())
//! # }
//! ```
//!
//! What it promises and what it cannot promise: `docs/etcd.md` of this crate.

// Each file says what it is for.
mod acquire;
mod age;
mod attached;
mod builder;
mod cluster;
mod config;
mod core;
mod endpoint;
mod error;
mod grant;
mod held;
mod inspect;
mod lease;
mod lock;
mod names;
mod place;
mod record;
mod registration;
mod renewal;
mod settled;
mod state;
mod watching;
mod wire;

pub use crate::builder::EtcdSpawnLockBuilder;
pub use crate::config::Tls;
pub use crate::error::EtcdError;
pub use crate::inspect::{Inspection, KeyReport};
pub use crate::lock::EtcdSpawnLock;
pub use crate::registration::Registration;
