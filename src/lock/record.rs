//! Reading and writing the ledger in a lock file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::SpawnLockError;
use super::file::is_locked;
use super::slots::{FIRST_SLOT, Reading, SLOTS_LEN, SlotWrite, VERSION};
use super::{LedgerReading, LockHolder, sys};
use crate::ledger::Ledger;

/// What a lock file says, and whether the lock is held, at one moment. For people: by the time it is read it may be over.
#[derive(Clone, Debug)]
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
/// use spawn_gate::{acquire_spawn_lock, inspect_spawn_lock};
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

/// Reads the ledger at `path` without touching the lock.
pub(super) fn peek(path: &Path) -> Result<LedgerReading, SpawnLockError> {
    Ok(read(path, &open_to_read(path)?)?.0)
}

/// Opens a lock file that is there, to look at it.
pub(super) fn open_to_read(path: &Path) -> Result<File, SpawnLockError> {
    let open_error = |source| super::file::open_error(path, source);
    let file = sys::open_for_reading(path).map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    match sys::kind(&metadata) {
        Some(found) => Err(SpawnLockError::NotARegularFile {
            path: path.to_path_buf(),
            found,
        }),
        None => Ok(file),
    }
}

/// Returns what the file says and the sequence number of the newest record, zero if there is none.
pub(super) fn read(path: &Path, file: &File) -> Result<(LedgerReading, u64), SpawnLockError> {
    let mut slots = [0; SLOTS_LEN];
    let len = read_slots(file, &mut slots).map_err(|source| ledger_error(path, source))?;
    match Reading::of(&slots[..len]) {
        Reading::Empty if is_new(path, file)? => Ok((LedgerReading::Found(Box::default()), 0)),
        Reading::Empty => Ok((LedgerReading::Unreadable, 0)),
        Reading::Found { ledger, sequence } => Ok((LedgerReading::Found(ledger), sequence)),
        Reading::Unreadable => Ok((LedgerReading::Unreadable, 0)),
        Reading::Newer { version } => Err(SpawnLockError::LedgerVersion {
            path: path.to_path_buf(),
            found: version,
            supported: VERSION,
        }),
    }
}

/// Whether nothing was ever written to the file, rather than something too short for a ledger.
fn is_new(path: &Path, file: &File) -> Result<bool, SpawnLockError> {
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| ledger_error(path, source))?;
    Ok(metadata.len() == 0)
}

fn read_slots(file: &File, slots: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < slots.len() {
        match sys::read_at(file, &mut slots[filled..], FIRST_SLOT + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes the record that follows the one with the number `newest`. On an error, that one stays readable.
pub(super) fn write(
    path: &Path,
    file: &File,
    newest: u64,
    ledger: &Ledger,
) -> Result<(), SpawnLockError> {
    let write = SlotWrite::after(newest, ledger);
    sys::write_all_at(file, &write.bytes, write.offset).map_err(|source| ledger_error(path, source))
}

fn ledger_error(path: &Path, source: io::Error) -> SpawnLockError {
    SpawnLockError::Ledger {
        path: path.to_path_buf(),
        source,
    }
}
