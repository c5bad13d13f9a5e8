//! The user's side of a launch: the launcher trait, launchers from functions, and what `launch` returns.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::permit::LaunchPermit;
use crate::error::BoxError;
use crate::key::GateKey;

/// Finds and starts the backend of a key.
///
/// Implement it with `#[async_trait]`, which this crate re-exports; without it, the compiler reports mismatched lifetimes.
/// [`launcher_fn`] makes a launcher from two functions.
///
/// # Examples
///
/// A backend at a fixed port. It trusts any process that answers at that port; the launcher of the feature `process` does not.
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
///             // Unknown whether one is running, so nothing must be launched.
///             Err(error) => Err(error.into()),
///         }
///     }
///
///     async fn launch(&self, permit: &LaunchPermit<String, u16>) -> Result<u16, BoxError> {
///         let mut child = Command::new("indexer")
///             .arg(format!("--port={}", self.port))
///             .env("FENCING_TOKEN", permit.fencing_token().to_string())
///             // A launch that is given up is dropped, and the child with it.
///             .kill_on_drop(true)
///             .spawn()?;
///         // Return once it is ready, not once it is started: the callers want to use it.
///         let ready = async {
///             while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
///                 tokio::time::sleep(std::time::Duration::from_millis(20)).await;
///             }
///         };
///         tokio::select! {
///             () = ready => {}
///             // Do not wait for a dead one.
///             status = child.wait() => {
///                 return Err(format!("it ended before it was ready: {}", status?).into());
///             }
///         }
///         // From now on it is this task's, which waits for its end. To stop it later, yield a handle of such a task.
///         tokio::spawn(async move { child.wait().await });
///         Ok(self.port)
///     }
/// }
/// ```
#[async_trait]
pub trait BackendLauncher<K: GateKey, T>: Send + Sync + 'static {
    /// Looks for a running backend of `key`, perhaps one that another process launched.
    ///
    /// Called first without the spawn lock, while other processes may look or launch. Called again with the lock held, right
    /// before [`launch`](Self::launch), unless nobody has held the lock since the first look. So it must not change anything.
    /// All callers share the backend that it finds, and nothing is charged.
    ///
    /// This is how a process joins a launch of another process. `Ok(None)` without a look means that each process launches its
    /// own backend, one after the other.
    ///
    /// A backend that it returns must be ready to serve: if one is starting, wait for it.
    ///
    /// # Errors
    ///
    /// Return an error if it is unknown whether a backend runs. It ends the flight with
    /// [`LaunchError::Discover`](crate::error::LaunchError::Discover), since a launch could start a second backend.
    ///
    /// # Cancel safety
    ///
    /// The gate drops the future when its discover timeout is over, or if an operator ends the flight.
    ///
    /// # Panics
    ///
    /// A panic is caught and shared as [`LaunchError::Panicked`](crate::error::LaunchError::Panicked).
    async fn discover(&self, key: &K) -> Result<Option<T>, BoxError>;

    /// Starts the backend and returns once it is ready to serve.
    ///
    /// Runs in the flight's own task. It must not request the same key from the same gate: that request would follow the flight
    /// that waits for it. Nor may two launchers request each other's key. Both wait until the launch timeout.
    ///
    /// # Errors
    ///
    /// An error ends the flight with [`LaunchError::Failed`](crate::error::LaunchError::Failed); all callers share it. If nothing
    /// was started and the backend is not to blame, return [`NotStarted`](crate::error::NotStarted): it is not charged.
    ///
    /// # Cancel safety
    ///
    /// No caller's cancellation ends it. The gate drops the future when its launch timeout is over, if the lock announces its
    /// loss, or if an operator ends the flight. It must then end what it has started (with `kill_on_drop`, say).
    ///
    /// # Panics
    ///
    /// A panic is caught and shared as [`LaunchError::Panicked`](crate::error::LaunchError::Panicked).
    async fn launch(&self, permit: &LaunchPermit<K, T>) -> Result<T, BoxError>;

    /// Disposes of a launched backend that no caller receives: the spawn lock was lost during the launch, so another process may
    /// have launched one too, or an operator ended the flight. Drops `value` by default.
    ///
    /// Not called for permits from [`SpawnGate::acquire`](crate::SpawnGate::acquire): there
    /// [`LaunchPermit::succeed`](crate::LaunchPermit::succeed) returns the error.
    ///
    /// # Cancel safety
    ///
    /// Runs in its own task; [`SpawnGate::close`](crate::SpawnGate::close) does not wait for it. The future is dropped when the
    /// launch timeout is over.
    ///
    /// # Panics
    ///
    /// A panic is caught and ignored.
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
    /// How this caller got it.
    pub how: How,
}

/// How a caller got its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum How {
    /// This caller's request launched it.
    Led,
    /// This caller joined another caller's flight.
    Joined,
    /// This caller's request found it running.
    Discovered,
}

/// Makes a launcher from two functions: `look` finds a running backend, `launch` starts one.
///
/// They have the contract of [`BackendLauncher::discover`] and [`BackendLauncher::launch`]. `look` gets the key, `launch` gets a
/// [`Launch`]. There is no launcher without a look: the gate does not keep backends, so a look that always answers `Ok(None)`, as in
/// this example, makes each request launch that meets no launch in progress. [`BackendLauncher`] has an example of a look at a port.
///
/// Annotate the argument of a function whose body calls its methods: `|launch: Launch<String>| …`.
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

/// The argument of a launch function, see [`launcher_fn`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Launch<K> {
    /// The key.
    pub key: K,
    /// The attempt's place in its window, from 1.
    pub attempt_number: u32,
    /// The fencing token: a number that grows from launch to launch of this key. Pass it to the backend, so that the older of two
    /// launchers can be refused.
    pub fencing_token: u64,
}

impl<K: GateKey> Launch<K> {
    pub(crate) fn of<T>(permit: &LaunchPermit<K, T>) -> Self {
        Self {
            key: permit.key().clone(),
            attempt_number: permit.attempt_number(),
            fencing_token: permit.fencing_token(),
        }
    }
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
        (self.launch)(Launch::of(permit)).await
    }
}
