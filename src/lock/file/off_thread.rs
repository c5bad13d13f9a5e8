//! Blocking calls about a lock file, off the runtime's threads.

use std::path::{Path, PathBuf};

use crate::lock::error::SpawnLockError;
use crate::util::{
    NotMade, off_thread as call_off_thread, off_thread_again as call_off_thread_again,
};

/// Runs a blocking call about the lock at `path` off the runtime's threads.
///
/// [`SpawnLockError::NoThread`] means that no thread could be started. The call may still be made once there is one, like that
/// of a future that was dropped.
pub(super) async fn off_thread<V: Send + 'static>(
    path: PathBuf,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> Result<V, SpawnLockError> {
    let named = path.clone();
    made(named, call_off_thread(move || call(&path)).await)
}

/// Like [`off_thread`], for a call that a waiter makes again and again.
pub(super) async fn off_thread_again<V: Send + 'static>(
    path: PathBuf,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> Result<V, SpawnLockError> {
    let named = path.clone();
    made(named, call_off_thread_again(move || call(&path)).await)
}

fn made<V>(
    path: PathBuf,
    returned: Result<Result<V, SpawnLockError>, NotMade>,
) -> Result<V, SpawnLockError> {
    match returned {
        Ok(returned) => returned,
        Err(NotMade::NoThread(source)) => Err(SpawnLockError::NoThread { path, source }),
        Err(NotMade::RuntimeShutDown) => Err(SpawnLockError::RuntimeShutDown { path }),
    }
}
