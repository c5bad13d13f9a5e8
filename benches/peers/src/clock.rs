//! A clock whose readings can be compared across processes.

use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Returns the nanoseconds on the machine's monotonic clock.
pub fn nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Blocks until that reading.
pub fn sleep_until(reading: u64) {
    thread::sleep(Duration::from_nanos(reading.saturating_sub(nanos())));
}
