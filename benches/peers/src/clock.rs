//! Clocks, each a function that reads it: one goes on whatever happens, one only while this thread runs, and one only while
//! processes run that this one started.

use std::thread;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
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

/// Reads how long the processes have been running, in nanoseconds, that this one started and that it has waited for.
///
/// # Panics
///
/// If the system does not tell.
pub fn children_nanos() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage is told");
    let times = [usage.user_time(), usage.system_time()];
    let micros = times.map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    micros.iter().sum::<i64>() as u64 * 1_000
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Blocks until that reading of [`nanos`].
pub fn sleep_until(reading: u64) {
    thread::sleep(Duration::from_nanos(reading.saturating_sub(nanos())));
}
