//! A timeout that costs nothing for a future that is ready at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

/// Like tokio's `timeout` (`None` means that the limit is over), but creates a timer only if the future is not ready at once.
///
/// Takes the future pinned: an `async fn` has room for its arguments twice.
pub(crate) async fn lazy_timeout<F: Future>(
    limit: Duration,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    let at_once = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
    if let Poll::Ready(output) = at_once.await {
        return Some(output);
    }
    // Boxed, so that the caller's future has no room for a timer.
    Box::pin(timeout(limit, future)).await.ok()
}

/// Like [`lazy_timeout`], and calls `notice`, if there is one, once the future has taken `long`.
pub(crate) async fn lazy_timeout_with_notice<F: Future>(
    limit: Duration,
    long: Duration,
    notice: Option<impl FnOnce()>,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    let at_once = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
    if let Poll::Ready(output) = at_once.await {
        return Some(output);
    }
    // Boxed, so that the caller's future has no room for timers.
    let timed = Box::pin(async move {
        let deadline = Instant::now() + limit;
        if let Some(notice) = notice.filter(|_| long < limit) {
            if let Ok(output) = timeout(long, future.as_mut()).await {
                return Some(output);
            }
            notice();
        }
        timeout_at(deadline, future).await.ok()
    });
    timed.await
}
