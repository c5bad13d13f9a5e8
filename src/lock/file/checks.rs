//! What is checked of a lock file and its directory before the file is locked.

use std::fs::File;
use std::io;
use std::path::Path;

use super::sys;
use crate::lock::error::{FileKind, SpawnLockError, Unsafety};
use crate::lock::identity::SpawnLockFileIdentity;

/// Which file systems are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filesystem {
    Local,
    Any,
}

/// The directory of the path.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Checks that only this user can change what is in the directory.
pub(super) fn check_directory(
    directory: &Path,
    filesystem: Filesystem,
) -> Result<(), SpawnLockError> {
    let metadata = directory
        .metadata()
        .map_err(|source| sys::open_error(directory, source))?;
    if !metadata.is_dir() {
        return Err(SpawnLockError::NotADirectory {
            path: directory.to_path_buf(),
        });
    }
    let Some(problem) = sys::directory_unsafety(&metadata) else {
        return Ok(());
    };
    let found = sys::filesystem_of(directory);
    let found = found.map_err(|source| sys::open_error(directory, source))?;
    Err(directory_refused(directory, &found, filesystem, problem))
}

/// Why a directory with this problem is refused. The file system comes first: no owner or mode makes one safe that is not.
fn directory_refused(
    directory: &Path,
    found: &sys::FilesystemKind,
    accepted: Filesystem,
    problem: Unsafety,
) -> SpawnLockError {
    let path = directory.to_path_buf();
    match (found.shared, problem) {
        (Some(filesystem), _) if accepted == Filesystem::Local => {
            SpawnLockError::UnsafeFilesystem { path, filesystem }
        }
        _ if found.read_only => SpawnLockError::ReadOnlyFilesystem {
            path,
            source: sys::read_only(),
        },
        (_, Unsafety::Writable { mode }) if !found.has_modes => SpawnLockError::Unsafe {
            path,
            problem: Unsafety::ChmodIgnored { mode },
        },
        _ => SpawnLockError::Unsafe { path, problem },
    }
}

/// Checks that the file is a regular one that only this user can open, on a file system that is accepted. Returns its identity.
///
/// Checks the open file, not the path, since an open file cannot be replaced.
pub(super) fn check_file(
    path: &Path,
    file: &File,
    filesystem: Filesystem,
) -> Result<SpawnLockFileIdentity, SpawnLockError> {
    let identity_error = |source| SpawnLockError::Identity {
        path: path.to_path_buf(),
        source,
    };
    // In the order of what a person has to change: the file system, the kind of file, its owner, its mode.
    let shared = not_accepted(filesystem, || sys::unsafe_filesystem(file));
    if let Some(filesystem) = shared.map_err(identity_error)? {
        return Err(SpawnLockError::UnsafeFilesystem {
            path: path.to_path_buf(),
            filesystem,
        });
    }
    let metadata = file.metadata().map_err(identity_error)?;
    if let Some(found) = sys::kind(&metadata) {
        return Err(not_a_regular_file(path, found));
    }
    let problem = match sys::unsafety(&metadata) {
        Some(problem) => Some(problem),
        None => {
            sys::keep_private(file, &metadata).map_err(|source| sys::open_error(path, source))?
        }
    };
    if let Some(problem) = problem {
        return Err(SpawnLockError::Unsafe {
            path: path.to_path_buf(),
            problem,
        });
    }
    sys::identity(file, &metadata).map_err(identity_error)
}

/// The name of the file system if it is not accepted, since other machines may share it.
fn not_accepted(
    accepted: Filesystem,
    shared: impl FnOnce() -> io::Result<Option<&'static str>>,
) -> io::Result<Option<&'static str>> {
    match accepted {
        Filesystem::Local => shared(),
        Filesystem::Any => Ok(None),
    }
}

/// The identity of the handle's file.
pub(super) fn identity_of(
    path: &Path,
    file: &File,
) -> Result<SpawnLockFileIdentity, SpawnLockError> {
    let identity = file
        .metadata()
        .and_then(|metadata| sys::identity(file, &metadata));
    identity.map_err(|source| SpawnLockError::Identity {
        path: path.to_path_buf(),
        source,
    })
}

/// Names why the open failed: the kind of file at the path says more than the error number.
pub(super) fn open_error(path: &Path, source: io::Error) -> SpawnLockError {
    match path
        .symlink_metadata()
        .ok()
        .and_then(|metadata| sys::kind(&metadata))
    {
        Some(found) => not_a_regular_file(path, found),
        None => sys::open_error(path, source),
    }
}

fn not_a_regular_file(path: &Path, found: FileKind) -> SpawnLockError {
    SpawnLockError::NotARegularFile {
        path: path.to_path_buf(),
        found,
    }
}

/// Whether the error says that nothing is at the path, rather than that this cannot be told.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_other_machines_share_is_refused_unless_any_is_accepted() {
        for (found, refused) in [(None, None), (Some("nfs"), Some("nfs"))] {
            let shared = || Ok(found);
            assert_eq!(not_accepted(Filesystem::Local, shared).unwrap(), refused);
            assert_eq!(not_accepted(Filesystem::Any, shared).unwrap(), None);
        }
    }

    #[test]
    fn a_directory_is_refused_for_its_file_system_before_its_mode() {
        let refused = |shared, read_only, has_modes, accepted| {
            let found = sys::FilesystemKind {
                shared,
                read_only,
                has_modes,
            };
            let problem = Unsafety::Writable { mode: 0o777 };
            directory_refused(Path::new("locks"), &found, accepted, problem)
        };
        use Filesystem::{Any, Local};
        assert!(matches!(
            refused(Some("nfs"), true, false, Local),
            SpawnLockError::UnsafeFilesystem {
                filesystem: "nfs",
                ..
            }
        ));
        for (shared, accepted) in [(None, Local), (Some("nfs"), Any)] {
            assert!(matches!(
                refused(shared, true, false, accepted),
                SpawnLockError::ReadOnlyFilesystem { .. }
            ));
            assert!(matches!(
                refused(shared, false, false, accepted),
                SpawnLockError::Unsafe {
                    problem: Unsafety::ChmodIgnored { mode: 0o777 },
                    ..
                }
            ));
            assert!(matches!(
                refused(shared, false, true, accepted),
                SpawnLockError::Unsafe {
                    problem: Unsafety::Writable { mode: 0o777 },
                    ..
                }
            ));
        }
    }
}
