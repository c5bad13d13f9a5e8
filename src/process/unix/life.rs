//! The lock for a backend's life: a lock on a file, of which the backend inherits the descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use super::holder::holds;
use crate::admin::inspect_spawn_lock;
use crate::lock::{SpawnLockError, SpawnLockGuard, acquire_spawn_lock};
use crate::process::error::ProcessError;
use crate::process::files::Files;

/// The lock, until it is dropped or handed over.
#[derive(Debug)]
pub(in crate::process) struct LifeLock(SpawnLockGuard);

impl LifeLock {
    /// Takes the lock; `None` if somebody has it, or looks at it.
    pub(in crate::process) fn try_take(files: &Files) -> Result<Option<Self>, ProcessError> {
        match acquire_spawn_lock(files.life()) {
            Ok(guard) => Ok(Some(Self(guard))),
            Err(
                SpawnLockError::AlreadyLocked { .. } | SpawnLockError::DeletedOrRecreated { .. },
            ) => Ok(None),
            Err(error) => Err(ProcessError::Directory(error)),
        }
    }

    /// Whether somebody has the lock.
    pub(in crate::process) fn is_held(files: &Files) -> Result<bool, ProcessError> {
        match inspect_spawn_lock(files.life()) {
            Ok(report) => Ok(report.is_held),
            Err(SpawnLockError::Open { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(false)
            }
            Err(error) => Err(ProcessError::Directory(error)),
        }
    }

    /// Turns the lock into a descriptor to inherit. The second value releases the lock when it is dropped, unless it is
    /// [`kept`](HandedOver::keep).
    pub(super) fn hand_over(self) -> Result<(OwnedFd, HandedOver), ProcessError> {
        let path = self.0.path().to_path_buf();
        let life = self.0.hand_over();
        life.and_then(|life| Ok((life.try_clone()?, HandedOver(Some(life)))))
            .map_err(|error| ProcessError::file(&path, "pass on", error))
    }
}

/// The lock, if nobody inherits it after all.
pub(super) struct HandedOver(Option<OwnedFd>);

impl HandedOver {
    /// Leaves the lock to the process that inherited it.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        if let Some(life) = &self.0 {
            // A child of another thread, between fork and exec, may have a copy of the descriptor.
            let _ = flock(life, FlockOperation::Unlock);
        }
    }
}

/// Whether this process inherited the lock: it has the file open. If the system does not tell, it is assumed that it did.
pub(in crate::process) fn is_inherited(files: &Files) -> bool {
    holds(std::process::id(), files)
}

/// Which file the lock is on; `None` if there is none.
pub(in crate::process) fn identity_of(files: &Files) -> io::Result<Option<(u64, u64)>> {
    match files.life().symlink_metadata() {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file that names the backend's process: that of the lock itself, which is not replaced.
pub(in crate::process) fn name_file(files: &Files) -> PathBuf {
    files.life()
}
