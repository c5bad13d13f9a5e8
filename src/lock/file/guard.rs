//! The lock itself: open, lock, verify identity; unlock and close when dropped.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checks::{
    Filesystem, check_directory, check_file, identity_of, is_gone, open_error, parent,
};
use super::descriptors::Slot;
use super::sys;
use crate::lock::error::SpawnLockError;
use crate::lock::identity::SpawnLockFileIdentity;

/// Takes the spawn lock at `path`, once, without waiting.
///
/// Creates the file (mode 0600) if it does not exist. A file that others may read is set to 0600, since a process that can open
/// it can lock it. The file is never truncated or deleted, and nothing is written to it. After locking, the identities of handle
/// and path are compared, so a file that was deleted or replaced meanwhile is noticed.
///
/// The lock is advisory and belongs to the handle. It ends with the guard or with the process, however that dies. The handle
/// is closed on exec, so a started program does not inherit it. A child that is forked and does not exec (a classic daemon)
/// shares the handle; if this process dies while it holds the lock, the child keeps it until it ends.
///
/// The last component of the path may not be a link. Links in its directories are followed, so trust those who can change them.
///
/// Blocks for a few short system calls; in async code use [`FileSpawnLock`](crate::FileSpawnLock) or `spawn_blocking`.
///
/// # Errors
///
/// [`SpawnLockError::AlreadyLocked`] if the lock is held, [`SpawnLockError::DeletedOrRecreated`] if the file was replaced
/// meanwhile: a retry helps with both. Every other error names something to fix: not a regular file, a directory or file
/// that others can write to, a network or read-only file system, a name that is too long, a missing directory.
///
/// # Examples
///
/// ```
/// use spawn_gate::{SpawnLockError, acquire_spawn_lock};
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("indexer.lock");
///
/// let guard = acquire_spawn_lock(&path)?;
/// assert!(matches!(acquire_spawn_lock(&path), Err(SpawnLockError::AlreadyLocked { .. })));
/// drop(guard);
/// acquire_spawn_lock(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn acquire_spawn_lock(path: impl AsRef<Path>) -> Result<SpawnLockGuard, SpawnLockError> {
    acquire_with(path.as_ref(), Filesystem::Local, Try::First)
}

/// Whether other waiters may be woken by this try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Try {
    /// One descriptor both locks and writes.
    First,
    /// The descriptor that locks is read-only: waiters wake when a writable one is closed, and a failed try must not wake them.
    /// A writable one is opened once the lock is held.
    WhileWaiting,
}

/// Takes the lock once.
pub(super) fn acquire_with(
    path: &Path,
    filesystem: Filesystem,
    kind: Try,
) -> Result<SpawnLockGuard, SpawnLockError> {
    Opened::open(path.into(), filesystem, kind)?.lock()
}

/// A lock file that was opened and checked, and is not yet locked.
#[derive(Debug)]
pub(super) struct Opened {
    path: Arc<Path>,
    absolute: Arc<Path>,
    file: File,
    can_write: bool,
    identity: SpawnLockFileIdentity,
}

impl Opened {
    pub(super) fn open(
        given: Arc<Path>,
        filesystem: Filesystem,
        kind: Try,
    ) -> Result<Self, SpawnLockError> {
        let path = &*given;
        // The working directory may change while the lock is held.
        let absolute = match path.is_absolute() {
            true => Arc::clone(&given),
            false => std::path::absolute(path)
                .map_err(|source| sys::open_error(path, source))?
                .into(),
        };
        check_directory(parent(path), filesystem)?;
        let opened = match kind {
            // A network file system may need a writable descriptor for an exclusive lock.
            Try::WhileWaiting if filesystem == Filesystem::Local => {
                match sys::open_for_reading(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        sys::open(path).map(|file| (file, true))
                    }
                    opened => opened.map(|file| (file, false)),
                }
            }
            _ => sys::open(path).map(|file| (file, true)),
        };
        let (file, can_write) = opened.map_err(|source| open_error(path, source))?;
        let identity = check_file(path, &file, filesystem)?;
        Ok(Self {
            path: given,
            absolute,
            file,
            can_write,
            identity,
        })
    }

    /// The file, to read its record.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Locks the file, once, and checks that the path still names it.
    pub(super) fn lock(self) -> Result<SpawnLockGuard, SpawnLockError> {
        let lock = lock(&self.path, &self.file)?;
        // From here on an early return drops the guard, which unlocks.
        let mut guard = SpawnLockGuard {
            identity: self.identity,
            lock,
            file: self.file,
            writer: None,
            path: self.path,
            absolute: self.absolute,
            pid: std::process::id(),
            is_let_go: AtomicBool::new(false),
            slot: None,
        };
        guard.verify()?;
        if !self.can_write {
            guard.open_writer()?;
        }
        Ok(guard)
    }
}

