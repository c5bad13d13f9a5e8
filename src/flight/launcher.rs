//! The user's side of a launch: the trait, and what a request for one returns.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::permit::LaunchPermit;
use crate::error::BoxError;
use crate::key::GateKey;

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
    /// Called first without the spawn lock, so other processes may be looking, or launching, at the same time; and again with the
    /// lock held, right before [`launch`](Self::launch), unless nobody has held the lock since. So it must not change anything.
    /// What it finds is shared like a launch's value, and nothing is charged. With a lock that processes share, this is how a
    /// process joins what another one launched; `Ok(None)` without looking means that each process launches its own, one after
    /// the other.
    ///
    /// A backend that is found must be ready to serve: wait here for one that is starting.
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

/// What [`SpawnGate::launch`](crate::SpawnGate::launch) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Launched<T> {
    /// What the launcher returned: an endpoint, a handle.
    pub value: T,
    /// How this caller came by it.
    pub how: How,
}

/// How a caller came by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum How {
    /// This caller's request launched it.
    Led,
    /// This caller joined another caller's flight.
    Joined,
    /// This caller's request found it running.
    Discovered,
}

/// Makes a launcher of two functions: one that looks for a running backend, and one that launches.
///
/// Both are called as the methods of [`BackendLauncher`], which say what is asked of them. `look` gets the key, `launch` gets a
/// [`Launch`]. There is no launcher without a look: each process would start a backend of its own.
///
/// # Examples
///
/// ```
/// use spawn_gate::{InMemorySpawnLock, SpawnGate, launcher_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), spawn_gate::GateError> {
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// let indexer = launcher_fn(
///     |_key| async { Ok(None) }, // is one running already?
///     |launch| async move {
///         println!("attempt {} to launch {}", launch.attempt_number, launch.key);
///         Ok(7201)
///     },
/// );
/// assert_eq!(gate.launch("indexer", indexer).await?.value, 7201);
/// # Ok(())
/// # }
/// ```
pub fn launcher_fn<K, T, L, LookFuture, F, LaunchFuture>(look: L, launch: F) -> LauncherFn<L, F>
where
    K: GateKey,
    L: Fn(K) -> LookFuture + Send + Sync + 'static,
    LookFuture: Future<Output = Result<Option<T>, BoxError>> + Send + 'static,
    F: Fn(Launch<K>) -> LaunchFuture + Send + Sync + 'static,
    LaunchFuture: Future<Output = Result<T, BoxError>> + Send + 'static,
{
    LauncherFn { look, launch }
}

/// A launcher made by [`launcher_fn`].
#[derive(Clone, Copy)]
pub struct LauncherFn<L, F> {
    look: L,
    launch: F,
}

impl<L, F> fmt::Debug for LauncherFn<L, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LauncherFn").finish_non_exhaustive()
    }
}

/// What a launch function is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Launch<K> {
    /// The key.
    pub key: K,
    /// The attempt's place in its window, from 1.
    pub attempt_number: u32,
    /// The fencing token: a number that only grows from launch to launch of this key. Hand it to the backend, so that of two
    /// launchers the elder can be refused.
    pub fencing_token: u64,
}

#[async_trait]
impl<K, T, L, LookFuture, F, LaunchFuture> BackendLauncher<K, T> for LauncherFn<L, F>
where
    K: GateKey,
    T: Send + Sync + 'static,
    L: Fn(K) -> LookFuture + Send + Sync + 'static,
    LookFuture: Future<Output = Result<Option<T>, BoxError>> + Send + 'static,
    F: Fn(Launch<K>) -> LaunchFuture + Send + Sync + 'static,
    LaunchFuture: Future<Output = Result<T, BoxError>> + Send + 'static,
{
    async fn discover(&self, key: &K) -> Result<Option<T>, BoxError> {
        (self.look)(key.clone()).await
    }

    async fn launch(&self, permit: &LaunchPermit<K, T>) -> Result<T, BoxError> {
        let launch = (self.launch)(Launch {
            key: permit.key().clone(),
            attempt_number: permit.attempt_number(),
            fencing_token: permit.fencing_token(),
        });
        launch.await
    }
}
