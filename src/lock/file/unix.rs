//! The system calls of the spawn lock on Unix.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::lock::error::{FileKind, SpawnLockError, Unsafety};
use crate::lock::identity::SpawnLockFileIdentity;

/// Follows no link, does not hang on a FIFO or device, and takes no controlling terminal.
const SAFE_OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Opens the lock file, and creates it if it does not exist.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    open_safely(options.mode(0o600), path)
}

/// Opens an existing lock file for writing.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    open_safely(OpenOptions::new().read(true).write(true), path)
}

/// Opens an existing lock file read-only.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    open_safely(OpenOptions::new().read(true), path)
}

/// Opens a file without following a link, without blocking, and without noting the time of reads. The standard library adds
/// close-on-exec.
fn open_safely(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Otherwise the disk is written to for each record that is read. Only the owner may ask for this.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    match options
        .custom_flags((SAFE_OPEN | OFlags::NOATIME).bits() as i32)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    options.custom_flags(SAFE_OPEN.bits() as i32).open(path)
}

/// A held lock. It belongs to the open file, so there is nothing to keep.
#[derive(Debug)]
pub(super) struct Lock;

impl Lock {
    /// Locks the file for this descriptor and its copies alone, if it is not locked.
    pub(super) fn take(file: &File) -> io::Result<Self> {
        // Forgetting the borrow keeps the lock.
        fd_lock::RwLock::new(file)
            .try_write()
            .map(std::mem::forget)?;
        Ok(Self)
    }

    /// Unlocks before the file is closed: a duplicate of the descriptor (in a child between fork and exec) would keep the lock
    /// after the close.
    pub(super) fn release(&self, file: &File) {
        // If that fails, only the close can release it.
        let _ = rustix::fs::flock(file, FlockOperation::Unlock);
    }
}

/// Fails with `WouldBlock` if the file is locked. If not, takes a shared lock for a moment.
pub(super) fn lock_shared_and_release(file: &File) -> io::Result<()> {
    fd_lock::RwLock::new(file).try_read().map(drop)
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
/// Returns what is wrong if that cannot be done.
pub(super) fn keep_private(file: &File, metadata: &Metadata) -> io::Result<Option<Unsafety>> {
    if metadata.mode() & 0o077 == 0 {
        return Ok(None);
    }
    set_mode(file, metadata, 0o600)
}

/// Takes permissions away, and returns why that was not possible.
fn set_mode(file: &File, metadata: &Metadata, wanted: u32) -> io::Result<Option<Unsafety>> {
    let mode = metadata.mode() & 0o7777;
    match file.set_permissions(Permissions::from_mode(wanted)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Some(Unsafety::ChmodDenied { mode }));
        }
        changed => changed?,
    }
    let mode = file.metadata()?.mode() & 0o7777;
    Ok((mode & !wanted != 0).then_some(Unsafety::ChmodIgnored { mode }))
}

/// Makes a file private that only the group can write to: something gave this user's files to a group (an `fsGroup`, say).
/// Returns what is wrong if that is unsafe.
pub(super) fn tighten_file(path: &Path) -> io::Result<Option<Unsafety>> {
    let file = open_existing(path)?;
    let metadata = file.metadata()?;
    match unsafety(&metadata) {
        // A file with another name may be somebody's who knows it by that name.
        Some(Unsafety::Writable { mode }) if mode & 0o002 == 0 && metadata.nlink() == 1 => {
            set_mode(&file, &metadata, 0o600)
        }
        problem => Ok(problem),
    }
}

