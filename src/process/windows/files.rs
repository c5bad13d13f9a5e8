//! Opening and replacing files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const SHARE_NOTHING: u32 = 0;
pub(super) const SHARE_READ: u32 = 1;
pub(super) const SHARE_ALL: u32 = 1 | 2 | 4;
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_SHARING_VIOLATION: i32 = 32;

/// A file that is being replaced, or that another program reads for a moment, cannot be opened or replaced meanwhile.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Options that follow no link. The standard library opens handles that no child inherits.
pub(super) fn options(share: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .share_mode(share)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Opens a file with these options. The list of its directory says who may.
pub(in crate::process) fn open(
    path: &Path,
    set: impl Fn(&mut OpenOptions) -> &mut OpenOptions,
) -> io::Result<File> {
    let mut options = options(SHARE_ALL);
    let options = set(&mut options);
    // A missing file, and a directory in its place, are no matter of a moment.
    patiently(|| options.open(path), || path.is_file())
}

pub(in crate::process) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    patiently(|| std::fs::rename(from, to), || from.is_file())
}

/// Tries again, and blocks the thread for a tenth of a second at most, while somebody else uses the file.
fn patiently<V>(
    mut attempt: impl FnMut() -> io::Result<V>,
    may_pass: impl Fn() -> bool,
) -> io::Result<V> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(error) if is_in_use(&error) && tries < TRIES && may_pass() => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_ACCESS_DENIED | ERROR_SHARING_VIOLATION)
    )
}

/// Whether a file could not be opened since another handle does not allow that.
pub(super) fn is_taken(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_SHARING_VIOLATION)
}

/// Makes a file empty that is open for appending, and for nothing else.
pub(in crate::process) fn truncate(_file: &File, path: &Path) -> io::Result<()> {
    open(path, |options| options.write(true))?.set_len(0)
}

pub(in crate::process) fn write_all_at(
    file: &File,
    mut bytes: &[u8],
    mut offset: u64,
) -> io::Result<()> {
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

/// A path that is not Unicode becomes another one.
pub(in crate::process) fn path_bytes(path: &Path) -> Vec<u8> {
    path.to_string_lossy().into_owned().into_bytes()
}

pub(in crate::process) fn path_of_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    Some(String::from_utf8(bytes).ok()?.into())
}

/// The right to change a file alone, until it is dropped: a file beside it that is open, and deleted when it is closed.
pub(in crate::process) struct Alone {
    _file: File,
}

impl Alone {
    /// Takes it; `None` if another process has it.
    pub(in crate::process) fn with(_file: &File, path: &Path) -> Option<Self> {
        let opened = options(SHARE_NOTHING)
            .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_DELETE_ON_CLOSE)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.with_extension("cutting"));
        Some(Self {
            _file: opened.ok()?,
        })
    }
}
