//! A backend in use: kept from leaving for being idle.

use std::ops::Deref;

use tokio::time::Instant;

use super::backend::Backend;
use super::error::{ProcessError, Why, off_thread_call};
use super::files::Files;
use super::identity::Condition;
use super::launcher::ProcessLauncher;
use super::look::Sight;
use super::ready::Pause;
use super::sys::UseLock;
use crate::error::{GateError, LaunchError, SharedError};
use crate::flight::{How, Launched};
use crate::key::{GateKey, key_label};

/// A backend in use: it does not leave for being idle while this lives. See [`ProcessLauncher::in_use`].
///
/// The process holds a shared lock on a file, which ends with this value or with the process. The backend can still be stopped,
/// or fail.
#[derive(Debug)]
#[must_use = "once it is dropped, the backend may leave"]
pub struct InUse {
    launched: Launched<Backend>,
    _lock: UseLock,
}

impl InUse {
    /// Returns how this caller got the backend.
    pub fn how(&self) -> How {
        self.launched.how
    }
}

impl Deref for InUse {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.launched.value
    }
}

impl<K: GateKey> ProcessLauncher<K> {
    /// Returns the backend of `key`, launched or found like by [`SpawnGate::launch`](crate::SpawnGate::launch), and keeps it from
    /// leaving for being idle as long as the returned value lives.
    ///
    /// For backends that leave when idle ([`Instance::until_leave`](super::Instance::until_leave)): a backend that is about to
    /// leave is waited for, and a new one is launched; one that is found does not leave under the call.
    ///
    /// # Errors
    ///
    /// Those of [`SpawnGate::launch`](crate::SpawnGate::launch), and [`LaunchError::Discover`] with a [`ProcessError`] as its
    /// source if the lock cannot be taken or a backend takes too long to leave.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, like [`SpawnGate::launch`](crate::SpawnGate::launch).
    pub async fn in_use(&self, key: impl Into<K>) -> Result<InUse, GateError> {
        let key = key.into();
        let lock = self.share(&key).await;
        // Held across the launch, so that there is no moment in which the backend could leave.
        let lock = lock.map_err(|error| LaunchError::Discover {
            key: key_label(&key).into(),
            source: SharedError::new(error),
        })?;
        let mut launched = self.get_or_launch(key.clone()).await?;
        // A flight that began before the lock was taken may have found one that has left since.
        if launched.how == How::Joined && launched.value.process.condition() == Condition::Gone {
            launched = self.get_or_launch(key).await?;
        }
        Ok(InUse {
            launched,
            _lock: lock,
        })
    }

    async fn share(&self, key: &K) -> Result<UseLock, ProcessError> {
        let files = Files::new(self.directory(), key);
        let deadline = Instant::now() + self.leave_limit();
        let mut pause = Pause::default();
        loop {
            let tried = {
                let files = files.clone();
                off_thread_call(move || UseLock::try_share(&files)).await?
            };
            if let Some(lock) = tried {
                return Ok(lock);
            }
            if pause.is_over(deadline).await {
                return Err(Sight::take(&files).await?.unusable(Why::Leaving));
            }
        }
    }
}
