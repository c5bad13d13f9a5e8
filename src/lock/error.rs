//! What can go wrong with a spawn lock, each case by name and with its path.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::identity::SpawnLockFileIdentity;

/// Why a spawn lock could not be taken, or was lost.
///
/// [`retry_helps`](Self::retry_helps) tells the cases that pass by themselves from those that somebody must mend. No case
/// ever falls back to running without the lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnLockError {
    /// The lock file or its directory could not be opened or made. A retry helps once the cause is mended.
    #[error("cannot open {} for a spawn lock", path.display())]
    Open {
        /// The lock file, or the directory it stands in.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another holder has the lock. A retry helps when that one is done.
    #[error("the spawn lock {} is held by another launch", path.display())]
    AlreadyLocked {
        /// The lock file.
        path: PathBuf,
    },
    /// The operating system refused the lock for another reason than a holder.
    #[error("cannot lock the spawn lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path no longer names the file that was locked: somebody deleted, renamed or replaced it. A retry helps: it
    /// opens the file that is there now.
    #[error("the spawn lock {} was deleted or replaced under its holder", path.display())]
    DeletedOrRecreated {
        /// The lock file.
        path: PathBuf,
        /// The file that was locked.
        opened_identity: Option<SpawnLockFileIdentity>,
        /// The file that the path names now; `None` if there is none.
        current_identity: Option<SpawnLockFileIdentity>,
    },
    /// The file's identity could not be read, so it is unknown whether the lock is the one at its path.
    #[error("cannot tell which file the spawn lock {} is", path.display())]
    Identity {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something else than a regular file stands at the path. A retry helps once it is gone.
    #[error("the spawn lock {} is a {found}, not a regular file", path.display())]
    NotARegularFile {
        /// The lock file.
        path: PathBuf,
        /// What stands there.
        found: FileKind,
    },
    /// Something else than a directory stands where the lock directory is to be, or where that is to stand; or a link that leads
    /// nowhere. A retry helps once it is gone.
    #[error("no spawn lock can be kept there: {} is not a directory", path.display())]
    NotADirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// The lock file or its directory belongs to another user, or others may write to it: they could free the lock or
    /// swap the file. A retry helps once owner and mode are right.
    #[error("the spawn lock is not safe: {} {problem}", path.display())]
    Unsafe {
        /// The lock file, or the directory it stands in.
        path: PathBuf,
        /// What is wrong with it.
        problem: Unsafety,
    },
    /// The file system may be shared with other machines: an exclusive lock may be kept by one machine alone, or hang. A retry
    /// does not help; choose a local directory.
    #[error("the spawn lock {} is on a file system whose locks may not hold ({filesystem})", path.display())]
    UnsafeFilesystem {
        /// The lock file.
        path: PathBuf,
        /// The file system's common name.
        filesystem: &'static str,
    },
    /// The file system has no such locks. A retry does not help; choose another directory.
    #[error("the file system of the spawn lock {} has no file locks", path.display())]
    LocksUnsupported {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file system is mounted read-only. A retry does not help; choose another directory.
    #[error("the spawn lock {} is on a read-only file system", path.display())]
    ReadOnlyFilesystem {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The name is longer than the file system takes. A retry does not help.
    #[error("the spawn lock's name is too long: {}", path.display())]
    NameTooLong {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The record in the lock file could not be read or written. A retry helps once the cause (a full disk, say) is mended.
    #[error("cannot read or write the record in the spawn lock {}", path.display())]
    Ledger {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The record in the lock file was written by a newer version of this crate. A retry does not help: update this
    /// program, or give it a lock directory of its own.
    #[error(
        "the record in the spawn lock {} has version {found}, this program knows {supported}",
        path.display()
    )]
    LedgerVersion {
        /// The lock file.
        path: PathBuf,
        /// The record's version.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// The lock did not answer in time; its file system or service hangs. A retry helps once it answers again.
    #[error("the spawn lock did not answer within {after:?}")]
    Unresponsive {
        /// How long it was waited for.
        after: Duration,
    },
    /// A lease of a lock service was lost: it ran out, or was revoked. A retry helps: it takes the lock anew.
    #[error("the lease of the spawn lock {lock} was lost")]
    LeaseLost {
        /// The lock's name there.
        lock: String,
        /// What the service said, if it said anything.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The runtime was shut down while the lock was being taken. The lock is not held.
    #[error("the runtime was shut down while the spawn lock {} was being taken", path.display())]
    RuntimeShutDown {
        /// The lock file.
        path: PathBuf,
    },
    /// A lock of another kind (a lock service, say) failed.
    #[error("the spawn lock service failed for {lock}")]
    Service {
        /// The lock's name there.
        lock: String,
        /// What the service said.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether a retry helps.
        retry_helps: bool,
    },
}

impl SpawnLockError {
    /// Whether the same call can succeed later without anybody mending anything.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::AlreadyLocked { .. }
            | Self::DeletedOrRecreated { .. }
            | Self::LeaseLost { .. }
            | Self::Unresponsive { .. } => true,
            Self::Service { retry_helps, .. } => *retry_helps,
            _ => false,
        }
    }

    /// Whether this says that a lock which was held is held no longer, so that another process can hold it by now.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::DeletedOrRecreated { .. } | Self::LeaseLost { .. }
        )
    }
}

/// What stands at a path where a regular file was wanted.
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

/// What makes a lock file or its directory unsafe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unsafety {
    /// It belongs to another user.
    #[error("belongs to user {owner}, not to user {user} who runs this")]
    Owner {
        /// Its owner.
        owner: u32,
        /// The effective user of this process.
        user: u32,
    },
    /// Group or others may write to it.
    #[error("has mode {mode:04o}, so others may write to it (chmod go-w mends that)")]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
}
