//! The system calls of the spawn lock on Windows.

use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::future::{self, Future};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::lock::error::{FileKind, SpawnLockError, Unsafety};
use crate::lock::identity::SpawnLockFileIdentity;

const FILE_SHARE_READ_WRITE_DELETE: u32 = 1 | 2 | 4;
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
const ERROR_ACCESS_DENIED: i32 = 5;

/// A file that was deleted while open refuses to be opened until its last handle is closed, which takes moments.
const TRIES_AT_DELETE_PENDING: u32 = 5;
const PAUSE_AT_DELETE_PENDING: Duration = Duration::from_millis(2);

/// Opens the lock file, and creates it if it does not exist. The standard library creates handles that children do not inherit.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut tries = 1;
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .share_mode(FILE_SHARE_READ_WRITE_DELETE)
            .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
            .open(path);
        match opened {
            Err(error)
                if error.raw_os_error() == Some(ERROR_ACCESS_DENIED)
                    && tries < TRIES_AT_DELETE_PENDING =>
            {
                tries += 1;
                // This is a thread of the blocking pool, and it takes a few milliseconds in all.
                std::thread::sleep(PAUSE_AT_DELETE_PENDING);
            }
            other => return other,
        }
    }
}

/// Opens an existing lock file for writing.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .share_mode(FILE_SHARE_READ_WRITE_DELETE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)
}

/// Opens an existing lock file read-only.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .share_mode(FILE_SHARE_READ_WRITE_DELETE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)
}

/// A held lock. The unlocking type of `fd-lock` borrows the locking one, so both live in a future: dropping that unlocks.
pub(super) struct Lock(Mutex<Option<KeepLocked>>);

type KeepLocked = Pin<Box<dyn Future<Output = io::Error> + Send>>;

impl Lock {
    /// Locks the file for this handle and its duplicates alone, if it is not locked.
    pub(super) fn take(file: &File) -> io::Result<Self> {
        let mut locked: KeepLocked = Box::pin(keep_locked(file.try_clone()?));
        match locked
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(error) => Err(error),
            Poll::Pending => Ok(Self(Mutex::new(Some(locked)))),
        }
    }

    /// Unlocks before the handles are closed: after a close, the system unlocks when it has the time, and not while there is
    /// a duplicate of the handle.
    pub(super) fn release(&self, _file: &File) {
        // Under the mutex: whoever comes second finds the lock free.
        let mut locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *locked = None;
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

/// Locks the file until the future is dropped. Returns why it could not.
async fn keep_locked(file: File) -> io::Error {
    let mut lock = fd_lock::RwLock::new(file);
    match lock.try_write() {
        Ok(_locked) => future::pending().await,
        Err(error) => error,
    }
}

/// Fails with `WouldBlock` if the file is locked. If not, takes a shared lock for a moment.
pub(super) fn lock_shared_and_release(file: &File) -> io::Result<()> {
    fd_lock::RwLock::new(file).try_read().map(drop)
}

pub(super) fn kind(metadata: &Metadata) -> Option<FileKind> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        Some(FileKind::Symlink)
    } else if kind.is_dir() {
        Some(FileKind::Directory)
    } else if kind.is_file() {
        None
    } else {
        Some(FileKind::Other)
    }
}

/// Owner and rights are in access control lists here; the user sets the directory's list.
pub(super) fn unsafety(_metadata: &Metadata) -> Option<Unsafety> {
    None
}

/// See [`unsafety`].
pub(super) fn keep_private(_file: &File, _metadata: &Metadata) -> io::Result<Option<Unsafety>> {
    Ok(None)
}

/// See [`unsafety`].
pub(super) fn tighten_file(_path: &Path) -> io::Result<Option<Unsafety>> {
    Ok(None)
}

/// See [`unsafety`].
pub(super) fn tighten_directory(_path: &Path, _known: &str) -> io::Result<Option<Unsafety>> {
    Ok(None)
}

/// See [`unsafety`].
pub(super) fn directory_unsafety(_metadata: &Metadata) -> Option<Unsafety> {
    None
}

pub(super) fn make_directory(path: &Path, with_parents: bool) -> io::Result<()> {
    DirBuilder::new().recursive(with_parents).create(path)
}

/// The identity of an open file, whose metadata these are.
pub(super) fn identity(file: &File, _metadata: &Metadata) -> io::Result<SpawnLockFileIdentity> {
    handle_identity(file)
}

fn handle_identity(file: &File) -> io::Result<SpawnLockFileIdentity> {
    let information = winapi_util::file::information(file)?;
    Ok(SpawnLockFileIdentity {
        device: information.volume_serial_number(),
        file: information.file_index(),
    })
}

/// The identity of the file, or the link, at the path.
pub(super) fn path_identity(path: &Path) -> io::Result<SpawnLockFileIdentity> {
    let file = OpenOptions::new()
        .access_mode(0)
        .share_mode(FILE_SHARE_READ_WRITE_DELETE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            // Deleted, but not gone while a handle is open.
            Some(ERROR_ACCESS_DENIED) => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
    handle_identity(&file)
}

/// Converts the operating system's error of opening the path.
pub(super) fn open_error(path: &Path, source: io::Error) -> SpawnLockError {
    const ERROR_WRITE_PROTECT: i32 = 19;
    const ERROR_FILENAME_EXCED_RANGE: i32 = 206;
    let path = path.to_path_buf();
    match source.raw_os_error() {
        Some(ERROR_WRITE_PROTECT) => SpawnLockError::ReadOnlyFilesystem { path, source },
        Some(ERROR_FILENAME_EXCED_RANGE) => SpawnLockError::NameTooLong { path, source },
        // For a long name, the error number is that of an invalid name or of a missing file.
        Some(_) if has_too_long_name(&path) => SpawnLockError::NameTooLong { path, source },
        _ => SpawnLockError::Open { path, source },
    }
}

fn has_too_long_name(path: &Path) -> bool {
    /// In UTF-16 code units, on all the file systems of Windows.
    const LONGEST_NAME: usize = 255;
    path.iter()
        .any(|name| name.encode_wide().count() > LONGEST_NAME)
}

/// Whether the file system has no locks, as against a lock that is held or broken.
pub(super) fn is_unsupported(error: &io::Error, _file: &File) -> bool {
    const ERROR_INVALID_FUNCTION: i32 = 1;
    const ERROR_NOT_SUPPORTED: i32 = 50;
    matches!(
        error.raw_os_error(),
        Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED)
    )
}

/// What matters about the file system of a directory that is refused, which none is here.
pub(super) struct FilesystemKind {
    pub(super) shared: Option<&'static str>,
    pub(super) read_only: bool,
    pub(super) has_modes: bool,
}

pub(super) fn filesystem_of(_directory: &Path) -> io::Result<FilesystemKind> {
    Ok(FilesystemKind {
        shared: None,
        read_only: false,
        has_modes: true,
    })
}

/// The error of a write to a read-only file system.
pub(super) fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

/// Not checked here: a share that has locks keeps them on its server.
pub(super) fn unsafe_filesystem(_file: &File) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// There is no limit on handles to run into.
pub(super) fn descriptor_limit() -> usize {
    usize::MAX
}

/// Appends what is read to `bytes`, as far as those have room, and returns its length.
pub(super) fn read_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    let len = bytes.len();
    bytes.resize(bytes.capacity(), 0);
    let read = file.seek_read(&mut bytes[len..], offset);
    bytes.truncate(len + *read.as_ref().unwrap_or(&0));
    read
}

pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = file.seek_write(bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
