//! Driving a leader's way to its permit apart from the caller: whether the caller polls must not matter to the followers.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::key::GateKey;
use crate::permit::LaunchPermit;

/// A permit that its caller does not come for within this time is given back.
const UNCLAIMED_FOR: Duration = Duration::from_secs(2);

/// Where a permit lies until its caller takes it.
struct Counter<K: GateKey, T> {
    permit: Mutex<Option<LaunchPermit<K, T>>>,
    is_done: Notify,
}

impl<K: GateKey, T> Counter<K, T> {
    fn take(&self) -> Option<LaunchPermit<K, T>> {
        let mut permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        permit.take()
    }
}

/// Awaits `earn_permit`. Unless it is ready at once, it runs in a task: if the caller is dropped it ends there, and if the
/// caller does not poll for long, the permit is given back. Returns `None` if there is no permit; the flight has ended then.
pub(crate) async fn off_caller<K, T>(
    earn_permit: impl Future<Output = Option<LaunchPermit<K, T>>> + Send + 'static,
) -> Option<LaunchPermit<K, T>>
where
    K: GateKey,
    T: Send + Sync + 'static,
{
    let mut earn_permit = Box::pin(earn_permit);
    let at_once = poll_fn(|cx| Poll::Ready(earn_permit.as_mut().poll(cx)));
    if let Poll::Ready(permit) = at_once.await {
        return permit;
    }
    let counter = Arc::new(Counter {
        permit: Mutex::new(None),
        is_done: Notify::new(),
    });
    let (task_end, caller_end) = oneshot::channel::<()>();
    tokio::spawn(serve(earn_permit, Arc::clone(&counter), task_end));
    counter.is_done.notified().await;
    let permit = counter.take();
    drop(caller_end);
    permit
}

async fn serve<K: GateKey, T>(
    mut earn_permit: Pin<Box<impl Future<Output = Option<LaunchPermit<K, T>>>>>,
    counter: Arc<Counter<K, T>>,
    mut caller: oneshot::Sender<()>,
) {
    // Also when this task is dropped or panics: the flight has ended then, and the caller looks how.
    let _told = NotifyOnDrop(&counter.is_done);
    let earned = poll_fn(|cx| match caller.poll_closed(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => earn_permit.as_mut().poll(cx),
    });
    let permit = earned.await;
    *counter
        .permit
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = permit;
    counter.is_done.notify_one();
    // Over when the caller has taken it, or is gone, or does not come.
    let _ = timeout(UNCLAIMED_FOR, caller.closed()).await;
    let unclaimed = counter.take();
    if let Some(permit) = unclaimed {
        permit.refund().await;
    }
}

struct NotifyOnDrop<'a>(&'a Notify);

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
