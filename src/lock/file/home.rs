//! The directory of the lock files: made, and mended if somebody removed it or gave it to a group.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::checks::is_gone;
use super::sys;
use crate::lock::error::{SpawnLockError, Unsafety};

/// The lock file that is locked only to check that the directory works. No key has this name: theirs contain a hash. It also
/// shows that a directory is one of lock files.
pub(super) const PROBE_NAME: &str = "probe.lock";

/// A directory of lock files.
#[derive(Debug)]
pub(super) struct Home {
    /// Resolved once, so neither a changed link nor a change of the working directory moves the locks later.
    path: PathBuf,
    /// How many of the last components of the path are made again if they are gone.
    ours: usize,
    /// Whether the directory was made just now.
    is_new: bool,
}

impl Home {
    /// Makes the directory, with its parents, if it does not exist.
    pub(super) fn make(directory: &Path) -> Result<Self, SpawnLockError> {
        if directory.as_os_str().is_empty() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is empty");
            return Err(sys::open_error(directory, source));
        }
        let missing = missing(directory)?;
        let made = sys::make_directory(directory, true).and_then(|()| directory.canonicalize());
        let path = made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                not_a_directory(directory, source)
            }
            _ => sys::open_error(directory, source),
        })?;
        Ok(Self {
            path,
            // The directory itself is always made again: it is made if it does not exist.
            ours: missing.max(1),
            is_new: missing > 0,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Mends why the first lock could not be taken. `Err` if it cannot be mended.
    pub(super) fn mend_at_first(
        &self,
        file: &Path,
        error: SpawnLockError,
    ) -> Result<(), SpawnLockError> {
        match error {
            // It was made with mode 0700.
            SpawnLockError::Unsafe {
                path,
                problem: Unsafety::Writable { mode },
            } if path == self.path && self.is_new => Err(SpawnLockError::Unsafe {
                path,
                problem: Unsafety::ChmodIgnored { mode },
            }),
            error => self.mend_as_it_is(file, error),
        }
    }

    /// Mends why the lock `file` could not be taken, in a directory that was safe before. `Err` if it cannot be mended.
    pub(super) fn mend(&self, file: &Path, error: SpawnLockError) -> Result<(), SpawnLockError> {
        match self.mend_as_it_is(file, error) {
            Err(SpawnLockError::Unsafe { path, problem }) if path == self.path => {
                Err(SpawnLockError::DirectoryChanged { path, problem })
            }
            mended => mended,
        }
    }

    fn mend_as_it_is(&self, file: &Path, error: SpawnLockError) -> Result<(), SpawnLockError> {
        let (path, tightened) = match error {
            SpawnLockError::Open { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
                return self.make_again();
            }
            SpawnLockError::Unsafe {
                path,
                problem: Unsafety::Writable { .. },
            } if path == self.path => {
                let tightened = sys::tighten_directory(&path, PROBE_NAME);
                (path, tightened)
            }
            SpawnLockError::Unsafe {
                path,
                problem: Unsafety::Writable { .. },
            } if path == file => {
                let tightened = sys::tighten_file(&path);
                (path, tightened)
            }
            error => return Err(error),
        };
        match tightened {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(SpawnLockError::Unsafe { path, problem }),
            // Deleted since: the next try makes it anew.
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(sys::open_error(&path, source)),
        }
    }

    /// Makes the directory again, at the same place.
    fn make_again(&self) -> Result<(), SpawnLockError> {
        let ours: Vec<_> = self.path.ancestors().take(self.ours).collect();
        for directory in ours.into_iter().rev() {
            let failed = |source| sys::open_error(directory, source);
            let parent = directory.parent().unwrap_or(directory);
            if parent.canonicalize().map_err(failed)? != parent {
                return Err(failed(io::Error::other("a link is in its path now")));
            }
            match sys::make_directory(directory, false) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed)?,
            }
        }
        Ok(())
    }
}

