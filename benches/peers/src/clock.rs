//! Two clocks, each a function that reads it: one goes on whatever happens, the other only while this thread runs.

use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Reads the machine's monotonic clock, in nanoseconds. Readings can be compared across processes.
pub fn nanos() -> u64 {
    read(ClockId::Monotonic)
}

/// Reads how long this thread has been running, in nanoseconds. For what never waits, it is the time taken, without that of
/// other programs which the machine ran meanwhile.
pub fn thread_nanos() -> u64 {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Blocks until that reading of [`nanos`].
pub fn sleep_until(reading: u64) {
    thread::sleep(Duration::from_nanos(reading.saturating_sub(nanos())));
}
