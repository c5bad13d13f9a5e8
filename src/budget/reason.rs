//! Why a budget is used up, for those who are refused.

use std::fmt;
use std::time::{Duration, SystemTime};

/// Why a key has no attempt left: how the last charged launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ExhaustionReason {
    /// The launch failed.
    LaunchFailed {
        /// The launcher's error and its sources, cut after some 500 bytes; empty if there was no room for it.
        message: String,
    },
    /// The launch succeeded, but the backend did not stay up for
    /// [`stable_after`](crate::SpawnGateBuilder::stable_after).
    NotStable {
        /// The launch's fencing token.
        launch: u64,
        /// The time that the backend has to stay up.
        stable_after: Duration,
    },
    /// The launch succeeded, but the backend ended with a failure, as reported by
    /// [`SpawnGate::backend_ended`](crate::SpawnGate::backend_ended).
    BackendEnded {
        /// The launch's fencing token.
        launch: u64,
        /// Why the backend ended.
        reason: String,
    },
    /// The launch was cut short: the launching process was killed, or dropped its permit.
    CutShort {
        /// The launch's fencing token.
        launch: u64,
        /// The time of its charge by the wall clock, if known.
        at: Option<SystemTime>,
    },
    /// The record that counts the launches could not be read, so all attempts count as used.
    RecordUnreadable,
}

impl ExhaustionReason {
    /// Returns the stable short name, without anybody's own words: `launch_failed`, `not_stable`, `backend_ended`, `cut_short`
    /// or `record_unreadable`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::LaunchFailed { .. } => "launch_failed",
            Self::NotStable { .. } => "not_stable",
            Self::BackendEnded { .. } => "backend_ended",
            Self::CutShort { .. } => "cut_short",
            Self::RecordUnreadable => "record_unreadable",
        }
    }

    pub(crate) fn launch_failed(message: impl Into<String>) -> Self {
        Self::LaunchFailed {
            message: message.into(),
        }
    }

    pub(crate) fn backend_ended(launch: u64, reason: impl Into<String>) -> Self {
        Self::BackendEnded {
            launch,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for ExhaustionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaunchFailed { message } if message.is_empty() => {
                f.write_str("the last launch failed")
            }
            Self::LaunchFailed { message } => write!(f, "the last launch failed: {message}"),
            Self::NotStable { stable_after, .. } => write!(
                f,
                "the last launch succeeded, but the backend did not stay up for {stable_after:?}"
            ),
            Self::BackendEnded { reason, .. } => {
                write!(f, "the backend of the last launch ended: {reason}")
            }
            Self::CutShort { launch, at } => {
                write!(f, "launch {launch} was cut short")?;
                match at.and_then(|at| at.elapsed().ok()) {
                    Some(age) => write!(f, ", begun {:.1} s ago", age.as_secs_f64()),
                    None => Ok(()),
                }
            }
            Self::RecordUnreadable => {
                f.write_str("the record of earlier launches could not be read")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_whose_message_was_lost_is_named_without_one() {
        assert_eq!(
            ExhaustionReason::launch_failed("").to_string(),
            "the last launch failed"
        );
        assert_eq!(
            ExhaustionReason::launch_failed("no such program").to_string(),
            "the last launch failed: no such program"
        );
    }
}
