//! The identity of a lock file: which file a handle or a path refers to.

/// Device and file number of a file: the same file has the same identity, whatever its path.
///
/// Compare identities only while a handle to one of the two files is open. A file system may reuse a deleted file's number for
/// the next new file (ext4 does so at once), so do not store an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnLockFileIdentity {
    /// The device (Unix) or the volume's serial number (Windows).
    pub device: u64,
    /// The inode (Unix) or the file index (Windows).
    pub file: u64,
}
