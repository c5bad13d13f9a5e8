//! A histogram of durations, by the boundaries that OpenTelemetry recommends for seconds.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One more than there are boundaries: the last bucket has none.
const BUCKETS: usize = DurationHistogram::BOUNDS.len() + 1;

/// Durations, counted by size.
///
/// ```
/// use spawn_gate::admin::DurationHistogram;
///
/// let bounds = DurationHistogram::BOUNDS.map(|bound| bound.as_secs_f64());
/// assert_eq!(bounds[..3], [0.005, 0.01, 0.025]);
/// assert_eq!(bounds.last(), Some(&120.0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DurationHistogram {
    /// How many there were.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// How many there were in each bucket: up to and including the bound at the same place in [`BOUNDS`](Self::BOUNDS), and above
    /// the bound before it. The last bucket has what is longer than all bounds.
    pub buckets: [u64; BUCKETS],
}

impl DurationHistogram {
    /// The upper bounds of the buckets: those that OpenTelemetry recommends for seconds, and 30, 60 and 120 seconds, since a
    /// launch may take that long.
    pub const BOUNDS: [Duration; 17] = [
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(75),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_millis(750),
        Duration::from_secs(1),
        Duration::from_millis(2500),
        Duration::from_secs(5),
        Duration::from_millis(7500),
        Duration::from_secs(10),
        Duration::from_secs(30),
        Duration::from_secs(60),
        Duration::from_secs(120),
    ];

    /// Returns each bound with the number of durations up to it, as a Prometheus page shows them. What is longer than all
    /// bounds is only in [`count`](Self::count).
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let mut total = 0;
        let bounds = Self::BOUNDS.into_iter().zip(self.buckets);
        bounds.map(move |(bound, count)| {
            total += count;
            (bound, total)
        })
    }
}

/// What a histogram is counted with.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    /// In nanoseconds, which is enough for five centuries.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn record(&self, duration: Duration) {
        let bounds = &DurationHistogram::BOUNDS;
        let bucket = bounds.iter().position(|bound| duration <= *bound);
        let bucket = &self.buckets[bucket.unwrap_or(bounds.len())];
        bucket.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, total: &mut DurationHistogram) {
        let here = array::from_fn::<_, BUCKETS, _>(|at| self.buckets[at].load(Ordering::Relaxed));
        for (total, count) in total.buckets.iter_mut().zip(here) {
            *total += count;
        }
        total.count += here.iter().sum::<u64>();
        total.sum += Duration::from_nanos(self.sum.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise 64. The bounds are a contract: dashboards and alerts have them.
    #[test]
    fn the_bounds_are_those_of_opentelemetry_and_three_for_long_launches() {
        let recommended = [
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        ];
        let bounds = DurationHistogram::BOUNDS.map(|bound| bound.as_secs_f64());
        assert_eq!(bounds[..14], recommended);
        assert_eq!(bounds[14..], [30.0, 60.0, 120.0]);
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_the_last_bucket_has_none() {
        let histogram = Histogram::default();
        for millis in [0, 5, 6, 120_000, 120_001] {
            histogram.record(Duration::from_millis(millis));
        }
        let mut view = DurationHistogram::default();
        histogram.add_to(&mut view);
        assert_eq!((view.count, view.sum), (5, Duration::from_millis(240_012)));
        assert_eq!((view.buckets[0], view.buckets[1]), (2, 1));
        assert_eq!((view.buckets[16], view.buckets[17]), (1, 1));
        let cumulative: Vec<_> = view.cumulative().collect();
        assert_eq!(cumulative[0], (Duration::from_millis(5), 2));
        assert_eq!(cumulative[16], (Duration::from_secs(120), 4));
    }
}
