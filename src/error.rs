//! What a caller of the gate hears when there is no backend for it, one type for each stage.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::BudgetRefusal;
use crate::catch_panic::caught;
use crate::ledger_text::escaped;
use crate::lock::{LockHolder, SpawnLockError};

/// Why [`SpawnGate`](crate::SpawnGate) gave neither a permit nor a value.
///
/// It is cheap to clone: a flight's failure is made once and shared by the leader and all followers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The key has used all its attempts. A retry helps after [`BudgetExhausted::retry_after`].
    #[error(transparent)]
    BudgetExhausted(#[from] BudgetExhausted),
    /// The spawn lock could not be taken. Nothing was launched, the attempt was refunded.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The launch ended without a backend.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A stage took longer than it may.
    #[error(transparent)]
    Timeout(#[from] TimeoutError),
    /// The gate was closed. A retry does not help.
    #[error("the gate is closed")]
    Closed,
    /// The runtime that did what was asked was shut down. If it was launching by then, or about to, something may have been
    /// started, and the attempt is charged. A retry helps on another runtime only.
    #[error("the runtime was shut down meanwhile")]
    ShutDown,
}

impl GateError {
    /// Returns how long to wait before the next request, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BudgetExhausted(refusal) => Some(refusal.retry_after),
            _ => None,
        }
    }

    /// Whether the same request can succeed later (after [`retry_after`](Self::retry_after), if there is one) without
    /// anybody mending anything.
    ///
    /// A launch that failed counts as such a case: a retry makes another attempt, as long as the budget lasts. So does a
    /// `discover` that failed, which nothing is charged for: pause before you ask again.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::BudgetExhausted(_) | Self::Launch(_) | Self::Timeout(_) => true,
            Self::Lock(error) => error.source.retry_helps(),
            Self::Closed | Self::ShutDown => false,
        }
    }

    /// Why there is no backend, for those who ask later: in words, since an error of the user's is not kept for them.
    pub(crate) fn words(&self) -> Arc<String> {
        let words = match self {
            Self::Launch(LaunchError::Failed { source, .. }) => all_of(&**source),
            error => all_of(error),
        };
        Arc::new(escaped(&words))
    }
}

/// So many errors of a chain are told; one that is its own source has no last one.
const MAX_ERRORS: usize = 16;

/// An error and its sources. They are the user's code, which must not keep a flight from ending.
fn all_of(error: &dyn Error) -> String {
    let errors = std::iter::successors(Some(error), |&error| {
        caught(|| error.source()).ok().flatten()
    });
    let words = errors.take(MAX_ERRORS).map(|error| {
        caught(|| error.to_string()).unwrap_or_else(|_| "an error without words".into())
    });
    words.collect::<Vec<_>>().join(": ")
}

/// The refusal of a key that has used all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the spawn budget of {key} is used up{}; retry after {:?}",
    told(last_failure.as_deref().map(String::as_str)),
    whole_millis(*retry_after)
)]
#[non_exhaustive]
pub struct BudgetExhausted {
    /// The key, as it is named in messages.
    pub key: Arc<str>,
    /// Time until an attempt is free again; never more than the window.
    pub retry_after: Duration,
    /// Attempts left now: always zero.
    pub remaining: u32,
    /// True for this process's first refusal since the budget ran out: the one worth a log line or an alarm.
    pub first: bool,
    /// Why the last launch failed, in this process or, if the lock keeps a ledger, in another: the launcher's error and its
    /// sources, cut after some 500 bytes. `None` if that is not known (it was killed, say), or if the last launch succeeded.
    // A thin pointer, since a follower's way back takes measurably longer if errors are larger.
    pub last_failure: Option<Arc<String>>,
}

/// The last failure as a part of the message; nothing if there is nothing to tell.
fn told(last_failure: Option<&str>) -> String {
    match last_failure {
        None | Some("") => String::new(),
        Some(why) => format!(" (the last launch failed: {why})"),
    }
}

/// Rounded up: whoever waits for it does not come too early.
fn whole_millis(time: Duration) -> Duration {
    let nanos = time.subsec_nanos().next_multiple_of(1_000_000);
    Duration::from_secs(time.as_secs()).saturating_add(Duration::from_nanos(nanos.into()))
}

impl BudgetExhausted {
    pub(crate) fn new(
        key: Arc<str>,
        refusal: BudgetRefusal,
        last_failure: Option<Arc<String>>,
    ) -> Self {
        Self {
            key,
            retry_after: refusal.retry_after,
            remaining: 0,
            first: refusal.first,
            last_failure,
        }
    }
}

