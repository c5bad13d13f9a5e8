//! Reading and writing the ledger in a lock file.

use std::fs::File;
use std::io;
use std::path::Path;

use super::slots::{
    FIRST_SLOT, NOTE, NOTE_LEN, RECORD_LEN, Reading, SlotWrite, VERSION, decode_note, encode_note,
};
use super::sys;
use crate::ledger::{BackendEnd, Ledger, LedgerReading};
use crate::lock::error::SpawnLockError;

/// Reads the ledger at `path` without touching the lock. A missing file reads as the default ledger.
pub(super) fn peek(path: &Path) -> Result<LedgerReading, SpawnLockError> {
    match open_to_read(path) {
        Ok(file) => Ok(read(path, &file)?.0),
        Err(SpawnLockError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(LedgerReading::Found(Box::default()))
        }
        Err(error) => Err(error),
    }
}

/// Opens an existing lock file for reading.
pub(super) fn open_to_read(path: &Path) -> Result<File, SpawnLockError> {
    let open_error = |source| super::checks::open_error(path, source);
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

/// The bytes read from a lock file.
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn read(file: &File) -> io::Result<Self> {
        Self::read_by(|bytes, offset| sys::read_at(file, bytes, offset))
    }

    /// Reads by a call that may append less than there is.
    fn read_by(
        mut read_at: impl FnMut(&mut Vec<u8>, u64) -> io::Result<usize>,
    ) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(RECORD_LEN);
        while bytes.len() < RECORD_LEN {
            let offset = FIRST_SLOT + bytes.len() as u64;
            match read_at(&mut bytes, offset) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // There may have been room for more.
        bytes.truncate(RECORD_LEN);
        Ok(Self(bytes))
    }

    fn reading(&self) -> Reading {
        Reading::of(&self.0)
    }

    /// Parses them, for a reader that does not hold the lock.
    pub(super) fn ledger(&self) -> LedgerReading {
        match self.reading() {
            Reading::Empty => LedgerReading::Found(Box::default()),
            Reading::Found { ledger, .. } => LedgerReading::Found(ledger),
            Reading::Unreadable | Reading::Newer { .. } => LedgerReading::Unreadable,
        }
    }
}

/// Reads the ledger and the sequence number of the newest record; zero if there is none.
pub(super) fn read(path: &Path, file: &File) -> Result<(LedgerReading, u64), SpawnLockError> {
    let bytes = Bytes::read(file).map_err(|source| ledger_error(path, source))?;
    match bytes.reading() {
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

/// Reads the note beside the records, if there is a good one.
pub(super) fn read_note(file: &File) -> Option<BackendEnd> {
    let mut note = Vec::with_capacity(NOTE_LEN);
    sys::read_at(file, &mut note, NOTE).ok()?;
    decode_note(&note)
}

/// Writes the note beside the records, which needs no lock. Does nothing unless it is about the newest launch, so that it does
/// not replace a note about that.
pub(super) fn write_note(path: &Path, end: &BackendEnd) -> Result<(), SpawnLockError> {
    if let LedgerReading::Found(ledger) = peek(path)? {
        let newest = ledger.last_outcome().map(|last| last.launch);
        if newest == Some(end.launch) {
            let file = sys::open_existing(path)
                .map_err(|source| super::checks::open_error(path, source))?;
            return sys::write_all_at(&file, &encode_note(end), NOTE)
                .map_err(|source| ledger_error(path, source));
        }
    }
    Ok(())
}

/// Writes the record after the one with the number `newest`, which stays readable on an error.
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_reads_as_new_and_one_that_cannot_be_opened_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let missing = peek(&file).unwrap();
        assert_eq!(missing, LedgerReading::Found(Box::default()));
        std::fs::write(&file, "").unwrap();
        assert!(peek(&file.join("indexer.lock")).is_err());
    }

    /// On a file system that notes times of reads.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_read_is_not_noted_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let file = sys::open(&path).unwrap();
        let read_at = || path.metadata().unwrap().accessed().unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        file.set_times(std::fs::FileTimes::new().set_accessed(long_ago))
            .unwrap();
        write(&path, &file, 0, &Ledger::default()).unwrap();
        read(&path, &file).unwrap();
        peek(&path).unwrap();
        assert_eq!(read_at(), long_ago);
    }

    #[test]
    fn a_read_goes_on_after_a_part_and_an_interruption_and_ends_with_the_file_or_an_error() {
        let file = [b'x'; RECORD_LEN];
        let part_of = |len: usize, bytes: &mut Vec<u8>, offset: u64| {
            assert!(bytes.len() < RECORD_LEN, "all is read");
            let rest = &file[(offset - FIRST_SLOT) as usize..len];
            let count = rest.len().min(1000);
            bytes.extend_from_slice(&rest[..count]);
            Ok(count)
        };
        for len in [0, 1500, RECORD_LEN] {
            let mut calls = 0;
            let bytes = Bytes::read_by(|bytes, offset| {
                calls += 1;
                match calls {
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    _ => part_of(len, bytes, offset),
                }
            });
            let bytes = bytes.unwrap();
            assert_eq!(bytes.0, file[..len]);
        }
        let broken = Bytes::read_by(|_, _| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(broken.is_err());
    }
}
