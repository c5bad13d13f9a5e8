//! The errors that launchers return, and how callers share them.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A launcher's error that says: nothing was started. The gate takes the charge of the attempt back, and the flight ends with
/// [`LaunchError::NotStarted`](super::LaunchError::NotStarted).
///
/// Return it for what is not the backend's fault: a shortage of processes, descriptors, memory or space, or a program that was
/// replaced on disk. Nothing limits how often such a launch is tried, so return it only for what fails at once.
///
/// # Examples
///
/// ```
/// use spawn_gate::error::{GateError, LaunchError, NotStarted};
/// use spawn_gate::{InMemorySpawnLock, SpawnGate, launcher_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// let indexer = launcher_fn(
///     |_key| async { Ok(None) },
///     |_launch| async { Err(NotStarted::new("no more processes", true).into()) },
/// );
/// let error = gate.launch("indexer", indexer).await.unwrap_err();
/// assert!(matches!(error, GateError::Launch(LaunchError::NotStarted { .. })));
/// assert!(error.retry_helps());
/// assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 0);
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
#[non_exhaustive]
pub struct NotStarted {
    /// Why nothing was started.
    pub source: BoxError,
    /// Whether the same launch can succeed later without a fix.
    pub retry_helps: bool,
}

impl NotStarted {
    /// Creates the error from its cause, or a message.
    pub fn new(source: impl Into<BoxError>, retry_helps: bool) -> Self {
        Self {
            source: source.into(),
            retry_helps,
        }
    }
}

/// The error of a launcher: any error, or a message.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error that several callers share. It prints as the launcher's error and dereferences to it.
///
/// ```
/// use spawn_gate::error::SharedError;
///
/// let shared = SharedError::new(std::io::Error::other("no such program"));
/// assert_eq!(shared.to_string(), "no such program");
/// assert!(shared.downcast_ref::<std::io::Error>().is_some());
/// ```
#[derive(Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

impl SharedError {
    /// Wraps an error, or a message.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl Deref for SharedError {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
