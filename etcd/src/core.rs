//! The thread that does all of the work with etcd, and what its tasks share.
//!
//! The thread has a runtime of its own. So a caller's runtime that is blocked or shut down neither loses a lock nor keeps one, and
//! connections outlive the runtime that first used them.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};

use crate::age::Ages;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::error::EtcdError;
use crate::watching::Watches;
use crate::wire::LeaseRevokeRequest;

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) calls: Cluster,
    /// Renewals have connections of their own, so no other call holds them up.
    pub(crate) renewals: Cluster,
    pub(crate) ages: Ages,
    pub(crate) watches: Watches,
    runtime: Handle,
    /// Dropping it ends the thread.
    _alive: oneshot::Sender<()>,
}

impl Core {
    pub(crate) fn start(config: Config) -> Result<Arc<Self>, EtcdError> {
        let connections = config.connections()?;
        let failed = |error| EtcdError::NoThread {
            source: Arc::new(error),
        };
        let (alive, over) = oneshot::channel::<()>();
        let (sender, built) = mpsc::channel();
        // The runtime never leaves its thread: where this is called, a runtime must perhaps not be dropped.
        thread::Builder::new()
            .name("spawn-gate-etcd".to_owned())
            .spawn(move || {
                match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => {
                        let _ = sender.send(Ok(runtime.handle().clone()));
                        // Ends with an error, once the core is dropped.
                        let _ = runtime.block_on(over);
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error));
                    }
                }
            })
            .map_err(failed)?;
        let handle = built
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread has ended")))
            .map_err(failed)?;
        let identity = Arc::default();
        let cluster = || {
            let _inside = handle.enter();
            let user = config.user.as_ref();
            Cluster::new(
                &connections,
                user,
                config.call_timeout,
                Arc::clone(&identity),
            )
        };
        Ok(Arc::new(Self {
            calls: cluster(),
            renewals: cluster(),
            config,
            ages: Ages::default(),
            watches: Watches::default(),
            runtime: handle,
            _alive: alive,
        }))
    }

    /// Runs a task in the thread. Dropping the future ends the task.
    pub(crate) fn run<V: Send + 'static>(
        self: &Arc<Self>,
        task: impl Future<Output = Result<V, EtcdError>> + Send + 'static,
    ) -> Running<V> {
        Running {
            task: self.runtime.spawn(task),
            // The thread goes on as long as the task.
            _core: Arc::clone(self),
        }
    }

    /// Runs a task in the thread that nobody waits for. It ends by itself.
    pub(crate) fn run_alone(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let core = Arc::clone(self);
        self.runtime.spawn(async move {
            task.await;
            drop(core);
        });
    }

    /// Revokes a lease, which deletes what is attached to it. If etcd cannot be reached, the lease expires by itself.
    pub(crate) fn revoke(self: &Arc<Self>, id: i64) {
        let core = Arc::clone(self);
        self.run_alone(async move {
            let deadline = core.deadline();
            let revoke = LeaseRevokeRequest { id };
            if core.calls.call(&revoke, deadline).await.is_err() {
                // A grant that was given up may have been overtaken by this, and arrive yet.
                sleep(core.config.call_timeout).await;
                // Nobody is left to tell.
                let _ = core.calls.call(&revoke, deadline).await;
            }
        });
    }

    /// The deadline of a call that nothing else limits.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.expires_in
    }
}

/// A task in the thread. Dropping it ends the task.
pub(crate) struct Running<V> {
    task: JoinHandle<Result<V, EtcdError>>,
    _core: Arc<Core>,
}

impl<V> Future for Running<V> {
    type Output = Result<V, EtcdError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task)
            .poll(context)
            .map(|ended| ended.unwrap_or_else(|error| Err(cut_short(&error))))
    }
}

impl<V> Drop for Running<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn cut_short(error: &JoinError) -> EtcdError {
    EtcdError::CutShort {
        problem: error.to_string(),
    }
}

/// A new id for a lease: 63 random bits, so no two clients choose the same.
pub(crate) fn new_lease_id() -> i64 {
    // The standard library seeds each of these hashers differently, from the system's randomness.
    let random = RandomState::new().hash_one((std::process::id(), thread::current().id()));
    (random >> 1).max(1).cast_signed()
}

/// The moment after this time, or one that is far enough away.
pub(crate) fn after(time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    Instant::now() + time.min(FAR)
}

/// A time as whole seconds, as etcd counts it.
pub(crate) fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
