//! The system calls of the spawn lock on Unix.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::lock::error::{FileKind, SpawnLockError, Unsafety};
use crate::lock::identity::SpawnLockFileIdentity;

/// Follows no link, does not hang on a FIFO or device, and takes no controlling terminal.
const SAFE_OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Opens the lock file, and creates it if it does not exist. The standard library adds close-on-exec.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(SAFE_OPEN.bits() as i32)
        .open(path)
}

/// Opens an existing lock file for writing.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(SAFE_OPEN.bits() as i32)
        .open(path)
}

/// Opens an existing lock file read-only.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(SAFE_OPEN.bits() as i32)
        .open(path)
}

/// Unlocks before the file is closed: a duplicate of the descriptor (in a child between fork and exec) would keep the lock
/// after the close.
pub(super) fn unlock(file: &File) {
    // If that fails, only the close can release it.
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

pub(super) fn kind(metadata: &Metadata) -> Option<FileKind> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return None;
    }
    Some(if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else if kind.is_fifo() {
        FileKind::Fifo
    } else if kind.is_socket() {
        FileKind::Socket
    } else if kind.is_char_device() || kind.is_block_device() {
        FileKind::Device
    } else {
        FileKind::Other
    })
}

/// Checks that nobody but this user can write to the file.
pub(super) fn unsafety(metadata: &Metadata) -> Option<Unsafety> {
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        return Some(Unsafety::Owner { owner, user });
    }
    writable_by_others(metadata)
}

/// Removes the read permission of others: a file that they can open, they can lock.
pub(super) fn keep_private(file: &File, metadata: &Metadata) -> io::Result<()> {
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(0o600))
}

/// Checks that nobody but this user (or root) can replace files in the directory.
pub(super) fn directory_unsafety(metadata: &Metadata) -> Option<Unsafety> {
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user && owner != 0 {
        return Some(Unsafety::Owner { owner, user });
    }
    writable_by_others(metadata)
}

fn writable_by_others(metadata: &Metadata) -> Option<Unsafety> {
    let mode = metadata.mode() & 0o7777;
    (mode & 0o022 != 0).then_some(Unsafety::Writable { mode })
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The identity of an open file, whose metadata these are.
pub(super) fn identity(_file: &File, metadata: &Metadata) -> io::Result<SpawnLockFileIdentity> {
    Ok(identity_of(metadata))
}

/// The identity of the file, or the link, at the path.
pub(super) fn path_identity(path: &Path) -> io::Result<SpawnLockFileIdentity> {
    Ok(identity_of(&path.symlink_metadata()?))
}

fn identity_of(metadata: &Metadata) -> SpawnLockFileIdentity {
    SpawnLockFileIdentity {
        device: metadata.dev(),
        file: metadata.ino(),
    }
}

/// Converts the operating system's error of opening the path.
pub(super) fn open_error(path: &Path, source: io::Error) -> SpawnLockError {
    let path = path.to_path_buf();
    match Errno::from_io_error(&source) {
        Some(Errno::NAMETOOLONG) => SpawnLockError::NameTooLong { path, source },
        Some(Errno::ROFS) => SpawnLockError::ReadOnlyFilesystem { path, source },
        _ => SpawnLockError::Open { path, source },
    }
}

/// Whether the file system has no locks, as against a lock that is held or broken.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK)
    )
}

/// The name of the file system if other machines may share it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn unsafe_filesystem(file: &File) -> io::Result<Option<&'static str>> {
    let found = rustix::fs::fstatfs(file)?.f_type;
    // The type is a 32-bit number in a word whose size and sign differ by platform.
    Ok(unsafe_filesystem_name(found as u32))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn unsafe_filesystem(_file: &File) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// Numbers from the Linux sources, `include/uapi/linux/magic.h` and the file systems' own headers.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn unsafe_filesystem_name(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "nfs",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x0000_517b => "smb",
        0x0000_564c => "ncp",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x0102_1997 => "9p",
        0x00c3_6400 => "ceph",
        0x0bd0_0bd0 => "lustre",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "fhgfs",
        0x786f_4256 => "vboxsf",
        0xbacb_acbc => "vmhgfs",
        // Unknown what is behind it: a local disk or another machine.
        0x6573_5546 => "fuse",
        _ => return None,
    })
}

/// How many descriptors this process may have, as things are now.
pub(super) fn descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit};

    // No limit is as good as a large one.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_other_machines_may_share_are_told_from_local_ones() {
        const EXT4: u32 = 0xef53;
        const TMPFS: u32 = 0x0102_1994;
        const OVERLAY: u32 = 0x794c_7630;
        for local in [EXT4, TMPFS, OVERLAY] {
            assert_eq!(unsafe_filesystem_name(local), None);
        }
        assert_eq!(unsafe_filesystem_name(0x6969), Some("nfs"));
        assert_eq!(unsafe_filesystem_name(0xff53_4d42), Some("cifs"));
    }
}
