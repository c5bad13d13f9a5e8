//! The lock for a backend's life: a file that is open and shared with nobody. The backend inherits the handle as its standard input,
//! which is empty.

use std::fs::File;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::path::PathBuf;

use winapi_util::{HandleRef, file};

use super::files::{SHARE_ALL, SHARE_NOTHING, is_taken, options};
use crate::process::error::ProcessError;
use crate::process::files::Files;

/// The lock, until it is dropped or handed over.
#[derive(Debug)]
pub(in crate::process) struct LifeLock(File);

impl LifeLock {
    /// Takes the lock; `None` if somebody has it, or looks at it.
    pub(in crate::process) fn try_take(files: &Files) -> Result<Option<Self>, ProcessError> {
        let path = files.life();
        let opened = options(SHARE_NOTHING)
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        match opened {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if is_taken(&error) => Ok(None),
            Err(error) => Err(ProcessError::file(&path, "open", error)),
        }
    }

    /// Whether somebody has the lock.
    pub(in crate::process) fn is_held(files: &Files) -> Result<bool, ProcessError> {
        let path = files.life();
        // Disturbs nobody who looks at the same time.
        match options(SHARE_ALL).read(true).open(&path) {
            Ok(_) => Ok(false),
            Err(error) if is_taken(&error) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ProcessError::file(&path, "open", error)),
        }
    }

    /// Turns the lock into a handle to inherit: it is released once all copies are closed.
    pub(super) fn hand_over(self) -> File {
        self.0
    }
}

/// Whether this process inherited the lock: it is its standard input.
pub(in crate::process) fn is_inherited(files: &Files) -> bool {
    let input = file::information(HandleRef::stdin());
    let input = input.map(|found| (found.volume_serial_number(), found.file_index()));
    input.is_ok_and(|input| identity_of(files).ok().flatten() == Some(input))
}

/// Which file the lock is on; `None` if there is none.
pub(in crate::process) fn identity_of(files: &Files) -> io::Result<Option<(u64, u64)>> {
    // Access to attributes only, which nobody can refuse to share.
    match options(SHARE_ALL).access_mode(0).open(files.life()) {
        Ok(opened) => {
            let found = file::information(&opened)?;
            Ok(Some((found.volume_serial_number(), found.file_index())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file that names the backend's process: not that of the lock, which nobody else can read.
pub(in crate::process) fn name_file(files: &Files) -> PathBuf {
    files.life().with_extension("process")
}
