//! The errors of the gate, one type for each stage.

mod attempts_left;
mod error_type;
mod launchers;
mod with_sources;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::attempts_left::AttemptsLeft;
pub(crate) use self::error_type::ErrorType;
pub use self::launchers::{BoxError, NotStarted, SharedError};
pub use self::with_sources::{WithSources, with_sources};
use crate::budget::{ExhaustionReason, Refusal, whole_millis};
use crate::ledger::escaped;
use crate::lock::{LockHolder, SpawnLockError};
use crate::util::{chain, write_with_sources};

/// Why [`SpawnGate`](crate::SpawnGate) returned neither a permit nor a value.
///
/// Cheap to clone: the leader and all followers share one failure. `{:#}` prints it with its sources.
///
/// ```
/// # use spawn_gate::{InMemorySpawnLock, SpawnGate, launcher_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// # let indexer = launcher_fn(|_| async { Ok(None) }, |_| async { Err("no such program".into()) });
/// let error = gate.launch("indexer", indexer).await.unwrap_err();
/// assert_eq!(error.to_string(), "attempt 1 to launch indexer failed");
/// assert_eq!(format!("{error:#}"), "attempt 1 to launch indexer failed: no such program");
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GateError {
    /// The key has used all its attempts. A retry helps after [`BudgetExhausted::retry_after`].
    BudgetExhausted(BudgetExhausted),
    /// The spawn lock could not be taken. Nothing was launched and nothing charged. [`retry_helps`](Self::retry_helps) says
    /// whether a retry helps.
    Lock(LockError),
    /// The launch ended without a backend. A retry makes another attempt, as long as the budget lasts.
    Launch(LaunchError),
    /// A stage took too long. A retry helps if the cause passes.
    Timeout(TimeoutError),
    /// The gate was closed. A retry does not help.
    Closed,
    /// The runtime that served the request was shut down. If it was launching or about to, something may have been started, and
    /// the attempt is charged. A retry helps only on another runtime.
    ShutDown,
}

impl GateError {
    /// Returns how long to wait before the next request: after a refusal, and after the failure of the last attempt. `None` after
    /// other errors.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BudgetExhausted(refusal) => Some(refusal.retry_after),
            Self::Launch(error) => error.attempts_left()?.retry_after(),
            Self::Timeout(error) => error.attempts_left?.retry_after(),
            _ => None,
        }
    }

    /// Returns whether the same request may succeed later (after [`retry_after`](Self::retry_after), if there is one).
    ///
    /// True for every failed launch, even if its cause is permanent: the gate cannot know that, and the budget limits the retries.
    /// The launcher's error may know more, as `ProcessError::retry_helps` does. True also for a failed `discover`, which charges nothing: pause before a retry.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Launch(LaunchError::NotStarted { retry_helps, .. }) => *retry_helps,
            Self::BudgetExhausted(_) | Self::Launch(_) | Self::Timeout(_) => true,
            Self::Lock(error) => error.source.retry_helps(),
            Self::Closed | Self::ShutDown => false,
        }
    }

    /// Returns the requested key as text; `None` if the error is not about one key.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::BudgetExhausted(refusal) => Some(&refusal.key),
            Self::Lock(error) => Some(&error.key),
            Self::Launch(error) => Some(error.key()),
            Self::Timeout(error) => error.key.as_deref(),
            Self::Closed | Self::ShutDown => None,
        }
    }

    /// Returns whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// The failure as text, for later refusals.
    pub(crate) fn message(&self) -> String {
        let words = match self {
            Self::Launch(LaunchError::Failed { source, .. }) => chain(&**source),
            error => chain(error),
        };
        escaped(&words)
    }

    /// The error of the stage.
    fn inner(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::BudgetExhausted(refusal) => Some(refusal),
            Self::Lock(error) => Some(error),
            Self::Launch(error) => Some(error),
            Self::Timeout(error) => Some(error),
            Self::Closed | Self::ShutDown => None,
        }
    }
}

impl Error for GateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner()?.source()
    }
}

impl fmt::Display for GateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_sources(f, self, |f| match self {
            Self::Closed => f.write_str("the gate is closed"),
            Self::ShutDown => f.write_str("the runtime was shut down during the request"),
            error => match error.inner() {
                Some(inner) => write!(f, "{inner}"),
                None => Ok(()),
            },
        })
    }
}

impl From<BudgetExhausted> for GateError {
    fn from(error: BudgetExhausted) -> Self {
        Self::BudgetExhausted(error)
    }
}

impl From<LockError> for GateError {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

impl From<LaunchError> for GateError {
    fn from(error: LaunchError) -> Self {
        Self::Launch(error)
    }
}

impl From<TimeoutError> for GateError {
    fn from(error: TimeoutError) -> Self {
        Self::Timeout(error)
    }
}

/// The refusal of a key that has used all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the spawn budget of {key} is used up ({reason}); retry after {:?}",
    whole_millis(*retry_after)
)]
#[non_exhaustive]
pub struct BudgetExhausted {
    /// The key as text.
    pub key: Arc<str>,
    /// Time until an attempt is free again; never more than the window.
    pub retry_after: Duration,
    /// How the last charged launch ended, in this process or, if the lock keeps a ledger, in any process.
    // A thin pointer: larger errors make a follower's return measurably slower.
    pub reason: Arc<ExhaustionReason>,
    /// True for the first refusal since an attempt was last free, and for exactly one of the callers that share it: log that one.
    pub first: bool,
}

