//! The outcome of a flight, and the watch channel that takes it to the followers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, timeout_at};

use crate::error::{GateError, LockError};
use crate::lock::SpawnLockError;

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome<T> {
    /// The leader launched a backend.
    Launched(T),
    /// A backend was running already.
    Discovered(T),
    /// There is no backend; all callers share the error.
    Failed(GateError),
    /// The leader is gone and has launched nothing. A follower takes over.
    LeaderGone,
}

/// What a step of a launch returns: `Err` ends the flight.
pub(crate) type Step<T, V = ()> = Result<V, Outcome<T>>;

impl<T> Outcome<T> {
    /// The result for a follower; `None` means retry.
    pub(crate) fn joined(self) -> Result<Option<T>, GateError> {
        match self {
            Self::Launched(value) | Self::Discovered(value) => Ok(Some(value)),
            Self::Failed(error) => Err(error),
            Self::LeaderGone => Ok(None),
        }
    }
}

/// The outcome of a flight that could not take its lock.
pub(crate) fn lock_failed<T>(error: GateError) -> Outcome<T> {
    match error {
        // A follower on another runtime can take over.
        GateError::Lock(LockError { source, .. })
            if matches!(*source, SpawnLockError::RuntimeShutDown { .. }) =>
        {
            Outcome::LeaderGone
        }
        error => Outcome::Failed(error),
    }
}

/// The end of a flight: the outcome, or the future that yields it.
#[must_use]
pub(crate) enum Ending<T, F> {
    /// `None` once it was yielded.
    Ended(Option<Outcome<T>>),
    Settling(Pin<Box<F>>),
}

/// The outcome is never pinned.
impl<T, F> Unpin for Ending<T, F> {}

impl<T, F: Future<Output = Outcome<T>>> Future for Ending<T, F> {
    type Output = Outcome<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<T>> {
        match self.get_mut() {
            Self::Ended(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            Self::Settling(settling) => settling.as_mut().poll(context),
        }
    }
}

/// The leader's end of the channel.
#[derive(Debug)]
pub(crate) struct OutcomeSender<T>(Sender<Option<Outcome<T>>>);

impl<T> OutcomeSender<T> {
    pub(crate) fn new() -> Self {
        Self(Sender::new(None))
    }

    pub(crate) fn subscribe(&self) -> OutcomeReceiver<T> {
        OutcomeReceiver(self.0.subscribe())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.receiver_count()
    }

    pub(crate) fn publish(&self, outcome: Outcome<T>) {
        // Unlike `send`, this keeps the value if there is no receiver at this moment.
        self.0.send_replace(Some(outcome));
    }
}

/// A follower's end of the channel.
#[derive(Debug)]
pub(crate) struct OutcomeReceiver<T>(Receiver<Option<Outcome<T>>>);

impl<T: Clone> OutcomeReceiver<T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`.
    pub(crate) async fn outcome(&mut self, deadline: Instant) -> Option<Outcome<T>> {
        let ended = timeout_at(deadline, self.0.wait_for(Option::is_some)).await;
        // The inner error means that the sender is gone without an outcome.
        ended.ok()?.ok()?.clone()
    }
}
