//! Lock files: made, taken as a gate takes them, and read while they are locked.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use spawn_gate::admin::{LockHolder, inspect_spawn_lock};
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{FileSpawnLock, GateKey, SpawnLockError};
use tempfile::TempDir;

/// File locks in a directory of the test's own.
pub(crate) fn locks() -> (TempDir, FileSpawnLock) {
    let directory = tempfile::tempdir().unwrap();
    let locks = FileSpawnLock::new(directory.path()).unwrap();
    (directory, locks)
}

/// Takes the lock and writes into its ledger who holds it, as a gate does.
pub(crate) async fn take(
    locks: &FileSpawnLock,
    key: &'static str,
) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
    let update = LedgerUpdate::new(|_, launch| {
        let pid = std::process::id();
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let (seconds, millis) = (since.as_secs(), since.subsec_millis());
        let text = format!("launch {launch}\nholder {pid} {seconds}.{millis:03}\n");
        Some(text.parse().unwrap())
    });
    try_with(locks, &key, update).await
}

/// Tries once to take the lock, and changes nothing in its ledger.
pub(crate) async fn try_acquire<K: GateKey>(
    locks: &FileSpawnLock,
    key: &K,
) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
    try_with(locks, key, LedgerUpdate::none()).await
}

async fn try_with<K: GateKey>(
    locks: &FileSpawnLock,
    key: &K,
    update: LedgerUpdate,
) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
    let request = LockRequest::new(update, tokio::time::Instant::now());
    match locks.try_acquire(key, request).await? {
        TryAcquire::Acquired(lease) => Ok(lease),
        TryAcquire::Held { lock, .. } => Err(SpawnLockError::AlreadyLocked { path: lock }),
        TryAcquire::Answered(_) => unreachable!("nobody waits"),
    }
}

/// Who holds the lock at `path`, if somebody does and is written there.
pub(crate) fn read_lock_holder(
    path: impl AsRef<Path>,
) -> Result<Option<LockHolder>, SpawnLockError> {
    Ok(inspect_spawn_lock(path)?.holder())
}

/// What the file holds, but for its first byte, which reads as zero: that one is locked, and on Windows nobody else can read
/// what is locked.
pub(crate) fn read_held(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    let mut content = vec![0];
    file.read_to_end(&mut content).unwrap();
    content
}

/// Writes a file that only this user can read and write.
pub(crate) fn write_private(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    make_private(path);
}

#[cfg(unix)]
pub(crate) fn make_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[cfg(not(unix))]
pub(crate) fn make_private(_path: &Path) {}
