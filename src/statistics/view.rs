//! The statistics of a gate at one moment, for operators.

use std::collections::BTreeMap;

use super::histogram::DurationHistogram;

/// What a gate has done since it was built, and what it does now. Returned by
/// [`SpawnGate::statistics`](crate::SpawnGate::statistics).
///
/// The numbers are those of one gate (all clones of a handle) in this process. Each is exact, but they are read one after the
/// other while requests go on. They never shrink, except for those of flights and followers.
///
/// | field | metric by the conventions of OpenTelemetry | attribute |
/// | --- | --- | --- |
/// | [`requests`](Self::requests) | counter `spawn_gate.requests` | `how` |
/// | [`launches`](Self::launches) | counter `spawn_gate.launches`, histogram `spawn_gate.launch.duration` in seconds | `outcome` |
/// | [`lock_waits`](Self::lock_waits) | histogram `spawn_gate.lock.wait.duration` in seconds | `outcome` |
/// | [`active_flights`](Self::active_flights) | up-down counter `spawn_gate.flight.active` | `stage` |
/// | [`active_followers`](Self::active_followers) | up-down counter `spawn_gate.follower.active` | none |
/// | [`locks_lost`](Self::locks_lost) | counter `spawn_gate.lock.lost` | none |
///
/// `examples/broker` in the repository makes a Prometheus page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Statistics {
    /// The requests that have returned, by how. A request that its caller drops is not counted.
    pub requests: RequestCounts,
    /// The launches that have ended, by outcome, and how long they took: from the permit to the outcome, both included.
    ///
    /// The outcome is `launched` or the [error type](crate::GateError::error_type) that the callers got. An outcome that has not
    /// happened yet has no entry. A permit that is settled with `discovered` or `refund`, or that nobody collects, is no launch.
    /// A launch that an operator ended counts once its permit is settled or dropped.
    pub launches: BTreeMap<&'static str, DurationHistogram>,
    /// The waits of flights for the spawn lock that have ended, by outcome, and how long they took.
    ///
    /// The outcome is `acquired`, `discovered` (the launch of another process was joined), `leader_gone` (the caller is gone) or
    /// the [error type](crate::GateError::error_type) that the callers got. A lock that is taken without waiting and keeps no
    /// ledger (the in-memory lock) is not counted. If the lock is lost and taken again, that is another wait.
    pub lock_waits: BTreeMap<&'static str, DurationHistogram>,
    /// The flights in progress, by stage.
    pub active_flights: ActiveFlights,
    /// The callers that wait for the flight of another caller, and calls of [`close`](crate::SpawnGate::close) and
    /// [`abort`](crate::SpawnGate::abort) that wait for a flight.
    pub active_followers: u64,
    /// How often a held spawn lock was lost, before a launch (then it was taken again) or later.
    pub locks_lost: u64,
}

/// Requests that have returned, by how. Part of [`Statistics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RequestCounts {
    /// Got the permit, or launched the backend.
    pub led: u64,
    /// Joined the flight of another caller.
    pub joined: u64,
    /// Found the backend running.
    pub discovered: u64,
    /// Refused, since no attempt was left.
    pub refused: u64,
    /// Any other error.
    pub failed: u64,
}

impl RequestCounts {
    /// Returns each count with its name: `led`, `joined`, `discovered`, `refused`, `failed`.
    pub fn by_how(&self) -> [(&'static str, u64); 5] {
        [
            ("led", self.led),
            ("joined", self.joined),
            ("discovered", self.discovered),
            ("refused", self.refused),
            ("failed", self.failed),
        ]
    }
}

/// Flights in progress, by stage. Part of [`Statistics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ActiveFlights {
    /// Looking for a running backend.
    pub discover: u64,
    /// Waiting for the spawn lock.
    pub lock: u64,
    /// Launching.
    pub launch: u64,
}

impl ActiveFlights {
    /// Returns each count with its stage: `discover`, `lock`, `launch`.
    pub fn by_stage(&self) -> [(&'static str, u64); 3] {
        [
            ("discover", self.discover),
            ("lock", self.lock),
            ("launch", self.launch),
        ]
    }
}
