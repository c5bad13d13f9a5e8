//! Acquires the permit in its own task, so followers progress even if the caller stops polling.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, yield_now};

use crate::error::GateError;
use crate::flight::{Flight, LaunchPermit, Leader, Outcome, or_interrupted, prepare};
use crate::key::GateKey;
use crate::util::{caught, lazy_timeout};

/// A permit that its caller does not collect within this time passes to a follower.
const UNCOLLECTED_FOR: Duration = Duration::from_secs(2);

/// What a caller collects.
pub(crate) enum Collected<K: GateKey, T> {
    Permit(LaunchPermit<K, T>),
    /// The flight has ended with this outcome.
    Ended(Outcome<T>),
    /// The task is gone: its runtime was shut down, or it panicked.
    TaskLost(JoinError),
}

/// Holds a permit until its caller collects it.
struct Mailbox<K: GateKey, T> {
    /// `None` until the task is done, and if the task is lost.
    content: Mutex<Option<Collected<K, T>>>,
    is_done: Notify,
}

impl<K: GateKey, T> Mailbox<K, T> {
    /// Replaces the content with `left` and returns the old one.
    fn swap(&self, left: Collected<K, T>) -> Option<Collected<K, T>> {
        self.lock().replace(left)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Collected<K, T>>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares a launch in a task. If the caller is dropped, the task ends the flight; if the caller does not poll in time, the
/// permit passes to a follower.
pub(crate) async fn collect_permit<K, T>(leader: Leader<K, T>) -> Collected<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    let mailbox = Arc::new(Mailbox {
        content: Mutex::new(None),
        is_done: Notify::new(),
    });
    let (task_end, caller_end) = oneshot::channel::<()>();
    // Created here and not in the task: a runtime that shuts down drops a task that was never polled.
    let mailbox_end = MailboxEnd(Arc::clone(&mailbox));
    // Boxed, since a task is moved a few times before it runs.
    let span = leader.span.clone();
    let task = tokio::spawn(span.instrument(Box::pin(serve(leader, mailbox_end, task_end))));
    mailbox.is_done.notified().await;
    let collected = mailbox.swap(Collected::Ended(Outcome::LeaderGone));
    drop(caller_end);
    match collected {
        Some(collected) => collected,
        // The task is being dropped at this moment.
        None => match task.await {
            Ok(()) => Collected::Ended(Outcome::LeaderGone),
            Err(why) => Collected::TaskLost(why),
        },
    }
}

async fn serve<K, T>(
    leader: Leader<K, T>,
    mailbox_end: MailboxEnd<K, T>,
    mut caller: oneshot::Sender<()>,
) where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    let flight = leader.flight.clone();
    let mailbox = &mailbox_end.0;
    let collected = match prepare_for(&mut caller, &flight, leader).await {
        Ok(leader) => Collected::Permit(LaunchPermit::new(leader)),
        // The caller is here, so the runtime is being shut down. (If the caller is gone, nobody reads this.)
        Err(Outcome::LeaderGone) => Collected::Ended(Outcome::Failed(GateError::ShutDown)),
        Err(outcome) => Collected::Ended(outcome),
    };
    mailbox.swap(collected);
    mailbox.is_done.notify_one();
    // Most callers collect at once; then no timer is needed.
    yield_now().await;
    // Ends when the caller has collected the permit, is gone, or is too late, or an operator ends the flight.
    let collected_or_ended = pin!(poll_fn(|context| {
        if caller.poll_closed(context).is_ready() {
            return Poll::Ready(Outcome::LeaderGone);
        }
        flight.poll_interrupted(context).map(Outcome::Failed)
    }));
    let outcome = lazy_timeout(UNCOLLECTED_FOR, collected_or_ended).await;
    let outcome = outcome.unwrap_or(Outcome::LeaderGone);
    let uncollected = mailbox.swap(Collected::Ended(outcome.clone()));
    if let Some(Collected::Permit(permit)) = uncollected {
        let mut leader = permit.into_leader();
        // Holds also if this task is dropped at the next await.
        leader.call_off_launch();
        leader.end(outcome).await;
    }
}

/// Prepares a launch for as long as the caller is there. On `Err` the flight has already ended with that outcome.
async fn prepare_for<K, T>(
    caller: &mut oneshot::Sender<()>,
    flight: &Flight<K, T>,
    mut leader: Leader<K, T>,
) -> Result<Leader<K, T>, Outcome<T>>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    let prepared = {
        let preparing = pin!(prepare(&mut leader, None));
        let mut preparing = pin!(or_interrupted(flight, preparing));
        poll_fn(|context| {
            if caller.poll_closed(context).is_ready() {
                return Poll::Ready(Err(Outcome::LeaderGone));
            }
            preparing.as_mut().poll(context)
        })
        .await
    };
    match prepared {
        Ok(()) => Ok(leader),
        Err(outcome) => {
            leader.call_off_launch();
            Err(leader.end(outcome).await)
        }
    }
}

/// The task's end of the mailbox. If the task is dropped or panics, the caller is notified, and an uncollected permit passes to
/// a follower.
struct MailboxEnd<K: GateKey, T: Clone>(Arc<Mailbox<K, T>>);

impl<K: GateKey, T: Clone> Drop for MailboxEnd<K, T> {
    fn drop(&mut self) {
        let uncollected = {
            let mut content = self.0.lock();
            match *content {
                Some(Collected::Permit(_)) => {
                    content.replace(Collected::Ended(Outcome::LeaderGone))
                }
                _ => None,
            }
        };
        self.0.is_done.notify_one();
        if let Some(Collected::Permit(permit)) = uncollected {
            // `Drop` must not panic, and the lease and the followers' wakers are user code.
            let _ = caught(|| permit.into_leader().end_in_drop());
        }
    }
}
