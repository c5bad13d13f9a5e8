//! The lock that callers share while they use a backend, and that an idle backend takes to leave: a file that callers share for
//! reading, and that a backend opens alone.

use std::fs::File;
use std::io;

use super::files::{SHARE_ALL, SHARE_NOTHING, SHARE_READ, is_taken, options};
use crate::lock::FileSpawnLock;
use crate::process::error::ProcessError;
use crate::process::files::Files;

/// The lock on the file, shared or exclusive, until it is dropped.
#[derive(Debug)]
pub(in crate::process) struct UseLock {
    _file: File,
}

impl UseLock {
    /// Makes the file if there is none.
    pub(in crate::process) fn make(files: &Files) -> Result<(), ProcessError> {
        let path = files.in_use();
        match options(SHARE_ALL).write(true).create_new(true).open(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !is_taken(&error) => {
                Err(ProcessError::file(&path, "open", error))
            }
            _ => Ok(()),
        }
    }

    /// Takes the lock together with other callers; `None` if the backend has it, which is leaving then.
    pub(in crate::process) fn try_share(files: &Files) -> Result<Option<Self>, ProcessError> {
        Self::try_open(files, SHARE_READ)
    }

    /// Takes the lock for a backend that leaves; `None` if a caller has it.
    pub(in crate::process) fn try_take(files: &Files) -> Result<Option<Self>, ProcessError> {
        Self::try_open(files, SHARE_NOTHING)
    }

    fn try_open(files: &Files, share: u32) -> Result<Option<Self>, ProcessError> {
        let path = files.in_use();
        if !path.exists() {
            FileSpawnLock::new(files.directory()).map_err(ProcessError::Directory)?;
            Self::make(files)?;
        }
        match options(share).read(true).open(&path) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err(error) if is_taken(&error) => Ok(None),
            Err(error) => Err(ProcessError::file(&path, "open", error)),
        }
    }
}
