//! A deadline that costs nothing for what is ready at once.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

/// Awaits `future` for as long as `limit`, then gives up: `None`. As tokio's `timeout`, but a timer is made only if the
/// future is not ready at once.
pub(crate) async fn lazy_timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let at_once = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
    match at_once.await {
        Poll::Ready(output) => Some(output),
        // Boxed, so that those who need no timer do not keep room for one.
        Poll::Pending => Box::pin(timeout(limit, future)).await.ok(),
    }
}
