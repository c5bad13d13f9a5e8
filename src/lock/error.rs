//! Errors of a spawn lock: one variant per cause, with the path.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::identity::SpawnLockFileIdentity;

/// Why a spawn lock could not be taken, or was lost.
///
/// [`retry_helps`](Self::retry_helps) tells the causes that pass by themselves from those that somebody must fix. The gate
/// never runs without its lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnLockError {
    /// The lock file or its directory could not be opened or created. A retry helps by itself after a shortage (of descriptors,
    /// memory or space); otherwise once the cause is fixed.
    #[error("cannot open {} for a spawn lock", named(path))]
    Open {
        /// The lock file, or its directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another holder has the lock. A retry helps once that holder releases it.
    #[error("the spawn lock {} is held by another launch", path.display())]
    AlreadyLocked {
        /// The lock file.
        path: PathBuf,
    },
    /// The operating system refused the lock for another reason than a holder. A retry helps by itself after a shortage (of
    /// memory or of the kernel's locks); otherwise once the cause is fixed.
    #[error("cannot lock the spawn lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The path no longer names the locked file: somebody deleted, renamed or replaced it. A retry helps: it opens the file
    /// that the path names then.
    #[error("the spawn lock {} was deleted or replaced under its holder", path.display())]
    DeletedOrRecreated {
        /// The lock file.
        path: PathBuf,
        /// The file that was locked.
        opened_identity: Option<SpawnLockFileIdentity>,
        /// The file that the path names now; `None` if there is none.
        current_identity: Option<SpawnLockFileIdentity>,
    },
    /// The file's identity could not be read, so it is unknown whether the path still names the locked file. A retry helps by
    /// itself after a shortage of memory; otherwise once the cause is fixed.
    #[error("cannot read the identity of the spawn lock {}", path.display())]
    Identity {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The path names something other than a regular file. A retry helps once that is removed.
    #[error("the spawn lock {} is a {found}, not a regular file", path.display())]
    NotARegularFile {
        /// The lock file.
        path: PathBuf,
        /// What the path names.
        found: FileKind,
    },
    /// The lock directory or one of its parents is not a directory, or is a dangling link. A retry helps once that is removed.
    #[error("cannot use the directory for spawn locks: {} is not a directory", path.display())]
    NotADirectory {
        /// The path that is not a directory.
        path: PathBuf,
    },
    /// The lock file or its directory belongs to another user, or others may write to it: they could replace the file or block
    /// the lock. A retry helps once owner and mode are right.
    #[error("the spawn lock is not safe: {} {problem}", path.display())]
    Unsafe {
        /// The lock file, or its directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: Unsafety,
    },
    /// The lock directory was safe when this process began to use it, and is not any more: somebody made it anew, or changed its
    /// owner or mode. A retry helps once owner and mode are right.
    #[error("the directory for spawn locks was made anew or changed while in use: {} {problem}", path.display())]
    DirectoryChanged {
        /// The lock directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: Unsafety,
    },
    /// The file system may be shared with other machines: a lock may hold on one machine only, or hang. A retry does not help;
    /// choose a local directory.
    #[error("the spawn lock {} is on a file system whose locks may not hold ({filesystem})", path.display())]
    UnsafeFilesystem {
        /// The lock file.
        path: PathBuf,
        /// The file system's common name.
        filesystem: &'static str,
    },
    /// The file system does not support file locks. A retry does not help; choose another directory.
    #[error("the file system of the spawn lock {} has no file locks", path.display())]
    LocksUnsupported {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file system is mounted read-only. A retry does not help; choose another directory.
    #[error("the spawn lock {} is on a read-only file system", path.display())]
    ReadOnlyFilesystem {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The name is longer than the file system allows. A retry does not help.
    #[error("the spawn lock's name is too long: {}", path.display())]
    NameTooLong {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The ledger in the lock file could not be read or written. A retry helps after a shortage: a full disk or a used-up quota
    /// passes once a person or another process frees space. Otherwise it helps once the cause is fixed.
    #[error("cannot read or write the ledger in the spawn lock {}", path.display())]
    Ledger {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The ledger in the lock file was written by a newer version of this crate. A retry does not help: update this
    /// program, or give it a lock directory of its own.
    #[error(
        "the ledger in the spawn lock {} has version {found}, this program knows {supported}",
        path.display()
    )]
    LedgerVersion {
        /// The lock file.
        path: PathBuf,
        /// The ledger's version.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// No thread could be started for the blocking call: a limit on processes or memory is reached. Nothing was done. A retry
    /// helps once other threads or processes have ended.
    #[error("cannot start a thread for the spawn lock {}", path.display())]
    NoThread {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// This process has as many lock files open as it may; see [`FileSpawnLock`](crate::FileSpawnLock). A retry helps once one of
    /// its launches has ended.
    #[error("cannot open {} for a spawn lock: this process already has {limit} lock files open", path.display())]
    TooManyLocks {
        /// The lock file.
        path: PathBuf,
        /// The cap on lock files open at once.
        limit: usize,
    },
    /// The lock did not answer in time: its file system or service hangs. A retry helps once it answers again.
    #[error("the spawn lock did not answer within {after:?}")]
    Unresponsive {
        /// How long the gate waited.
        after: Duration,
    },
    /// A lease of a lock service was lost: it expired or was revoked. A retry helps: it takes the lock again.
    #[error("the lease of the spawn lock {lock} was lost")]
    LeaseLost {
        /// The lock's name in the service.
        lock: String,
        /// The service's error, if it gave one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The runtime was shut down while the lock was being taken. The lock is not held. A retry helps only on another runtime.
    #[error("the runtime was shut down while the spawn lock {} was being taken", path.display())]
    RuntimeShutDown {
        /// The lock file.
        path: PathBuf,
    },
    /// A lock of another kind (a lock service, say) failed.
    #[error("the spawn lock service failed for {lock}")]
    Service {
        /// The lock's name in the service.
        lock: String,
        /// The service's error.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether a retry helps.
        retry_helps: bool,
    },
}

impl SpawnLockError {
    /// Returns whether the same call can succeed later without a fix.
    ///
    /// That is so for a shortage: what is short (descriptors, memory, threads, the kernel's locks, space on the disk or in a
    /// quota) is freed by another process, or by a person who does not know of this program.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Open { source, .. }
            | Self::Lock { source, .. }
            | Self::Identity { source, .. }
            | Self::Ledger { source, .. } => is_shortage(source),
            Self::NoThread { .. } | Self::TooManyLocks { .. } => true,
            Self::AlreadyLocked { .. }
            | Self::DeletedOrRecreated { .. }
            | Self::LeaseLost { .. }
            | Self::Unresponsive { .. } => true,
            Self::Service { retry_helps, .. } => *retry_helps,
            _ => false,
        }
    }

    /// Returns whether a held lock was lost, so that another process may hold it now.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::DeletedOrRecreated { .. } | Self::LeaseLost { .. }
        )
    }
}

impl SpawnLockError {
    /// Whether the disk is full or a quota used up: a retry helps, but only after somebody has freed space, so the gate does not
    /// wait for that.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Lock { source, .. } | Self::Ledger { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }
}

/// Whether the error says that something is short, rather than that something is wrong.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{
        Interrupted, OutOfMemory, QuotaExceeded, ResourceBusy, StorageFull, WouldBlock,
    };
    matches!(
        error.kind(),
        Interrupted | OutOfMemory | QuotaExceeded | ResourceBusy | StorageFull | WouldBlock
    ) || error.raw_os_error().is_some_and(is_shortage_number)
}

