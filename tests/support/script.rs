//! Steps that a test scripts, and a launcher made of two of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{BackendLauncher, BoxError, GateKey, LaunchPermit};
use tokio::time::sleep;

/// An async step that a test scripts. It counts its calls and tells each one its number, from 1.
pub(crate) struct Step<V>(Arc<StepInner<V>>);

struct StepInner<V> {
    calls: AtomicUsize,
    #[expect(
        clippy::type_complexity,
        reason = "a boxed async closure has no shorter type"
    )]
    script: Box<dyn Fn(usize) -> Pin<Box<dyn Future<Output = V> + Send>> + Send + Sync>,
}

impl<V: 'static> Step<V> {
    pub(crate) fn new<F>(script: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = V> + Send + 'static,
    {
        Self(Arc::new(StepInner {
            calls: AtomicUsize::new(0),
            script: Box::new(move |call| Box::pin(script(call))),
        }))
    }

    pub(crate) async fn call(&self) -> V {
        let call = self.0.calls.fetch_add(1, Ordering::SeqCst) + 1;
        (self.0.script)(call).await
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }
}

impl<V> Clone for Step<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A launcher made of two steps, which watches that it is never launching twice at once. Clones count together.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) discover: Step<Result<Option<u32>, BoxError>>,
    launch: Step<Result<u32, BoxError>>,
    running: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Script {
    /// Finds nothing, and launches by `launch`.
    pub(crate) fn launching<F>(launch: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<u32, BoxError>> + Send + 'static,
    {
        Self {
            discover: Step::new(|_| async { Ok(None) }),
            launch: Step::new(launch),
            running: Arc::default(),
            most_at_once: Arc::default(),
        }
    }

    /// Looks by `discover`.
    pub(crate) fn discovering<F>(
        mut self,
        discover: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Option<u32>, BoxError>> + Send + 'static,
    {
        self.discover = Step::new(discover);
        self
    }

    /// How many launches were begun, of which no two ran at once.
    pub(crate) fn launches(&self) -> usize {
        let most_at_once = self.most_at_once.load(Ordering::SeqCst);
        assert!(most_at_once <= 1, "{most_at_once} launches at once");
        self.launch.calls()
    }
}

#[async_trait]
impl<K: GateKey> BackendLauncher<K, u32> for Script {
    async fn discover(&self, _key: &K) -> Result<Option<u32>, BoxError> {
        self.discover.call().await
    }

    async fn launch(&self, _permit: &LaunchPermit<K, u32>) -> Result<u32, BoxError> {
        let at_once = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let _running = Running(&self.running);
        self.launch.call().await
    }
}

/// How long a [`slow`] launch takes.
pub(crate) const LAUNCH_TIME: Duration = Duration::from_secs(5);

/// A launcher that takes its time and then does `then`.
pub(crate) fn slow(
    then: impl Fn() -> Result<u32, BoxError> + Clone + Send + Sync + 'static,
) -> Script {
    Script::launching(move |_| {
        let then = then.clone();
        async move {
            sleep(LAUNCH_TIME).await;
            then()
        }
    })
}

/// A launch that is running, until it returns, panics or is dropped.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