impl BudgetExhausted {
    pub(crate) fn new(key: Arc<str>, refusal: Refusal) -> Self {
        Self {
            key,
            retry_after: refusal.retry_after,
            // Each charge that uses the budget up notes a reason. Without one, the count changed during a flight.
            reason: refusal
                .reason
                .unwrap_or_else(|| Arc::new(ExhaustionReason::launch_failed(""))),
            first: refusal.first,
        }
    }
}

/// The spawn lock of a key could not be taken. [`SpawnLockError::retry_helps`] of the source says whether a retry helps.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot take the spawn lock of {key}")]
#[non_exhaustive]
pub struct LockError {
    /// The key as text.
    pub key: Arc<str>,
    /// The lock's error.
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

/// Why a flight ended without a backend, other than by a timeout or a lock that it could not take. A retry makes another attempt,
/// as long as the budget lasts.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// [`discover`](crate::BackendLauncher::discover) failed, so it is unknown whether a backend runs. Nothing was
    /// launched and nothing charged.
    #[error("the look for a running {key} failed")]
    Discover {
        /// The key as text.
        key: Arc<str>,
        /// The launcher's error.
        source: SharedError,
    },
    /// The launcher failed. The attempt is charged.
    #[error("attempt {attempt} to launch {key} failed")]
    Failed {
        /// The key as text.
        key: Arc<str>,
        /// The attempt's place in its window, from 1.
        attempt: u32,
        /// What is left of the budget.
        left: AttemptsLeft,
        /// The launcher's error.
        source: SharedError,
    },
    /// The launcher failed before it had started anything, and said so with [`NotStarted`]. Nothing is charged.
    /// [`GateError::retry_helps`] says whether a retry helps.
    #[error("the launch of {key} did not start")]
    NotStarted {
        /// The key as text.
        key: Arc<str>,
        /// Whether a retry helps without a fix.
        retry_helps: bool,
        /// The launcher's error.
        source: SharedError,
    },
    /// A launch outside of this gate (usually by another process) that this gate waited for failed. Nothing was launched here
    /// and nothing charged.
    #[error("another launch of {key} failed: {message}")]
    FailedElsewhere {
        /// The key as text.
        key: Arc<str>,
        /// The launch's fencing token.
        launch: u64,
        /// The launcher's error and its sources, cut after some 500 bytes.
        message: Arc<str>,
    },
    /// The launcher panicked. If it was launching, the attempt is charged.
    #[error("the launcher of {key} panicked: {message}")]
    Panicked {
        /// The key as text.
        key: Arc<str>,
        /// The panic's message, if it is text.
        message: Arc<str>,
        /// What is left of the budget, if an attempt is charged.
        left: Option<AttemptsLeft>,
    },
    /// The permit was dropped unsettled, or its runtime was shut down. Something may have been started; the attempt is
    /// charged.
    #[error("the launch of {key} was abandoned")]
    Abandoned {
        /// The key as text.
        key: Arc<str>,
    },
    /// An operator aborted the flight ([`SpawnGate::abort`](crate::SpawnGate::abort)). If it was launching, something may have
    /// been started, and the attempt is charged.
    #[error("the launch of {key} was aborted")]
    Aborted {
        /// The key as text.
        key: Arc<str>,
    },
    /// The spawn lock was lost while launching, so another process may have launched too. A backend may have been started; the
    /// attempt is charged.
    #[error("the spawn lock of {key} was lost during its launch")]
    LockLost {
        /// The key as text.
        key: Arc<str>,
        /// How the lock was lost.
        source: Arc<SpawnLockError>,
        /// What is left of the budget.
        left: AttemptsLeft,
    },
}

impl LaunchError {
    /// Returns the key as text.
    pub fn key(&self) -> &str {
        match self {
            Self::Discover { key, .. }
            | Self::Failed { key, .. }
            | Self::NotStarted { key, .. }
            | Self::FailedElsewhere { key, .. }
            | Self::Panicked { key, .. }
            | Self::Abandoned { key }
            | Self::Aborted { key }
            | Self::LockLost { key, .. } => key,
        }
    }

    /// Returns what is left of the budget, if an attempt was charged and this error carries it.
    pub fn attempts_left(&self) -> Option<AttemptsLeft> {
        match self {
            Self::Failed { left, .. } | Self::LockLost { left, .. } => Some(*left),
            Self::Panicked { left, .. } => *left,
            _ => None,
        }
    }

    pub(crate) fn task_panicked(key: Arc<str>) -> Self {
        Self::Panicked {
            key,
            message: "the task that led the launch panicked".into(),
            left: None,
        }
    }
}

/// A stage took too long. A retry helps if the cause passes; after [`Stage::Follow`] it joins the same launch again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct TimeoutError {
    /// The key as text; `None` for [`Stage::Drain`].
    pub key: Option<Arc<str>>,
    /// The stage that took too long.
    pub stage: Stage,
    /// The stage's limit.
    pub after: Duration,
    /// The holder of the spawn lock, if the stage waited for the lock and the holder is known.
    pub waiting_for: Option<Arc<LockHolder>>,
    /// What is left of the budget; set for [`Stage::Launch`], where an attempt is charged.
    pub attempts_left: Option<AttemptsLeft>,
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

/// A wait with its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Stage {
    /// The leader looks for a running backend.
    Discover,
    /// The leader waits for the spawn lock.
    Lock,
    /// The leader has its permit, and the launch is running.
    Launch,
    /// A caller waits for a flight's outcome: a follower, or the caller whose request began the flight.
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