/// The shortages without a kind of their own. `ENOLCK` counts: where it means that the file system has no locks, the error is
/// [`SpawnLockError::LocksUnsupported`].
#[cfg(unix)]
fn is_shortage_number(number: i32) -> bool {
    use rustix::io::Errno;

    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOLCK]
        .map(Errno::raw_os_error)
        .contains(&number)
}

#[cfg(not(unix))]
fn is_shortage_number(number: i32) -> bool {
    const ERROR_TOO_MANY_OPEN_FILES: i32 = 4;
    const ERROR_NO_SYSTEM_RESOURCES: i32 = 1450;
    const ERROR_COMMITMENT_LIMIT: i32 = 1455;
    [
        ERROR_TOO_MANY_OPEN_FILES,
        ERROR_NO_SYSTEM_RESOURCES,
        ERROR_COMMITMENT_LIMIT,
    ]
    .contains(&number)
}

/// Names a path in a message, also one that has no characters.
fn named(path: &Path) -> impl fmt::Display {
    match path.as_os_str().is_empty() {
        true => "an empty path".to_owned(),
        false => path.display().to_string(),
    }
}

/// What a path names instead of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A symbolic link (or a reparse point on Windows); links are never followed.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character or block device.
    Device,
    /// Something else.
    Other,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::Fifo => "FIFO",
            Self::Socket => "socket",
            Self::Device => "device",
            Self::Other => "special file",
        })
    }
}

/// What to do about a mode that lets others write.
fn remedy(mode: u32) -> &'static str {
    match mode & 0o1000 {
        0 => "chmod go-w fixes that",
        // As `/tmp` has it.
        _ => "it is meant to be shared: use a directory of your own in it",
    }
}

/// What makes a lock file or its directory unsafe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unsafety {
    /// It belongs to another user.
    #[error("belongs to user {owner}, not to user {user} of this process")]
    Owner {
        /// Its owner.
        owner: u32,
        /// The effective user of this process.
        user: u32,
    },
    /// Group or others may write to it.
    #[error("has mode {mode:04o}, so others may write to it ({})", remedy(*mode))]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// Group or others may write to it, and it holds files of another user. So it is not known to be this user's alone.
    #[error(
        "has mode {mode:04o}, so others may write to it, and holds files of user {owner} (remove those, then chmod go-w)"
    )]
    Foreign {
        /// Its permission bits.
        mode: u32,
        /// The owner of such a file.
        owner: u32,
    },
    /// Group or others may use it, and its file system has no modes of its own: it ignores chmod.
    #[error(
        "has mode {mode:04o}, which chmod does not change on its file system (choose another directory, or mount that with a umask)"
    )]
    ChmodIgnored {
        /// Its permission bits.
        mode: u32,
    },
    /// Others may use it, and this process is not permitted to change that: its file system, an attribute or a sandbox forbids it.
    #[error(
        "has mode {mode:04o}, so others may use it, and this process is not permitted to change that"
    )]
    ChmodDenied {
        /// Its permission bits.
        mode: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_all_may_write_to_is_not_to_be_taken_from_them() {
        let advice = |mode| Unsafety::Writable { mode }.to_string();
        assert!(advice(0o770).ends_with("(chmod go-w fixes that)"));
        assert!(advice(0o1777).ends_with("use a directory of your own in it)"));
    }

    #[test]
    fn what_is_at_the_path_instead_of_a_file_is_named_in_words() {
        for (found, words) in [
            (FileKind::Directory, "directory"),
            (FileKind::Symlink, "symbolic link"),
            (FileKind::Fifo, "FIFO"),
            (FileKind::Socket, "socket"),
            (FileKind::Device, "device"),
            (FileKind::Other, "special file"),
        ] {
            let path = "indexer.lock".into();
            let error = SpawnLockError::NotARegularFile { path, found };
            assert_eq!(
                error.to_string(),
                format!("the spawn lock indexer.lock is a {words}, not a regular file")
            );
        }
    }
}