/// Takes the group's right to write from a directory that is this user's, in which `known` and all else is this user's, too.
/// Returns what is wrong if that is unsafe.
pub(super) fn tighten_directory(path: &Path, known: &str) -> io::Result<Option<Unsafety>> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags((SAFE_OPEN | OFlags::DIRECTORY).bits() as i32)
        .open(path)?;
    let metadata = directory.metadata()?;
    let (problem, user) = (directory_unsafety(&metadata), metadata.uid());
    let Some(Unsafety::Writable { mode }) = problem else {
        return Ok(problem);
    };
    // What everybody may write to, like /tmp, was meant so.
    let is_of_group = mode & 0o1002 == 0;
    let is_ours = user == rustix::process::geteuid().as_raw();
    if !is_of_group || !is_ours {
        return Ok(problem);
    }
    let mut is_known = false;
    for entry in path.read_dir()? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let owner = metadata.uid();
        if owner != user {
            return Ok(Some(Unsafety::Foreign { mode, owner }));
        }
        is_known |= entry.file_name() == known && metadata.is_file();
    }
    if !is_known {
        return Ok(problem);
    }
    set_mode(&directory, &metadata, mode & !0o022)
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

pub(super) fn make_directory(path: &Path, with_parents: bool) -> io::Result<()> {
    DirBuilder::new()
        .recursive(with_parents)
        .mode(0o700)
        .create(path)
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

/// Whether the file system has no locks, as against a lock that is held, or locks that are short.
pub(super) fn is_unsupported(error: &io::Error, file: &File) -> bool {
    means_no_locks(error, || is_local(file))
}

/// `ENOLCK` has two meanings. A local file system locks within the kernel, which has locks, so it is short of memory for one
/// more. A file system of another machine asks that one, or its lock daemon, which is not there.
fn means_no_locks(error: &io::Error, is_local: impl FnOnce() -> Option<bool>) -> bool {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS | Errno::OPNOTSUPP) => true,
        // If it is unknown where the file system is, waiting may be in vain.
        Some(Errno::NOLCK) => is_local() != Some(true),
        _ => false,
    }
}

/// Whether the file's file system is this machine's alone; `None` if that cannot be told.
fn is_local(file: &File) -> Option<bool> {
    if cfg!(not(any(target_os = "linux", target_os = "android"))) {
        return None;
    }
    Some(unsafe_filesystem(file).ok()?.is_none())
}

