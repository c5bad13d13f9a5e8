//! Driving a leader's way to its permit apart from the caller: whether the caller polls must not matter to the followers.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, yield_now};

use crate::catch_panic::caught;
use crate::error::Stage;
use crate::flight::Flight;
use crate::key::GateKey;
use crate::outcome::Outcome;
use crate::permit::LaunchPermit;
use crate::within::within;

/// A permit that its caller does not come for within this time is given back.
const UNCLAIMED_FOR: Duration = Duration::from_secs(2);

type Earning<K, T> = Result<LaunchPermit<K, T>, Outcome<T>>;

/// What became of a leader's way to its permit.
pub(crate) enum Earned<K: GateKey, T> {
    Permit(LaunchPermit<K, T>),
    /// The flight has ended so.
    Ended(Outcome<T>),
    /// The task that was on the way is gone: its runtime was shut down, or it panicked.
    TaskLost(JoinError),
}

/// Where a permit lies until its caller takes it.
struct Pickup<K: GateKey, T> {
    /// `None` before the task is done, and if it is lost.
    earned: Mutex<Option<Earned<K, T>>>,
    is_done: Notify,
}

impl<K: GateKey, T> Pickup<K, T> {
    /// Takes what lies there and leaves `left`.
    fn swap(&self, left: Earned<K, T>) -> Option<Earned<K, T>> {
        self.lock().replace(left)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Earned<K, T>>> {
        self.earned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: GateKey, T> From<Earning<K, T>> for Earned<K, T> {
    fn from(earned: Earning<K, T>) -> Self {
        match earned {
            Ok(permit) => Self::Permit(permit),
            Err(outcome) => Self::Ended(outcome),
        }
    }
}

/// Awaits `earn_permit`, the way to the permit of `flight`. Unless that is ready at once, it runs in a task: if the caller is
/// dropped it ends there, and if the caller does not poll for long, the permit is given back.
pub(crate) async fn off_caller<K, T>(
    mut earn_permit: Pin<Box<impl Future<Output = Earning<K, T>> + Send + 'static>>,
    flight: &Flight<K, T>,
) -> Earned<K, T>
where
    K: GateKey,
    T: Send + Sync + 'static,
{
    let at_once = poll_fn(|cx| Poll::Ready(earn_permit.as_mut().poll(cx)));
    if let Poll::Ready(permit) = at_once.await {
        return permit.into();
    }
    let pickup = Arc::new(Pickup {
        earned: Mutex::new(None),
        is_done: Notify::new(),
    });
    let (task_end, caller_end) = oneshot::channel::<()>();
    // Made here and not in the task: a runtime that shuts down drops a task which was never polled.
    let pickup_end = PickupEnd(Arc::clone(&pickup));
    let task = tokio::spawn(serve(earn_permit, flight.clone(), pickup_end, task_end));
    pickup.is_done.notified().await;
    let earned = pickup.swap(Earned::Ended(Outcome::Vacated));
    drop(caller_end);
    match earned {
        Some(earned) => earned,
        // It is being dropped at this moment.
        None => match task.await {
            Ok(()) => Earned::Ended(Outcome::Vacated),
            Err(why) => Earned::TaskLost(why),
        },
    }
}

async fn serve<K: GateKey, T>(
    mut earn_permit: Pin<Box<impl Future<Output = Earning<K, T>>>>,
    flight: Flight<K, T>,
    pickup_end: PickupEnd<K, T>,
    mut caller: oneshot::Sender<()>,
) {
    let pickup = &pickup_end.0;
    let earned = poll_fn(|cx| {
        // With the lock comes what must not be left half-done: the ledger. That is soon over.
        if caller.poll_closed(cx).is_ready() && !flight.has_lock() {
            return Poll::Ready(None);
        }
        earn_permit.as_mut().poll(cx).map(Some)
    });
    let Some(earned) = earned.await else {
        return;
    };
    pickup.swap(earned.into());
    pickup.is_done.notify_one();
    // Most callers come at once, and then no timer is needed.
    yield_now().await;
    // Over when the caller has taken it, or is gone, or does not come.
    let _ = within(UNCLAIMED_FOR, caller.closed()).await;
    let unclaimed = pickup.swap(Earned::Ended(Outcome::Vacated));
    if let Some(Earned::Permit(permit)) = unclaimed {
        // Nothing was launched, also if this is cut short.
        flight.advance(Stage::Lock);
        permit.refund().await;
    }
}

/// The task's end of the pickup. If the task is dropped or panics, the caller hears of it, and a permit that it did not come
/// for is given back.
struct PickupEnd<K: GateKey, T>(Arc<Pickup<K, T>>);

impl<K: GateKey, T> Drop for PickupEnd<K, T> {
    fn drop(&mut self) {
        let unclaimed = {
            let mut earned = self.0.lock();
            match *earned {
                Some(Earned::Permit(_)) => earned.replace(Earned::Ended(Outcome::Vacated)),
                _ => None,
            }
        };
        self.0.is_done.notify_one();
        if let Some(Earned::Permit(permit)) = unclaimed {
            // In `Drop`, and the lease and the followers' wakers are the user's code.
            let _ = caught(|| permit.vacate());
        }
    }
}
