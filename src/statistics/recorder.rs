//! What a gate counts with. A request counts with one relaxed increment, at most, and cores that serve different keys count
//! at different places.

use std::array;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{DurationHistogram, Histogram};
use super::view::{ActiveFlights, RequestCounts, Statistics};
use crate::error::{ErrorType, GateError};
use crate::util::shard_index;

/// As many as the registry has shards.
const STRIPES: usize = 16;

#[derive(Debug)]
pub(crate) struct Recorder {
    stripes: Box<[Stripe; STRIPES]>,
    failed_launches: ByErrorType,
    /// Taken, found by another process, leader gone.
    lock_waits: [Histogram; 3],
    failed_lock_waits: ByErrorType,
    locks_lost: AtomicU64,
}

/// What is counted often. Aligned to two cache lines, since processors fetch pairs of them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    requests: [AtomicU64; 5],
    launched: Histogram,
}

/// Made for the kinds of errors that happen.
#[derive(Debug, Default)]
struct ByErrorType([OnceLock<Box<Histogram>>; ErrorType::ALL.len()]);

/// How a request returned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Led,
    Joined,
    Discovered,
    Refused,
    Failed,
}

/// How a launch ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LaunchEnd {
    Launched,
    Failed(ErrorType),
}

/// How a wait for the lock ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LockWaitEnd {
    Acquired,
    Discovered,
    LeaderGone,
    Failed(ErrorType),
}

impl From<&GateError> for Request {
    fn from(error: &GateError) -> Self {
        match error {
            GateError::BudgetExhausted(_) => Self::Refused,
            _ => Self::Failed,
        }
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            stripes: Box::new(array::from_fn(|_| Stripe::default())),
            failed_launches: ByErrorType::default(),
            lock_waits: Default::default(),
            failed_lock_waits: ByErrorType::default(),
            locks_lost: AtomicU64::new(0),
        }
    }

    /// Counts a request for the key with this hash.
    #[inline]
    pub(crate) fn request(&self, hash: u64, how: Request) {
        self.stripe(hash).requests[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a launch of the key with this hash.
    pub(crate) fn launch(&self, hash: u64, end: LaunchEnd, took: Duration) {
        match end {
            LaunchEnd::Launched => self.stripe(hash).launched.record(took),
            LaunchEnd::Failed(error) => self.failed_launches.record(error, took),
        }
    }

    pub(crate) fn lock_wait(&self, end: LockWaitEnd, took: Duration) {
        match end {
            LockWaitEnd::Acquired => self.lock_waits[0].record(took),
            LockWaitEnd::Discovered => self.lock_waits[1].record(took),
            LockWaitEnd::LeaderGone => self.lock_waits[2].record(took),
            LockWaitEnd::Failed(error) => self.failed_lock_waits.record(error, took),
        }
    }

    pub(crate) fn lock_lost(&self) {
        self.locks_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers now. Flights and followers are not counted here.
    pub(crate) fn view(&self, active_flights: ActiveFlights, active_followers: u64) -> Statistics {
        let count = |how: Request| -> u64 {
            let stripes = self.stripes.iter();
            let counts =
                stripes.map(|stripe| stripe.requests[how as usize].load(Ordering::Relaxed));
            counts.sum()
        };
        let mut launches = self.failed_launches.view();
        let mut launched = DurationHistogram::default();
        for stripe in &*self.stripes {
            stripe.launched.add_to(&mut launched);
        }
        insert(&mut launches, "launched", launched);
        let mut lock_waits = self.failed_lock_waits.view();
        for (name, waits) in ["acquired", "discovered", "leader_gone"]
            .iter()
            .zip(&self.lock_waits)
        {
            let mut view = DurationHistogram::default();
            waits.add_to(&mut view);
            insert(&mut lock_waits, name, view);
        }
        Statistics {
            requests: RequestCounts {
                led: count(Request::Led),
                joined: count(Request::Joined),
                discovered: count(Request::Discovered),
                refused: count(Request::Refused),
                failed: count(Request::Failed),
            },
            launches,
            lock_waits,
            active_flights,
            active_followers,
            locks_lost: self.locks_lost.load(Ordering::Relaxed),
        }
    }

    fn stripe(&self, hash: u64) -> &Stripe {
        &self.stripes[shard_index(hash, STRIPES)]
    }
}

impl ByErrorType {
    fn record(&self, error: ErrorType, took: Duration) {
        self.0[error as usize]
            .get_or_init(Box::default)
            .record(took);
    }

    fn view(&self) -> BTreeMap<&'static str, DurationHistogram> {
        let mut views = BTreeMap::new();
        for (error, histogram) in ErrorType::ALL.iter().zip(&self.0) {
            if let Some(histogram) = histogram.get() {
                let mut view = DurationHistogram::default();
                histogram.add_to(&mut view);
                insert(&mut views, error.name(), view);
            }
        }
        views
    }
}

/// Leaves out what has not happened.
fn insert(
    views: &mut BTreeMap<&'static str, DurationHistogram>,
    name: &'static str,
    view: DurationHistogram,
) {
    if view.count > 0 {
        views.insert(name, view);
    }
}
