//! What was to be reached, and what was.

use spawn_gate::BackendKey;

use crate::flights::{Bounded, Flights, Ours, RsSingleflight, SingleflightAsync, WatchWithTimeout};
use crate::paths::file_lock::{ONE_HOP, THREE_HOPS, TWO_HOPS, WITH_LEDGER, WITHOUT_LEDGER};
use crate::paths::leader::{LAUNCH, LAUNCH_BY_HAND};
use crate::paths::notice::{BLOCKED, NOTICED};
use crate::paths::refusal::{REFERENCE, REFUSED};

/// A ratio that was to be reached.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The path, as in `paths`.
    pub path: &'static str,
    /// Whose time.
    pub of: &'static str,
    /// To whose time.
    pub to: &'static str,
    /// The ratio, at most.
    pub at_most: f64,
}

const OURS: &str = <Ours<BackendKey> as Flights<BackendKey>>::NAME;
const WATCH: &str = <WatchWithTimeout as Flights<BackendKey>>::NAME;
const BARE: &str = <RsSingleflight<BackendKey> as Flights<BackendKey>>::NAME;
const BARE_RANDOM: &str = <SingleflightAsync<BackendKey> as Flights<BackendKey>>::NAME;
const BOUNDED: &str =
    <Bounded<BackendKey, RsSingleflight<BackendKey>> as Flights<BackendKey>>::NAME;

const fn target(path: &'static str, of: &'static str, to: &'static str, at_most: f64) -> Target {
    Target {
        path,
        of,
        to,
        at_most,
    }
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    target("100 followers", OURS, WATCH, 1.0),
    target("100 followers", OURS, BOUNDED, 1.0),
    target("1,000 followers", OURS, WATCH, 1.0),
    target("1,000 followers", OURS, BOUNDED, 1.0),
    target("10,000 followers", OURS, WATCH, 1.0),
    target("10,000 followers", OURS, BOUNDED, 1.0),
    target("leader", OURS, BOUNDED, 0.75),
    target("leader", OURS, BARE, 1.2),
    target("leader, `String` key", OURS, BOUNDED, 0.8),
    target("leader, `String` key", OURS, BARE, 1.35),
    target("random keys", OURS, BARE_RANDOM, 1.0),
    target("refusal", REFUSED, REFERENCE, 1.3),
    target("launch", LAUNCH, LAUNCH_BY_HAND, 1.2),
    target("permit with the file lock", WITH_LEDGER, TWO_HOPS, 1.5),
    target("permit with the file lock", WITHOUT_LEDGER, ONE_HOP, 1.6),
    target("launch with the file lock", LAUNCH, THREE_HOPS, 1.4),
    target("notice of a release", NOTICED, BLOCKED, 1.5),
];

/// System calls a second of a process that waits, at most.
pub const MOST_IDLE_CALLS: f64 = 100.0;

/// Bytes a key in its window, at most; none are left when all are idle.
pub const MOST_BYTES: u64 = 256;
