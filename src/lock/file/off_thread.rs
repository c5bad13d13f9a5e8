//! Blocking calls about a lock file, off the runtime's threads.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use crate::lock::error::SpawnLockError;
use crate::util::{
    NotMade, off_thread as call_off_thread, off_thread_again as call_off_thread_again,
};

/// Runs a blocking call about the lock at `path` off the runtime's threads. It begins at once.
///
/// [`SpawnLockError::NoThread`] means that no thread could be started. The call may still be made once there is one, like that
/// of a future that was dropped.
pub(super) fn off_thread<V: Send + 'static>(
    path: Arc<Path>,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> impl Future<Output = Result<V, SpawnLockError>> {
    let named = Arc::clone(&path);
    made(named, call_off_thread(move || call(&path)))
}

/// Like [`off_thread`], for a call that a waiter makes again and again.
pub(super) fn off_thread_again<V: Send + 'static>(
    path: Arc<Path>,
    call: impl FnOnce(&Path) -> Result<V, SpawnLockError> + Send + 'static,
) -> impl Future<Output = Result<V, SpawnLockError>> {
    let named = Arc::clone(&path);
    made(named, call_off_thread_again(move || call(&path)))
}

async fn made<V>(
    path: Arc<Path>,
    call: impl Future<Output = Result<Result<V, SpawnLockError>, NotMade>>,
) -> Result<V, SpawnLockError> {
    let path = || path.to_path_buf();
    match call.await {
        Ok(returned) => returned,
        Err(NotMade::NoThread(source)) => Err(SpawnLockError::NoThread {
            path: path(),
            source,
        }),
        Err(NotMade::RuntimeShutDown) => Err(SpawnLockError::RuntimeShutDown { path: path() }),
    }
}
