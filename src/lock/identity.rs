//! Identity: which file a handle, or a path, is.

/// Names a file among all that exist now: the same file has the same identity, whatever its path.
///
/// Compare identities only while a handle to one of the two is open. A file system may give a deleted file's number to the
/// next file made (ext4 does so at once), so an identity that was stored says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnLockFileIdentity {
    /// The device (Unix) or the volume's serial number (Windows).
    pub device: u64,
    /// The inode (Unix) or the file index (Windows).
    pub file: u64,
}
