//! Blocking calls about a lock file, off the runtime's threads.

use std::path::{Path, PathBuf};

use crate::lock::error::SpawnLockError;
use crate::util::{NotMade, off_thread as call_off_thread};

/// Runs a blocking call about the lock at `path` off the runtime's threads.
///
/// [`SpawnLockError::NoThread`] means that no thread could be started. The call may still be made once there is one, like that
/// of a future that was dropped.
pub(super) async fn off_thread<V: Send + 'static>(
    path: PathBuf,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> Result<V, SpawnLockError> {
    let named = path.clone();
    match call_off_thread(move || call(&path)).await {
        Ok(returned) => returned,
        Err(NotMade::NoThread(source)) => Err(SpawnLockError::NoThread {
            path: named,
            source,
        }),
        Err(NotMade::RuntimeShutDown) => Err(SpawnLockError::RuntimeShutDown { path: named }),
    }
}
