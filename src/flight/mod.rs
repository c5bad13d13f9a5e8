//! A flight: one launch in progress for a key, from the request that begins it to the outcome that all callers get.
//!
//! The files, each importing only from those above it:
//!
//! - `outcome`: how a flight ended, and the channel to its followers. `snapshot`: the view for operators.
//! - `in_progress`: a flight's stages, and what ends it. `entry`: a key's entry, with its flight if one is in progress. `handle`:
//!   what leaders, followers and operators do to a flight.
//! - `shard`, `registry`: the entries of all keys.
//! - `waiting`: a wait that takes long, for people.
//! - `shared`: the state that all handles, leaders and permits of a gate share.
//! - `held_lock`: a held lock with its ledger. `leader`: the owner of flight, attempt and held lock. `ending`: how it ends its
//!   flight.
//! - `permit`: the public face of a leader that may launch. `launcher`: the user's side.
//! - `steps`, `lock_wait`, `take_lock`: the steps of a launch. `script`: their order. Read that first.
//!
//! All of the crate's other rooms but `gate` may be imported here.

mod ending;
mod entry;
mod handle;
mod held_lock;
mod in_progress;
mod launcher;
mod leader;
mod lock_wait;
mod outcome;
mod permit;
mod registry;
mod script;
mod shard;
mod shared;
mod snapshot;
mod steps;
mod take_lock;
mod waiting;

pub(crate) use self::entry::{Flight, Role};
pub(crate) use self::held_lock::{HeldLock, LONGEST_CALL, answered};
pub use self::launcher::{BackendLauncher, How, Launch, Launched, LauncherFn, launcher_fn};
pub(crate) use self::leader::Leader;
pub(crate) use self::lock_wait::{LockWait, Tried};
pub(crate) use self::outcome::{Outcome, OutcomeReceiver};
pub use self::permit::LaunchPermit;
pub(crate) use self::registry::{Leftovers, Registry, lock_shard};
pub(crate) use self::script::{lead, or_interrupted, prepare, prepare_now};
pub(crate) use self::shard::Shard;
pub(crate) use self::shared::{Shared, Timeouts};
pub use self::snapshot::{FlightSnapshot, KeySnapshot};
pub(crate) use self::waiting::OnWait;
pub use self::waiting::Waiting;
