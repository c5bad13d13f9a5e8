//! Spawn locks that are OS file locks.
//!
//! Each file imports only from those above it:
//!
//! - `unix` or `windows`: the system calls.
//! - `off_thread`: blocking calls, off the runtime's threads; `descriptors`: caps on the lock files open at once.
//! - `checks`: what is checked of file and directory; `guard`: one lock on one path.
//! - `home`: the directory of the lock files, made and mended.
//! - `slots`: the bytes of a lock file; `record`: reading and writing them.
//! - `report`: what a lock file says, for people.
//! - `inotify`, on Linux: notification that a file was closed; `release`: waiting for a holder to release the lock.
//! - `lease`: a held lock with its ledger; `acquire`: one try to get one; `directory`: the lock over a directory of such files.

mod acquire;
mod checks;
mod descriptors;
mod directory;
mod guard;
mod home;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod inotify;
mod lease;
mod off_thread;
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
// Does not exist: `lib.rs` says why, and nothing that uses this name is reported once more.
#[cfg(not(any(unix, windows)))]
use no_file_locks as sys;

pub use self::directory::FileSpawnLock;
pub use self::guard::{SpawnLockGuard, acquire_spawn_lock};
pub use self::report::{LockReport, inspect_spawn_lock};
