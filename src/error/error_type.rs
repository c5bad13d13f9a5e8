//! The stable short name of each kind of error, for labels and log fields.

use super::{GateError, LaunchError, Stage};

/// The kind of a [`GateError`]. Statistics index by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorType {
    BudgetExhausted,
    LockFailed,
    DiscoverFailed,
    LaunchFailed,
    NotStarted,
    LaunchFailedElsewhere,
    Panicked,
    Abandoned,
    Aborted,
    LockLost,
    DiscoverTimeout,
    LockTimeout,
    LaunchTimeout,
    FollowTimeout,
    DrainTimeout,
    Closed,
    ShutDown,
}

impl ErrorType {
    /// All kinds, in the order of their numbers.
    pub(crate) const ALL: [Self; 17] = [
        Self::BudgetExhausted,
        Self::LockFailed,
        Self::DiscoverFailed,
        Self::LaunchFailed,
        Self::NotStarted,
        Self::LaunchFailedElsewhere,
        Self::Panicked,
        Self::Abandoned,
        Self::Aborted,
        Self::LockLost,
        Self::DiscoverTimeout,
        Self::LockTimeout,
        Self::LaunchTimeout,
        Self::FollowTimeout,
        Self::DrainTimeout,
        Self::Closed,
        Self::ShutDown,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BudgetExhausted => "budget_exhausted",
            Self::LockFailed => "lock_failed",
            Self::DiscoverFailed => "discover_failed",
            Self::LaunchFailed => "launch_failed",
            Self::NotStarted => "not_started",
            Self::LaunchFailedElsewhere => "launch_failed_elsewhere",
            Self::Panicked => "panicked",
            Self::Abandoned => "abandoned",
            Self::Aborted => "aborted",
            Self::LockLost => "lock_lost",
            Self::DiscoverTimeout => "discover_timeout",
            Self::LockTimeout => "lock_timeout",
            Self::LaunchTimeout => "launch_timeout",
            Self::FollowTimeout => "follow_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::Closed => "closed",
            Self::ShutDown => "shut_down",
        }
    }
}

impl GateError {
    /// Returns the stable short name of the error's kind, for a metric's label or the field `error.type` of a log.
    ///
    /// A name never changes its meaning. New kinds may come.
    ///
    /// | name | error |
    /// | --- | --- |
    /// | `budget_exhausted` | [`GateError::BudgetExhausted`] |
    /// | `lock_failed` | [`GateError::Lock`] |
    /// | `discover_failed` | [`LaunchError::Discover`] |
    /// | `launch_failed` | [`LaunchError::Failed`] |
    /// | `not_started` | [`LaunchError::NotStarted`] |
    /// | `launch_failed_elsewhere` | [`LaunchError::FailedElsewhere`] |
    /// | `panicked` | [`LaunchError::Panicked`] |
    /// | `abandoned` | [`LaunchError::Abandoned`] |
    /// | `aborted` | [`LaunchError::Aborted`] |
    /// | `lock_lost` | [`LaunchError::LockLost`] |
    /// | `discover_timeout` | [`GateError::Timeout`] with [`Stage::Discover`] |
    /// | `lock_timeout` | [`GateError::Timeout`] with [`Stage::Lock`] |
    /// | `launch_timeout` | [`GateError::Timeout`] with [`Stage::Launch`] |
    /// | `follow_timeout` | [`GateError::Timeout`] with [`Stage::Follow`] |
    /// | `drain_timeout` | [`GateError::Timeout`] with [`Stage::Drain`] |
    /// | `closed` | [`GateError::Closed`] |
    /// | `shut_down` | [`GateError::ShutDown`] |
    ///
    /// ```
    /// use spawn_gate::{InMemorySpawnLock, SpawnGate};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
    /// gate.close().await.unwrap();
    /// assert_eq!(gate.acquire("indexer").await.unwrap_err().error_type(), "closed");
    /// # }
    /// ```
    pub fn error_type(&self) -> &'static str {
        self.kind().name()
    }

    pub(crate) fn kind(&self) -> ErrorType {
        match self {
            Self::BudgetExhausted(_) => ErrorType::BudgetExhausted,
            Self::Lock(_) => ErrorType::LockFailed,
            Self::Launch(error) => match error {
                LaunchError::Discover { .. } => ErrorType::DiscoverFailed,
                LaunchError::Failed { .. } => ErrorType::LaunchFailed,
                LaunchError::NotStarted { .. } => ErrorType::NotStarted,
                LaunchError::FailedElsewhere { .. } => ErrorType::LaunchFailedElsewhere,
                LaunchError::Panicked { .. } => ErrorType::Panicked,
                LaunchError::Abandoned { .. } => ErrorType::Abandoned,
                LaunchError::Aborted { .. } => ErrorType::Aborted,
                LaunchError::LockLost { .. } => ErrorType::LockLost,
            },
            Self::Timeout(error) => match error.stage {
                Stage::Discover => ErrorType::DiscoverTimeout,
                Stage::Lock => ErrorType::LockTimeout,
                Stage::Launch => ErrorType::LaunchTimeout,
                Stage::Follow => ErrorType::FollowTimeout,
                Stage::Drain => ErrorType::DrainTimeout,
            },
            Self::Closed => ErrorType::Closed,
            Self::ShutDown => ErrorType::ShutDown,
        }
    }
}

