//! How a flight ends, and the watch channel on which its followers hear that.
//!
//! Followers do not set a timer each, as most flights are over long before anybody's deadline: whoever keeps the flight's time
//! tells them all when it has become long, and only then they do.

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

/// What the followers were told.
#[derive(Debug)]
enum Told<T> {
    Nothing,
    /// The flight takes long: set a timer now.
    IsLong,
    Ended(Outcome<T>),
}

/// The leader's end of the channel.
#[derive(Debug)]
pub(crate) struct Followers<T>(Sender<Told<T>>);

impl<T> Clone for Followers<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Followers<T> {
    pub(crate) fn new(is_long: bool) -> Self {
        Self(Sender::new(if is_long {
            Told::IsLong
        } else {
            Told::Nothing
        }))
    }

    pub(crate) fn add(&self) -> Following<T> {
        Following(self.0.subscribe())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.receiver_count()
    }

    pub(crate) fn tell_outcome(&self, outcome: Outcome<T>) {
        self.0.send_replace(Told::Ended(outcome));
    }

    /// Tells that the flight takes long, unless it has ended meanwhile.
    pub(crate) fn tell_long(&self) {
        self.0.send_if_modified(|told| {
            let is_news = matches!(told, Told::Nothing);
            if is_news {
                *told = Told::IsLong;
            }
            is_news
        });
    }
}

/// A follower's end of the channel.
#[derive(Debug)]
pub(crate) struct Following<T>(Receiver<Told<T>>);

impl<T> Following<T> {
    /// Waits for the end.
    pub(crate) async fn ended(&mut self) {
        // An error means that the other end is gone, so that there is nothing to wait for either.
        let _ = self.0.wait_for(|told| matches!(told, Told::Ended(_))).await;
    }
}

impl<T: Clone> Following<T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`. `is_timed`: it will be told in time if the flight
    /// takes long, so it needs no timer until then.
    pub(crate) async fn outcome(
        &mut self,
        deadline: Instant,
        is_timed: bool,
    ) -> Option<Outcome<T>> {
        if is_timed {
            let told = self.0.wait_for(|told| !matches!(told, Told::Nothing)).await;
            if let Ok(Told::Ended(outcome)) = told.as_deref() {
                return Some(outcome.clone());
            }
        }
        // Boxed, so that the many who need no timer do not keep room for one.
        Box::pin(timeout_at(deadline, self.ended())).await.ok()?;
        match &*self.0.borrow() {
            Told::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }
}
