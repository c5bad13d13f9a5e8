//! The lock that callers share while they use a backend, and that an idle backend takes to leave.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::lock::FileSpawnLock;
use crate::process::error::ProcessError;
use crate::process::files::{Files, open_to_read, open_to_write};

/// The lock on the file, shared or exclusive, until it is dropped.
#[derive(Debug)]
pub(in crate::process) struct UseLock(File);

impl UseLock {
    /// Makes the file if there is none: who may only read can share it then.
    pub(in crate::process) fn make(files: &Files) -> Result<(), ProcessError> {
        open_to_write(&files.in_use()).map(drop)
    }

    /// Takes the lock together with other callers; `None` if the backend has it, which is leaving then.
    pub(in crate::process) fn try_share(files: &Files) -> Result<Option<Self>, ProcessError> {
        Self::try_lock(files, FlockOperation::NonBlockingLockShared)
    }

    /// Takes the lock for a backend that leaves; `None` if a caller has it.
    pub(in crate::process) fn try_take(files: &Files) -> Result<Option<Self>, ProcessError> {
        Self::try_lock(files, FlockOperation::NonBlockingLockExclusive)
    }

    fn try_lock(files: &Files, operation: FlockOperation) -> Result<Option<Self>, ProcessError> {
        let path = files.in_use();
        let file = match open_to_read(&path)? {
            Some(file) => file,
            None => {
                FileSpawnLock::new(files.directory()).map_err(ProcessError::Directory)?;
                open_to_write(&path)?
            }
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => return Err(ProcessError::file(&path, "lock", error.into())),
        }
        let lock = Self(file);
        // A file that was replaced meanwhile would be another lock.
        Ok(lock.is_at(&path).then_some(lock))
    }

    fn is_at(&self, path: &Path) -> bool {
        match (self.0.metadata(), path.symlink_metadata()) {
            (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
            _ => false,
        }
    }
}

impl Drop for UseLock {
    fn drop(&mut self) {
        // A child between fork and exec has a copy of the descriptor, which would keep the lock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}
