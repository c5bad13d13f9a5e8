//! A cap for limits.

use std::time::Duration;

/// Caps a limit, so that sums of limits and clocks do not overflow.
pub(crate) fn at_most_a_year(limit: Duration) -> Duration {
    limit.min(Duration::from_secs(365 * 24 * 60 * 60))
}
