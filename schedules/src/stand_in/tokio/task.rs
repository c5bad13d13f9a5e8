//! Tasks.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub use shuttle::future::yield_now;

thread_local! {
    static TASKS: RefCell<Tasks> = RefCell::default();
}

/// The tasks of the schedule on this thread.
#[derive(Default)]
struct Tasks {
    unfinished: usize,
    waiting: Option<Waker>,
}

pub struct JoinHandle<T>(shuttle::future::JoinHandle<T>);

/// A task that was aborted. A panic of a task ends the schedule, so there is no error for it.
#[derive(Debug)]
pub struct JoinError(());

/// Spawns a task.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let unfinished = Unfinished::new();
    JoinHandle(shuttle::future::spawn(async move {
        let _unfinished = unfinished;
        future.await
    }))
}

/// Waits until all tasks of this schedule have ended, also those that nobody joins.
pub async fn all_ended() {
    poll_fn(|context| {
        TASKS.with_borrow_mut(|tasks| match tasks.unfinished {
            0 => Poll::Ready(()),
            _ => {
                tasks.waiting = Some(context.waker().clone());
                Poll::Pending
            }
        })
    })
    .await;
}

/// Forgets the tasks of the schedule before, which may have failed.
pub(crate) fn reset() {
    TASKS.take();
}

struct Unfinished(());

impl Unfinished {
    fn new() -> Self {
        TASKS.with_borrow_mut(|tasks| tasks.unfinished += 1);
        Self(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let waiting = TASKS.with_borrow_mut(|tasks| {
            tasks.unfinished = tasks.unfinished.saturating_sub(1);
            tasks.waiting.take()
        });
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl<T> JoinHandle<T> {
    /// Drops the task's future, at any point where it waits.
    pub fn abort(&self) {
        self.0.abort();
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = Pin::new(&mut self.0).poll(context);
        joined.map_err(|shuttle::future::JoinError::Cancelled| JoinError(()))
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").finish_non_exhaustive()
    }
}

impl JoinError {
    pub fn is_panic(&self) -> bool {
        false
    }

    pub fn into_panic(self) -> Box<dyn Any + Send> {
        unreachable!("no panic gets here")
    }
}

pub mod coop {
    use shuttle::rand::{Rng, thread_rng};

    /// Uses up the budget now and then, by chance.
    pub async fn consume_budget() {
        if thread_rng().gen_ratio(1, 8) {
            super::yield_now().await;
        }
    }
}
