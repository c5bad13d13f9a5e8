//! Opening and replacing files.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// Opens a file with these options. Follows no link, does not hang on a FIFO or device, takes no controlling terminal, and makes
/// private files.
pub(in crate::process) fn open(
    path: &Path,
    set: impl Fn(&mut OpenOptions) -> &mut OpenOptions,
) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.custom_flags(flags.bits() as i32).mode(0o600);
    set(&mut options).open(path)
}

pub(in crate::process) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Makes a file empty that is open for appending.
pub(in crate::process) fn truncate(file: &File, _path: &Path) -> io::Result<()> {
    file.set_len(0)
}

pub(in crate::process) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

pub(in crate::process) fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(in crate::process) fn path_of_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    Some(OsStr::from_bytes(&bytes).into())
}

/// The right to change an open file alone, until it is dropped.
pub(in crate::process) struct Alone(OwnedFd);

impl Alone {
    /// Takes it; `None` if another process has it.
    pub(in crate::process) fn with(file: &File, _path: &Path) -> Option<Self> {
        let copy = file.as_fd().try_clone_to_owned().ok()?;
        flock(&copy, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self(copy))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // The log is inherited, and with it the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