/// The held spawn lock: while it lives, no other handle on this machine can lock the same file.
#[must_use = "dropping the guard releases the spawn lock"]
#[derive(Debug)]
pub struct SpawnLockGuard {
    lock: sys::Lock,
    /// The handle that holds the lock.
    file: File,
    /// The handle that writes, if it is not `file`.
    writer: Option<File>,
    path: Arc<Path>,
    absolute: Arc<Path>,
    identity: SpawnLockFileIdentity,
    /// The process that took the lock.
    pid: u32,
    /// Whether the lock is released, or now belongs to whoever has a copy of the descriptor.
    is_let_go: AtomicBool,
    /// Counts the descriptors, if they count. Dropped after the files are closed.
    slot: Option<Slot>,
}

impl SpawnLockGuard {
    /// Returns the lock file's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the identity of the locked file, that is of the open handle; the path may name another file by now.
    pub fn file_identity(&self) -> Option<SpawnLockFileIdentity> {
        Some(self.identity)
    }

    /// Checks that the path still names the locked file. If not, another process may hold a lock at the same path now.
    ///
    /// Makes one short system call.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError::DeletedOrRecreated`] if the path names another file or none, [`SpawnLockError::Identity`] if that is
    /// unknown. A retry of this call does not help: drop the guard and take the lock again.
    pub fn verify(&self) -> Result<(), SpawnLockError> {
        let current_identity = match sys::path_identity(&self.absolute) {
            Ok(identity) => Some(identity),
            Err(error) if is_gone(&error) => None,
            Err(source) => {
                return Err(SpawnLockError::Identity {
                    path: self.path.to_path_buf(),
                    source,
                });
            }
        };
        if current_identity == Some(self.identity) {
            return Ok(());
        }
        Err(self.replaced_by(current_identity))
    }

    /// Hands the lock over: the returned descriptor keeps it held, as does each copy of it, until the last one is closed. Give it
    /// to a child process and the lock is held as long as that lives. The descriptor is closed on exec.
    ///
    /// # Errors
    ///
    /// If there is no descriptor for the copy. The lock is released.
    #[cfg(unix)]
    pub fn hand_over(self) -> io::Result<std::os::fd::OwnedFd> {
        use std::os::fd::AsFd;

        let copy = self.file.as_fd().try_clone_to_owned()?;
        self.is_let_go.store(true, Ordering::Relaxed);
        Ok(copy)
    }

    fn replaced_by(&self, current_identity: Option<SpawnLockFileIdentity>) -> SpawnLockError {
        SpawnLockError::DeletedOrRecreated {
            path: self.path.to_path_buf(),
            opened_identity: Some(self.identity),
            current_identity,
        }
    }

    /// Keeps the slot until the files are closed.
    pub(super) fn with(mut self, slot: Option<Slot>) -> Self {
        self.slot = slot;
        self
    }

    /// The locked file, for its record.
    pub(super) fn file(&self) -> &File {
        self.writer.as_ref().unwrap_or(&self.file)
    }

    /// Releases the lock before the handles are closed. Does nothing in a forked child, which shares the lock with its parent, or
    /// once the lock was released or handed over.
    pub(super) fn unlock(&self) {
        if !self.is_let_go.load(Ordering::Relaxed) && self.is_of_this_process() {
            self.lock.release(&self.file);
            // Only then: whoever finds it set finds the lock free.
            self.is_let_go.store(true, Ordering::Relaxed);
        }
    }

