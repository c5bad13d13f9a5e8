//! The outcome of a flight, and the watch channel that takes it to the followers.

use std::fmt;
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

/// What the channel holds: the flight `F`, so that a follower needs no reference of its own, and the outcome once it has ended.
/// While the flight is in progress, its entry leads back here; its end breaks that circle.
struct Told<F, T> {
    flight: F,
    outcome: Option<Outcome<T>>,
}

/// The leader's end of the channel.
pub(crate) struct OutcomeSender<F, T>(Sender<Told<F, T>>);

impl<F, T> OutcomeSender<F, T> {
    pub(crate) fn new(flight: F) -> Self {
        let outcome = None;
        Self(Sender::new(Told { flight, outcome }))
    }

    pub(crate) fn subscribe(&self) -> OutcomeReceiver<F, T> {
        OutcomeReceiver(self.0.subscribe())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.receiver_count()
    }

    pub(crate) fn publish(&self, outcome: Outcome<T>) {
        // Unlike `send`, this keeps the value if there is no receiver at this moment.
        self.0.send_modify(|told| told.outcome = Some(outcome));
    }
}

/// A follower's end of the channel.
pub(crate) struct OutcomeReceiver<F, T>(Receiver<Told<F, T>>);

impl<F: Clone, T> OutcomeReceiver<F, T> {
    /// The flight whose outcome this is.
    pub(crate) fn flight(&self) -> F {
        self.0.borrow().flight.clone()
    }
}

impl<F, T: Clone> OutcomeReceiver<F, T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`.
    pub(crate) async fn outcome(&mut self, deadline: Instant) -> Option<Outcome<T>> {
        let has_ended = |told: &Told<F, T>| told.outcome.is_some();
        let ended = timeout_at(deadline, self.0.wait_for(has_ended)).await;
        // The inner error means that the sender is gone without an outcome.
        ended.ok()?.ok()?.outcome.clone()
    }
}

// Without the flight, which leads back to here.
impl<F, T> fmt::Debug for OutcomeSender<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeSender").finish_non_exhaustive()
    }
}

impl<F, T> fmt::Debug for OutcomeReceiver<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeReceiver").finish_non_exhaustive()
    }
}
