//! Reading and writing the ledger in a lock file.

use std::fs::File;
use std::io;
use std::path::Path;

use super::contract::LedgerReading;
use super::error::SpawnLockError;
use super::slots::{FIRST_SLOT, Reading, SLOTS_LEN, SlotWrite, VERSION};
use super::sys;
use crate::ledger::Ledger;

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