/// What matters about the file system of a directory that is refused.
pub(super) struct FilesystemKind {
    /// Its name, if other machines may share it.
    pub(super) shared: Option<&'static str>,
    pub(super) read_only: bool,
    /// Whether chmod has an effect, as far as is known.
    pub(super) has_modes: bool,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn filesystem_of(directory: &Path) -> io::Result<FilesystemKind> {
    let magic = rustix::fs::statfs(directory)?.f_type as u32;
    let flags = rustix::fs::statvfs(directory)?.f_flag;
    Ok(FilesystemKind {
        shared: unsafe_filesystem_name(magic),
        read_only: flags.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        has_modes: has_modes(magic),
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn filesystem_of(_directory: &Path) -> io::Result<FilesystemKind> {
    Ok(FilesystemKind {
        shared: None,
        read_only: false,
        has_modes: true,
    })
}

/// The error of a write to a read-only file system.
pub(super) fn read_only() -> io::Error {
    Errno::ROFS.into()
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

/// Whether the file system keeps modes. Of those that do not, the mount sets one mode for all files.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn has_modes(magic: u32) -> bool {
    const MSDOS: u32 = 0x4d44;
    const EXFAT: u32 = 0x2011_bab0;
    const NTFS: u32 = 0x5346_544e;
    const NTFS3: u32 = 0x7366_746e;
    !matches!(magic, MSDOS | EXFAT | NTFS | NTFS3)
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

/// Appends what is read to `bytes`, as far as those have room, and returns its length.
pub(super) fn read_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    // The standard library would need the room filled with zeros first.
    Ok(rustix::io::pread(file, spare_capacity(bytes), offset)?)
}

pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_short_on_a_local_file_system_and_missing_on_others() {
        let is_missing = |is_local| means_no_locks(&Errno::NOLCK.into(), || is_local);
        assert!(!is_missing(Some(true)));
        assert!(is_missing(Some(false)));
        assert!(is_missing(None));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(is_local(&file), Some(true));
        assert!(!is_unsupported(&Errno::NOLCK.into(), &file));
        assert!(is_unsupported(&Errno::NOSYS.into(), &file));
        let short = SpawnLockError::Lock {
            path: "indexer.lock".into(),
            source: Errno::NOLCK.into(),
        };
        assert!(short.retry_helps());
    }

    #[test]
    fn file_systems_that_other_machines_may_share_are_told_from_local_ones() {
        const EXT4: u32 = 0xef53;
        const TMPFS: u32 = 0x0102_1994;
        const OVERLAY: u32 = 0x794c_7630;
        for local in [EXT4, TMPFS, OVERLAY] {
            assert_eq!(unsafe_filesystem_name(local), None);
        }
        for (magic, name) in [
            (0x6969, "nfs"),
            (0xff53_4d42, "cifs"),
            (0xfe53_4d42, "smb2"),
            (0x517b, "smb"),
            (0x564c, "ncp"),
            (0x5346_414f, "afs"),
            (0x6b41_4653, "afs"),
            (0x7375_7245, "coda"),
            (0x0102_1997, "9p"),
            (0x00c3_6400, "ceph"),
            (0x0bd0_0bd0, "lustre"),
            (0x0116_1970, "gfs2"),
            (0x7461_636f, "ocfs2"),
            (0x4750_4653, "gpfs"),
            (0x1983_0326, "fhgfs"),
            (0x786f_4256, "vboxsf"),
            (0xbacb_acbc, "vmhgfs"),
            (0x6573_5546, "fuse"),
        ] {
            assert_eq!(unsafe_filesystem_name(magic), Some(name));
        }
        // These are local, and have one mode for all files.
        for without_modes in [0x4d44, 0x2011_bab0, 0x5346_544e, 0x7366_746e] {
            assert!(!has_modes(without_modes));
            assert_eq!(unsafe_filesystem_name(without_modes), None);
        }
        assert!(has_modes(EXT4));
    }

    #[test]
    fn a_mode_that_may_not_be_changed_is_told_from_a_handle_that_is_broken() {
        let denied = File::open("/proc/self/status").unwrap();
        let metadata = denied.metadata().unwrap();
        let mode = metadata.mode() & 0o777;
        assert_eq!(
            set_mode(&denied, &metadata, 0o400).unwrap(),
            Some(Unsafety::ChmodDenied { mode })
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let broken = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::PATH.bits() as i32)
            .open(file.path())
            .unwrap();
        let metadata = broken.metadata().unwrap();
        // The C library musl takes the way through /proc for such a handle.
        if cfg!(not(target_env = "musl")) {
            assert!(set_mode(&broken, &metadata, 0o400).is_err());
        }
    }

    #[test]
    fn only_a_directory_that_holds_its_probe_is_taken_from_a_group() {
        const KNOWN: &str = "probe.lock";
        let with = |make: &dyn Fn(&Path)| {
            let directory = tempfile::tempdir().unwrap();
            make(directory.path());
            std::fs::set_permissions(directory.path(), Permissions::from_mode(0o770)).unwrap();
            let problem = tighten_directory(directory.path(), KNOWN).unwrap();
            let mode = directory.path().metadata().unwrap().mode() & 0o777;
            match problem {
                None => assert_eq!(mode, 0o750),
                Some(Unsafety::Writable { .. }) => assert_eq!(mode, 0o770),
                other => panic!("{other:?}"),
            }
            problem.is_none()
        };
        let file = |name| move |path: &Path| std::fs::write(path.join(name), "").unwrap();
        assert!(with(&file(KNOWN)));
        assert!(!with(&|_| ()));
        assert!(!with(&file("other")));
        assert!(!with(&|path| std::fs::create_dir(path.join(KNOWN)).unwrap()));
    }

    #[test]
    fn a_link_to_a_directory_is_not_followed_to_take_that_from_a_group() {
        let outer = tempfile::tempdir().unwrap();
        let [directory, link] = ["locks", "link"].map(|name| outer.path().join(name));
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(tighten_directory(&link, "probe.lock").is_err());
    }
}