/// How many of the last components of the path do not exist.
fn missing(directory: &Path) -> Result<usize, SpawnLockError> {
    let mut count = 0;
    for path in directory.ancestors() {
        if path.as_os_str().is_empty() {
            break;
        }
        match path.symlink_metadata() {
            Ok(_) => break,
            Err(error) if is_gone(&error) => count += 1,
            Err(source) => return Err(sys::open_error(directory, source)),
        }
    }
    // What such a path means once it is resolved is another path.
    let is_plain = directory
        .components()
        .all(|component| component != Component::ParentDir);
    Ok(if is_plain { count } else { count.min(1) })
}

/// Names the path that is not a directory: this one or an ancestor.
fn not_a_directory(directory: &Path, source: io::Error) -> SpawnLockError {
    for path in directory.ancestors() {
        match path.symlink_metadata() {
            Ok(_) => {
                return SpawnLockError::NotADirectory {
                    path: path.to_path_buf(),
                };
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => break,
        }
    }
    sys::open_error(directory, source)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn writable(path: &Path) -> SpawnLockError {
        SpawnLockError::Unsafe {
            path: path.to_path_buf(),
            problem: Unsafety::Writable { mode: 0o777 },
        }
    }

    fn cannot_open(path: &Path, kind: io::ErrorKind) -> SpawnLockError {
        SpawnLockError::Open {
            path: path.to_path_buf(),
            source: kind.into(),
        }
    }

    #[test]
    fn a_directory_just_made_that_others_can_write_to_is_on_a_file_system_without_modes() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("locks");
        for is_new in [true, false] {
            let home = Home::make(&directory).unwrap();
            let file = home.path().join(PROBE_NAME);
            let mended = home.mend_at_first(&file, writable(home.path()));
            let is_told = matches!(
                mended,
                Err(SpawnLockError::Unsafe {
                    problem: Unsafety::ChmodIgnored { mode: 0o777 },
                    ..
                })
            );
            assert_eq!(is_told, is_new, "{mended:?}");
        }
    }

    #[test]
    fn what_cannot_be_opened_for_another_reason_than_that_it_is_gone_is_left_alone() {
        let outer = tempfile::tempdir().unwrap();
        let home = Home::make(&outer.path().join("locks")).unwrap();
        let file = home.path().join("backend.lock");
        fs::remove_dir(home.path()).unwrap();
        let denied = cannot_open(&file, io::ErrorKind::PermissionDenied);
        assert!(home.mend(&file, denied).is_err());
        assert!(!home.path().exists());
        let gone = cannot_open(&file, io::ErrorKind::NotFound);
        home.mend(&file, gone).unwrap();
        assert!(home.path().is_dir());
    }

    #[test]
    fn a_directory_that_cannot_be_made_again_is_an_error() {
        let outer = tempfile::tempdir().unwrap();
        let parent = outer.path().join("parent");
        fs::create_dir(&parent).unwrap();
        let home = Home::make(&parent.join("locks")).unwrap();
        let file = home.path().join("backend.lock");
        fs::remove_dir_all(&parent).unwrap();
        fs::write(&parent, "").unwrap();
        let gone = cannot_open(&file, io::ErrorKind::NotFound);
        assert!(home.mend(&file, gone).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_directory_and_the_lock_file_are_taken_from_a_group() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};

        let outer = tempfile::tempdir().unwrap();
        let home = Home::make(&outer.path().join("locks")).unwrap();
        let [file, other] = ["backend.lock", "other"].map(|name| home.path().join(name));
        for path in [&file, &other] {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).unwrap();
        }
        assert!(home.mend(&file, writable(&other)).is_err());
        home.mend(&file, writable(&file)).unwrap();
        let modes = [file, other].map(|path| fs::metadata(path).unwrap().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o660]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_gone_before_its_mode_is_mended_is_tried_again() {
        let outer = tempfile::tempdir().unwrap();
        let home = Home::make(&outer.path().join("locks")).unwrap();
        let file = home.path().join("indexer.lock");
        home.mend(&file, writable(&file)).unwrap();
        std::fs::remove_dir(home.path()).unwrap();
        home.mend(&file, writable(home.path())).unwrap();
    }
}
