//! A report of a lock file, for admin pages and for people.

use std::path::{Path, PathBuf};

use super::guard::is_locked;
use super::record::{open_to_read, read};
use crate::ledger::LedgerReading;
use crate::lock::error::SpawnLockError;
use crate::lock::holder::LockHolder;

/// The ledger of a lock file and whether the lock is held, at one moment. For people: it may be outdated when it is read.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockReport {
    /// The lock file.
    pub path: PathBuf,
    /// Whether the lock is held.
    pub is_held: bool,
    /// The ledger in the file.
    pub ledger: LedgerReading,
}

impl LockReport {
    /// Returns the holder, if the lock is held and the ledger names the holder.
    pub fn holder(&self) -> Option<LockHolder> {
        match &self.ledger {
            LedgerReading::Found(ledger) if self.is_held => {
                let holder = ledger.holder()?;
                Some(LockHolder::new(self.path.clone(), holder))
            }
            _ => None,
        }
    }
}

/// Reports on the spawn lock at `path`, for an admin page or a person: whether it is held, by whom, and how the last launch
/// ended.
///
/// Does not disturb a holder. Takes a free lock for a moment; a launch that begins at that moment tries again a millisecond
/// later. Makes a few short blocking calls.
///
/// # Errors
///
/// [`SpawnLockError::Open`] if the file does not exist or cannot be opened, [`SpawnLockError::NotARegularFile`],
/// [`SpawnLockError::Ledger`] if it cannot be read, [`SpawnLockError::LedgerVersion`] if a newer version of this crate wrote
/// it.
///
/// # Examples
///
/// ```
/// use spawn_gate::acquire_spawn_lock;
/// use spawn_gate::admin::inspect_spawn_lock;
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("indexer.lock");
/// let guard = acquire_spawn_lock(&path)?;
/// assert!(inspect_spawn_lock(&path)?.is_held);
/// drop(guard);
/// assert!(!inspect_spawn_lock(&path)?.is_held);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn inspect_spawn_lock(path: impl AsRef<Path>) -> Result<LockReport, SpawnLockError> {
    let path = path.as_ref();
    let file = open_to_read(path)?;
    let is_held = is_locked(path, &file)?;
    let (ledger, _) = read(path, &file)?;
    Ok(LockReport {
        path: path.to_path_buf(),
        is_held,
        ledger,
    })
}