/// The spawn lock of a key could not be taken. [`SpawnLockError::retry_helps`] of the source tells whether a retry helps.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot take the spawn lock of {key}")]
#[non_exhaustive]
pub struct LockError {
    /// The key, as it is named in messages.
    pub key: Arc<str>,
    /// What went wrong.
    pub source: Arc<SpawnLockError>,
}

impl LockError {
    pub(crate) fn new(key: impl Into<Arc<str>>, source: SpawnLockError) -> Self {
        Self {
            key: key.into(),
            source: Arc::new(source),
        }
    }
}

/// How a flight ended that had its lock but gave no backend. A retry makes another attempt, as long as the budget lasts.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// [`discover`](crate::BackendLauncher::discover) failed, so it is unknown whether a backend runs. Nothing was
    /// launched, the attempt was refunded.
    #[error("cannot tell whether {key} is running already")]
    Discover {
        /// The key, as it is named in messages.
        key: Arc<str>,
        /// What the launcher said.
        source: SharedError,
    },
    /// The launcher failed. The attempt is charged.
    #[error("attempt {attempt} to launch {key} failed")]
    Failed {
        /// The key, as it is named in messages.
        key: Arc<str>,
        /// The attempt's place in its window, from 1.
        attempt: u32,
        /// What the launcher said.
        source: SharedError,
    },
    /// Another process's launch, for which this one waited, failed. Nothing was launched here, the attempt was refunded.
    #[error("a launch of {key} by another process failed: {message}")]
    FailedElsewhere {
        /// The key, as it is named in messages.
        key: Arc<str>,
        /// The launch's number.
        launch: u64,
        /// What the launcher said there, cut after some 500 bytes.
        message: Arc<str>,
    },
    /// The launcher panicked. The attempt is charged if the permit was held by then.
    #[error("the launcher of {key} panicked: {message}")]
    Panicked {
        /// The key, as it is named in messages.
        key: Arc<str>,
        /// What it panicked with, if that is text.
        message: Arc<str>,
    },
    /// The permit was dropped unsettled, or its runtime was shut down. Something may have been started; the attempt is
    /// charged.
    #[error("the launch of {key} was abandoned")]
    Abandoned {
        /// The key, as it is named in messages.
        key: Arc<str>,
    },
    /// The spawn lock was lost while launching: its file was deleted or replaced, so another process may have launched too.
    /// A backend may have been started; the attempt is charged.
    #[error("the spawn lock of {key} was lost while it was launched")]
    LockLost {
        /// The key, as it is named in messages.
        key: Arc<str>,
        /// How the lock was lost.
        source: Arc<SpawnLockError>,
    },
}

impl LaunchError {
    pub(crate) fn task_panicked(key: Arc<str>) -> Self {
        Self::Panicked {
            key,
            message: "the task that led the launch panicked".into(),
        }
    }
}

/// An error that several callers share. It reads as the error that the launcher returned, and dereferences to it.
///
/// ```
/// use spawn_gate::SharedError;
///
/// let shared = SharedError::new(std::io::Error::other("no such program"));
/// assert_eq!(shared.to_string(), "no such program");
/// assert!(shared.downcast_ref::<std::io::Error>().is_some());
/// ```
#[derive(Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

impl SharedError {
    /// Wraps an error, or a message.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl Deref for SharedError {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A stage took longer than it may. A retry helps if the cause passes; a retry of [`Stage::Follow`] joins the same launch
/// again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct TimeoutError {
    /// The key, as it is named in messages; `None` for [`Stage::Drain`].
    pub key: Option<Arc<str>>,
    /// The stage.
    pub stage: Stage,
    /// How long the stage was given.
    pub after: Duration,
    /// Who holds the spawn lock, if the stage waited for it and the holder is known.
    pub waiting_for: Option<Arc<LockHolder>>,
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timed out after {:?} while {}", self.after, self.stage)?;
        if let Some(key) = &self.key {
            write!(f, " {key}")?;
        }
        if let Some(holder) = &self.waiting_for {
            write!(f, " ({holder})")?;
        }
        Ok(())
    }
}

/// A wait that has a deadline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The leader waits for the spawn lock.
    Lock,
    /// The leader asks whether a backend is running already.
    Discover,
    /// The leader holds its permit: the launcher runs.
    Launch,
    /// A caller waits for a flight's outcome: a follower, or the one whose request began the flight.
    Follow,
    /// [`close`](crate::SpawnGate::close) waits for the flights in progress.
    Drain,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lock => "waiting for the spawn lock of",
            Self::Discover => "looking for a running",
            Self::Launch => "launching",
            Self::Follow => "waiting for the launch of",
            Self::Drain => "draining the flights in progress",
        })
    }
}
