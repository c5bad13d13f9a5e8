//! A backend as a value, and whether it is there.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::endpoint::Endpoint;
use super::identity::ProcessIdentity;

/// A backend that was launched or found: what a launch with [`ProcessLauncher`](super::ProcessLauncher) yields.
///
/// A value, not a handle: dropping it ends nothing. End the backend with [`ProcessLauncher::stop`](super::ProcessLauncher::stop).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Backend {
    /// Its process id.
    pub pid: u32,
    /// The launch that started it: the fencing token of its permit.
    pub launch: u64,
    /// Where it listens, if that is known.
    pub endpoint: Option<Endpoint>,
    /// When its launch began, by the wall clock.
    pub started: SystemTime,
    /// Its version, see [`ProcessLauncher::version`](super::ProcessLauncher::version).
    pub version: Option<String>,
    /// Its log.
    pub log: PathBuf,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) process: ProcessIdentity,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of launch {}", self.pid, self.launch)?;
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

/// Whether a backend is there.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Presence {
    /// None is there.
    Gone,
    /// One is starting.
    Starting {
        /// Its launch.
        launch: u64,
        /// When its launch began, by the wall clock.
        since: SystemTime,
        /// What it last said with `STATUS=` of the notify protocol.
        status: Option<String>,
    },
    /// One is ready.
    Ready(Backend),
    /// One is about to end: it was stopped, or was idle.
    Leaving(Backend),
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("not running"),
            Self::Starting { launch, status, .. } => {
                write!(f, "starting: launch {launch}")?;
                match status {
                    Some(status) => write!(f, ", {status}"),
                    None => Ok(()),
                }
            }
            Self::Ready(backend) => write!(f, "ready: {backend}"),
            Self::Leaving(backend) => write!(f, "leaving: {backend}"),
        }
    }
}
