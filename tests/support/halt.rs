//! A handshake: what a test scripts halts at a point until the test lets it go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Turns a wait that has no end into a failure.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Clones are one point.
#[derive(Clone, Debug)]
pub(crate) struct Halt {
    reached: Arc<Semaphore>,
    let_go: Arc<Semaphore>,
}

impl Halt {
    pub(crate) fn new() -> Self {
        Self {
            reached: Arc::new(Semaphore::new(0)),
            let_go: Arc::new(Semaphore::new(0)),
        }
    }

    /// Says that the point is reached, and stays there. For what the test scripts.
    pub(crate) async fn halt(&self) {
        self.reached.add_permits(1);
        self.let_go.acquire().await.unwrap().forget();
    }

    /// Waits until the point is reached, once more for each call.
    pub(crate) async fn reached(&self) {
        let reached = timeout(FOR_EVER, self.reached.acquire()).await;
        reached.expect("it is never reached").unwrap().forget();
    }

    /// Lets everybody pass, now and later.
    pub(crate) fn let_go(&self) {
        self.let_go.add_permits(1000);
    }
}
