//! The user's side of a launch: the trait, and what a request for one returns.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;

use crate::key::GateKey;
use crate::permit::LaunchPermit;

/// Knows how to find, and how to start, the backend of a key. Implement it with `#[async_trait]`, which this crate re-exports;
/// without it the compiler says that lifetimes do not match.
///
/// # Examples
///
/// A backend at a fixed port. (That whoever answers there is the backend is taken for granted; `examples/cli_daemon` in the
/// repository makes sure of it.)
///
/// ```
/// use spawn_gate::{BackendLauncher, BoxError, LaunchPermit, async_trait};
/// use tokio::net::TcpStream;
/// use tokio::process::Command;
///
/// struct Indexer {
///     port: u16,
/// }
///
/// #[async_trait]
/// impl BackendLauncher<String, u16> for Indexer {
///     async fn discover(&self, _key: &String) -> Result<Option<u16>, BoxError> {
///         match TcpStream::connect(("127.0.0.1", self.port)).await {
///             Ok(_) => Ok(Some(self.port)),
///             Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(None),
///             // It cannot be told, so nothing must be launched.
///             Err(error) => Err(error.into()),
///         }
///     }
///
///     async fn launch(&self, permit: &LaunchPermit<String, u16>) -> Result<u16, BoxError> {
///         let mut child = Command::new("indexer")
///             .arg(format!("--port={}", self.port))
///             .env("LAUNCH_NUMBER", permit.fencing_token().to_string())
///             .spawn()?;
///         // Return once it is ready, not once it is started: that is what everybody is waiting for.
///         let ready = async {
///             while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
///                 tokio::time::sleep(std::time::Duration::from_millis(20)).await;
///             }
///         };
///         tokio::select! {
///             () = ready => Ok(self.port),
///             // Nobody has to wait for one that is dead.
///             status = child.wait() => Err(format!("it ended before it was ready: {}", status?).into()),
///         }
///     }
/// }
/// ```
#[async_trait]
pub trait BackendLauncher<K: GateKey, T>: Send + Sync + 'static {
    /// Looks for a backend of `key` that is running already, perhaps one that another process launched.
    ///
    /// Called with the spawn lock held, right before [`launch`](Self::launch). What it finds is shared like a launch's
    /// value, and nothing is charged. With a lock that processes share, this is how a process joins what another one launched;
    /// `Ok(None)` without looking means that each process launches its own, one after the other.
    ///
    /// # Cancel safety
    ///
    /// Its future is dropped when the gate's discover timeout is over. A panic is caught and shared.
    ///
    /// # Errors
    ///
    /// An error ends the flight as [`LaunchError::Discover`](crate::LaunchError::Discover): a launch on a guess could be a
    /// second one.
    async fn discover(&self, key: &K) -> Result<Option<T>, BoxError>;

    /// Starts the backend and returns once it is ready to serve.
    ///
    /// It runs in a task of its own. It must not ask the same gate for the same key: that request would follow the flight
    /// which waits for it.
    ///
    /// # Cancel safety
    ///
    /// No caller's cancellation ends it. When it takes longer than the gate's launch timeout, its future is dropped; what it
    /// had started by then is for it to end (with `kill_on_drop`, say). A panic is caught and shared.
    ///
    /// # Errors
    ///
    /// An error ends the flight as [`LaunchError::Failed`](crate::LaunchError::Failed); all callers share it.
    async fn launch(&self, permit: &LaunchPermit<K, T>) -> Result<T, BoxError>;

    /// Disposes of a backend that was launched and that nobody will hear of, because the spawn lock was lost meanwhile: another
    /// process may have launched one too. Drops `value` unless implemented. Not called for permits from
    /// [`SpawnGate::acquire`](crate::SpawnGate::acquire), whose holders hear it from
    /// [`LaunchPermit::succeed`](crate::LaunchPermit::succeed).
    ///
    /// # Cancel safety
    ///
    /// It runs in a task of its own, which [`SpawnGate::close`](crate::SpawnGate::close) does not wait for. Its future is
    /// dropped if it takes longer than the launch timeout. A panic is caught and ignored.
    async fn discard(&self, key: &K, value: T)
    where
        T: Send + 'async_trait,
    {
        let _ = (key, value);
    }
}

#[async_trait]
impl<K: GateKey, T: Send + Sync + 'static, L: BackendLauncher<K, T> + ?Sized> BackendLauncher<K, T>
    for Arc<L>
{
    async fn discover(&self, key: &K) -> Result<Option<T>, BoxError> {
        (**self).discover(key).await
    }

    async fn launch(&self, permit: &LaunchPermit<K, T>) -> Result<T, BoxError> {
        (**self).launch(permit).await
    }

    async fn discard(&self, key: &K, value: T) {
        (**self).discard(key, value).await;
    }
}

/// What a launcher fails with: any error, or a message.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What [`SpawnGate::launch`](crate::SpawnGate::launch) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched<T> {
    /// What the launcher returned: an endpoint, a handle.
    pub value: T,
    /// How this caller came by it.
    pub how: How,
}

/// How a caller came by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum How {
    /// This caller's request launched it.
    Led,
    /// This caller joined another caller's flight.
    Joined,
    /// This caller's request found it running.
    Discovered,
}
