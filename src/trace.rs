//! The events and the span of the feature `tracing`. Without the feature, all of this is empty.
//!
//! Neither the value nor a command line or the environment is ever recorded. A launcher's own words and the text of a panic are
//! recorded at DEBUG only. Arguments that cost something are functions, called only if somebody listens.

#![cfg_attr(
    not(feature = "tracing"),
    expect(unused_variables, reason = "nothing is recorded")
)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BudgetExhausted, ErrorType, GateError};
use crate::lock::LockHolder;

macro_rules! event {
    ($level:ident, $($fields:tt)+) => {
        #[cfg(feature = "tracing")]
        tracing::event!(target: "spawn_gate", tracing::Level::$level, $($fields)+);
    };
}

/// The span `launch` of a leader.
#[derive(Clone, Debug)]
pub(crate) struct LaunchSpan {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl LaunchSpan {
    #[inline]
    pub(crate) fn none() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::none(),
        }
    }

    /// Opens the span, within the span of the caller.
    #[inline]
    pub(crate) fn new(key: impl FnOnce() -> Arc<str>) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::info_span!(
                target: "spawn_gate",
                "launch",
                key = %key(),
                attempt = tracing::field::Empty,
                fencing_token = tracing::field::Empty,
                outcome = tracing::field::Empty,
            ),
        }
    }

    /// The flight may launch.
    #[inline]
    pub(crate) fn launching(&self, attempt: u32, fencing_token: impl FnOnce() -> u64) {
        #[cfg(feature = "tracing")]
        if !self.span.is_disabled() {
            self.span.record("attempt", attempt);
            self.span.record("fencing_token", fencing_token());
        }
    }

    #[inline]
    pub(crate) fn ended(&self, outcome: &'static str) {
        #[cfg(feature = "tracing")]
        self.span.record("outcome", outcome);
    }

    /// Runs `run` within the span.
    #[inline]
    pub(crate) fn in_scope<V>(&self, run: impl FnOnce() -> V) -> V {
        #[cfg(feature = "tracing")]
        {
            self.span.in_scope(run)
        }
        #[cfg(not(feature = "tracing"))]
        {
            run()
        }
    }

    /// Polls `future` within the span.
    #[inline]
    pub(crate) fn instrument<F: Future>(
        &self,
        future: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        #[cfg(feature = "tracing")]
        {
            tracing::Instrument::instrument(future, self.span.clone())
        }
        #[cfg(not(feature = "tracing"))]
        {
            future
        }
    }
}

#[inline]
pub(crate) fn launched(key: impl FnOnce() -> Arc<str>, elapsed: impl FnOnce() -> Duration) {
    event!(INFO, key = %key(), elapsed = ?elapsed(), "launched");
}

#[inline]
pub(crate) fn discovered(key: impl FnOnce() -> Arc<str>, elapsed: impl FnOnce() -> Duration) {
    event!(DEBUG, key = %key(), elapsed = ?elapsed(), "discovered");
}

#[inline]
pub(crate) fn joined(key: impl FnOnce() -> Arc<str>, elapsed: impl FnOnce() -> Duration) {
    event!(TRACE, key = %key(), elapsed = ?elapsed(), "joined");
}

#[inline]
pub(crate) fn leader_gone(key: impl FnOnce() -> Arc<str>) {
    event!(DEBUG, key = %key(), "leader gone, attempt refunded");
}

/// A flight or a request ended with this error. Refusals and what operators do have events of their own.
#[inline]
pub(crate) fn failed(error: &GateError, attempt: Option<u32>, stage: &'static str) {
    let what = match error.kind() {
        ErrorType::BudgetExhausted | ErrorType::Aborted | ErrorType::Closed => None,
        ErrorType::Panicked => Some("panicked"),
        ErrorType::DiscoverTimeout
        | ErrorType::LockTimeout
        | ErrorType::LaunchTimeout
        | ErrorType::FollowTimeout
        | ErrorType::DrainTimeout => Some("timed out"),
        _ => Some("failed"),
    };
    if let Some(what) = what {
        let (key, name) = (error.key().unwrap_or_default(), error.error_type());
        event!(WARN, %key, attempt, stage, "error.type" = name, "{what}");
        // Only here: the launcher's own words, and those of a panic.
        event!(DEBUG, %key, "error.type" = name, error = %format_args!("{error:#}"), "the error in full");
    }
}

#[inline]
pub(crate) fn refused(refusal: &BudgetExhausted) {
    #[cfg(feature = "tracing")]
    {
        let BudgetExhausted {
            key,
            retry_after,
            reason,
            first,
        } = refusal;
        if *first {
            event!(WARN, %key, ?retry_after, why = reason.as_str(), "refused");
        } else {
            event!(DEBUG, %key, ?retry_after, why = reason.as_str(), "refused again");
        }
    }
}

#[inline]
pub(crate) fn waiting_for_lock(
    key: impl FnOnce() -> Arc<str>,
    holder: Option<&LockHolder>,
    waited: Duration,
) {
    event!(INFO, key = %key(), holder = holder.map(tracing::field::display), ?waited, "waiting for the spawn lock");
}

#[inline]
pub(crate) fn lock_lost(key: impl FnOnce() -> Arc<str>, fencing_token: impl FnOnce() -> u64) {
    event!(ERROR, key = %key(), fencing_token = fencing_token(), "the spawn lock was lost");
}

#[inline]
pub(crate) fn reset(key: impl FnOnce() -> Arc<str>) {
    event!(INFO, key = %key(), "reset");
}

#[inline]
pub(crate) fn aborted(key: &str) {
    event!(WARN, %key, "aborted");
}

#[inline]
pub(crate) fn closing(flights: usize) {
    event!(INFO, flights, "closed");
}

#[inline]
pub(crate) fn drain_timed_out(flights: usize) {
    event!(WARN, flights, "the drain timed out, flights were ended");
}
