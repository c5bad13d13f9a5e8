//! What a lock file says, for admin pages and for people.

use std::path::{Path, PathBuf};

use super::guard::is_locked;
use super::record::{open_to_read, read};
use crate::ledger::LedgerReading;
use crate::lock::error::SpawnLockError;
use crate::lock::holder::LockHolder;

/// What a lock file says, and whether the lock is held, at one moment. For people: by the time it is read it may be over.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockReport {
    /// The lock file.
    pub path: PathBuf,
    /// Whether somebody holds the lock.
    pub is_held: bool,
    /// What is written in the file.
    pub ledger: LedgerReading,
}

impl LockReport {
    /// Returns who holds the lock, if somebody does and is written there.
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

/// Looks at the spawn lock at `path`, for an admin page or a person: is it held, by whom, how did the last launch end?
///
/// A holder is not disturbed. A lock that nobody holds is taken for a moment, so a launch that begins just then tries once
/// more, a millisecond later. It makes a few short blocking calls.
///
/// # Errors
///
/// [`SpawnLockError::Open`] if there is no such file or it cannot be opened, [`SpawnLockError::NotARegularFile`],
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