    fn open_writer(&mut self) -> Result<(), SpawnLockError> {
        let opened = sys::open_existing(&self.absolute);
        let writer = opened.map_err(|source| match is_gone(&source) {
            true => self.replaced_by(None),
            false => open_error(&self.path, source),
        })?;
        let current = identity_of(&self.path, &writer)?;
        if current != self.identity {
            return Err(self.replaced_by(Some(current)));
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// False in a forked child: it shares the lock with its parent, so it must not release it.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for SpawnLockGuard {
    fn drop(&mut self) {
        self.unlock();
    }
}

/// Locks the file for this handle alone.
fn lock(path: &Path, file: &File) -> Result<sys::Lock, SpawnLockError> {
    tried(path, file, || sys::Lock::take(file))
}

/// Whether the lock of this file is held. If not, this takes a shared lock for a moment.
pub(super) fn is_locked(path: &Path, file: &File) -> Result<bool, SpawnLockError> {
    match tried(path, file, || sys::lock_shared_and_release(file)) {
        Ok(()) => Ok(false),
        Err(SpawnLockError::AlreadyLocked { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn tried<L>(
    path: &Path,
    file: &File,
    mut try_lock: impl FnMut() -> io::Result<L>,
) -> Result<L, SpawnLockError> {
    loop {
        let source = match try_lock() {
            Ok(lock) => return Ok(lock),
            Err(source) => source,
        };
        let path = path.to_path_buf();
        return Err(match source.kind() {
            io::ErrorKind::Interrupted => continue,
            io::ErrorKind::WouldBlock => SpawnLockError::AlreadyLocked { path },
            _ if sys::is_unsupported(&source, file) => {
                SpawnLockError::LocksUnsupported { path, source }
            }
            _ => SpawnLockError::Lock { path, source },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_swapped_between_open_and_lock_is_noticed_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let file = Opened::open(path.as_path().into(), Filesystem::Local, Try::First).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::write(&path, "").unwrap();
        let error = file.lock().unwrap_err();
        let SpawnLockError::DeletedOrRecreated {
            path: named,
            opened_identity: Some(opened),
            current_identity: Some(current),
        } = error
        else {
            panic!("not noticed: {error:?}");
        };
        assert_eq!(named, path);
        assert_ne!(opened, current);
        // The failed try left nothing locked behind, neither here nor on the file that was moved away.
        drop(acquire_spawn_lock(&path).unwrap());
        drop(acquire_spawn_lock(directory.path().join("moved")).unwrap());
    }

    #[test]
    fn a_file_deleted_between_open_and_lock_is_noticed_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let file = Opened::open(path.as_path().into(), Filesystem::Local, Try::First).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            file.lock(),
            Err(SpawnLockError::DeletedOrRecreated {
                opened_identity: Some(_),
                current_identity: None,
                ..
            })
        ));
    }

    #[test]
    fn a_lock_is_released_also_while_a_duplicate_of_its_handle_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let guard = acquire_spawn_lock(&path).unwrap();
        let _duplicate = guard.file.try_clone().unwrap();
        drop(guard);
        drop(acquire_spawn_lock(&path).unwrap());
    }

    #[test]
    fn a_try_by_one_who_waits_makes_a_file_that_was_deleted_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let waiting = || acquire_with(&path, Filesystem::Local, Try::WhileWaiting);
        drop(waiting().unwrap());
        assert!(path.is_file());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_is_not_released_by_a_guard_of_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let mut guard = acquire_spawn_lock(&path).unwrap();
        // As in a forked child, which has a copy of the guard and of its descriptor.
        let parents = guard.file().try_clone().unwrap();
        guard.pid = guard.pid.wrapping_add(1);
        drop(guard);
        assert!(matches!(
            acquire_spawn_lock(&path),
            Err(SpawnLockError::AlreadyLocked { .. })
        ));
        drop(parents);
        drop(acquire_spawn_lock(&path).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_whose_file_cannot_be_looked_at_is_not_taken_for_lost() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("locks");
        fs::create_dir(&directory).unwrap();
        let guard = acquire_spawn_lock(directory.join("backend.lock")).unwrap();
        fs::rename(&directory, outer.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(&directory, &directory).unwrap();
        let verified = guard.verify();
        assert!(
            matches!(verified, Err(SpawnLockError::Identity { .. })),
            "{verified:?}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_that_cannot_be_taken_says_whether_it_is_held_or_missing_or_broken() {
        use rustix::io::Errno;

        let file = tempfile::tempfile().unwrap();
        let error = |errors: &[Errno]| {
            let mut errors = errors.iter();
            tried(Path::new("backend.lock"), &file, || match errors.next() {
                Some(&errno) => Err(errno.into()),
                None => Ok(()),
            })
        };
        assert!(error(&[]).is_ok());
        assert!(error(&[Errno::INTR, Errno::INTR]).is_ok());
        assert!(matches!(
            error(&[Errno::INTR, Errno::AGAIN]),
            Err(SpawnLockError::AlreadyLocked { .. })
        ));
        assert!(matches!(
            error(&[Errno::OPNOTSUPP]),
            Err(SpawnLockError::LocksUnsupported { .. })
        ));
        assert!(matches!(
            error(&[Errno::IO]),
            Err(SpawnLockError::Lock { .. })
        ));
    }
}