impl Stage {
    /// Returns the stable short name: `discover`, `lock`, `launch`, `follow` or `drain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Lock => "lock",
            Self::Launch => "launch",
            Self::Follow => "follow",
            Self::Drain => "drain",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::*;
    use super::*;

    /// Promise 62. The names are a contract: dashboards and alerts have them.
    #[test]
    fn each_kind_of_error_has_a_stable_short_name() {
        let key = || Arc::from("key");
        let source = || SharedError::new("why");
        let left = AttemptsLeft::new(1, None);
        let lost = || {
            Arc::new(SpawnLockError::Unresponsive {
                after: Duration::ZERO,
            })
        };
        let refusal = Refusal {
            retry_after: Duration::ZERO,
            reason: None,
            first: true,
        };
        let timeout = |stage| {
            GateError::from(TimeoutError {
                key: None,
                stage,
                after: Duration::ZERO,
                waiting_for: None,
                attempts_left: None,
            })
        };
        let launch = GateError::from;
        let all: [(GateError, &str); ErrorType::ALL.len()] = [
            (
                BudgetExhausted::new(key(), refusal).into(),
                "budget_exhausted",
            ),
            (
                GateError::Lock(LockError {
                    key: key(),
                    source: lost(),
                }),
                "lock_failed",
            ),
            (
                launch(LaunchError::Discover {
                    key: key(),
                    source: source(),
                }),
                "discover_failed",
            ),
            (
                launch(LaunchError::Failed {
                    key: key(),
                    attempt: 1,
                    left,
                    source: source(),
                }),
                "launch_failed",
            ),
            (
                launch(LaunchError::NotStarted {
                    key: key(),
                    retry_helps: true,
                    source: source(),
                }),
                "not_started",
            ),
            (
                launch(LaunchError::FailedElsewhere {
                    key: key(),
                    launch: 1,
                    message: "why".into(),
                }),
                "launch_failed_elsewhere",
            ),
            (
                launch(LaunchError::Panicked {
                    key: key(),
                    message: "why".into(),
                    left: None,
                }),
                "panicked",
            ),
            (launch(LaunchError::Abandoned { key: key() }), "abandoned"),
            (launch(LaunchError::Aborted { key: key() }), "aborted"),
            (
                launch(LaunchError::LockLost {
                    key: key(),
                    source: lost(),
                    left,
                }),
                "lock_lost",
            ),
            (timeout(Stage::Discover), "discover_timeout"),
            (timeout(Stage::Lock), "lock_timeout"),
            (timeout(Stage::Launch), "launch_timeout"),
            (timeout(Stage::Follow), "follow_timeout"),
            (timeout(Stage::Drain), "drain_timeout"),
            (GateError::Closed, "closed"),
            (GateError::ShutDown, "shut_down"),
        ];
        for (number, (error, name)) in all.into_iter().enumerate() {
            assert_eq!(error.error_type(), name);
            // Statistics index by the number.
            assert_eq!(ErrorType::ALL[number], error.kind());
            assert_eq!(error.kind() as usize, number);
        }
    }
}
