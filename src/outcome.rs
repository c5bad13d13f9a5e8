//! How a flight ends, and the watch channel on which its followers hear that.

use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, timeout_at};

use crate::error::GateError;

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome<T> {
    /// The leader launched a backend.
    Launched(T),
    /// A backend was running already.
    Discovered(T),
    /// There is no backend; all callers share the reason.
    Failed(GateError),
    /// The leader went away before it had its permit. Nothing was launched, and a follower takes over.
    Vacated,
}

impl<T> Outcome<T> {
    /// What a caller hears that did not launch: a backend, why there is none, or `None`, for it has to ask again.
    pub(crate) fn joined(self) -> Result<Option<T>, GateError> {
        match self {
            Self::Launched(value) | Self::Discovered(value) => Ok(Some(value)),
            Self::Failed(error) => Err(error),
            Self::Vacated => Ok(None),
        }
    }
}

/// The leader's end of the channel.
#[derive(Debug)]
pub(crate) struct Followers<T>(Sender<Option<Outcome<T>>>);

impl<T> Followers<T> {
    pub(crate) fn new() -> Self {
        Self(Sender::new(None))
    }

    pub(crate) fn add(&self) -> Following<T> {
        Following(self.0.subscribe())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.receiver_count()
    }

    pub(crate) fn tell_outcome(&self, outcome: Outcome<T>) {
        self.0.send_replace(Some(outcome));
    }
}

/// A follower's end of the channel.
#[derive(Debug)]
pub(crate) struct Following<T>(Receiver<Option<Outcome<T>>>);

impl<T: Clone> Following<T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`.
    pub(crate) async fn outcome(&mut self, deadline: Instant) -> Option<Outcome<T>> {
        let ended = timeout_at(deadline, self.0.wait_for(Option::is_some)).await;
        // The inner error means that the other end is gone, so that there is nothing to wait for.
        ended.ok()?.ok()?.clone()
    }
}
