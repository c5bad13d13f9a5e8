//! The clock that all processes of a machine share, and what counts as time passed on it.
//!
//! Two clocks are read, because neither can be trusted alone: the wall clock steps when it is set; the time since boot says
//! nothing across a reboot, and in another time namespace it is off by any amount while the boot id is the same.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time from which the time passed can be told.
pub(crate) trait TimePoint: Copy {
    /// The time from `earlier` to `self`; zero if that is not in the past, [`Duration::MAX`] if it cannot be told.
    fn since(self, earlier: Self) -> Duration;
}

impl TimePoint for Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// One reading of the machine's clocks.
///
/// Between two readings the shorter of the times that the clocks give counts, as long as a clock has not run backwards; so a
/// step of one clock can make a budget's window longer by at most one window, and never ends it early. If no clock tells
/// (after a reboot with the wall clock set back), the window is taken as over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Time since the Unix epoch by the wall clock.
    pub unix: Duration,
    /// Time since boot, suspended time included, where the platform tells it.
    pub boot: Option<BootReading>,
}

/// A reading of the time since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootReading {
    /// Which boot: the kernel's random id for it.
    pub id: u128,
    /// Time since that boot.
    pub elapsed: Duration,
}

impl ClockReading {
    /// Returns the wall clock's time.
    pub fn system_time(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(self.unix).unwrap_or(UNIX_EPOCH)
    }
}

impl TimePoint for ClockReading {
    fn since(self, earlier: Self) -> Duration {
        let by_wall = self.unix.checked_sub(earlier.unix);
        let by_boot = match (self.boot, earlier.boot) {
            (Some(now), Some(then)) if now.id == then.id => now.elapsed.checked_sub(then.elapsed),
            _ => None,
        };
        match (by_wall, by_boot) {
            (Some(wall), Some(boot)) => wall.min(boot),
            (Some(told), None) | (None, Some(told)) => told,
            (None, None) => Duration::MAX,
        }
    }
}

/// The clock by which processes that share a ledger measure a budget's window. A seam for tests; programs use
/// [`SystemClock`].
pub trait SharedClock: fmt::Debug + Send + Sync + 'static {
    /// Reads the clocks.
    fn now(&self) -> ClockReading;
}

/// The machine's own clocks: the wall clock everywhere, and on Linux the time since boot as well.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SharedClock for SystemClock {
    fn now(&self) -> ClockReading {
        ClockReading {
            // A clock before 1970 reads as 1970.
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            boot: boot_reading(),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_reading() -> Option<BootReading> {
    use rustix::time::{ClockId, clock_gettime};
    use std::sync::OnceLock;

    static BOOT_ID: OnceLock<Option<u128>> = OnceLock::new();
    let id = (*BOOT_ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
    }))?;
    let elapsed = clock_gettime(ClockId::Boottime);
    Some(BootReading {
        id,
        elapsed: Duration::try_from(elapsed).ok()?,
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boot_reading() -> Option<BootReading> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(unix: u64, boot: Option<(u128, u64)>) -> ClockReading {
        ClockReading {
            unix: Duration::from_secs(unix),
            boot: boot.map(|(id, elapsed)| BootReading {
                id,
                elapsed: Duration::from_secs(elapsed),
            }),
        }
    }

    #[test]
    fn the_shorter_of_the_times_that_the_clocks_give_counts() {
        let then = reading(1000, Some((1, 50)));
        let cases = [
            ("steady", reading(1010, Some((1, 60))), 10),
            ("wall set forward", reading(9010, Some((1, 60))), 10),
            ("wall set back", reading(500, Some((1, 60))), 10),
            (
                "other time namespace",
                reading(1010, Some((1, 100_060))),
                10,
            ),
            ("its opposite", reading(1010, Some((1, 3))), 10),
            ("reboot", reading(1010, Some((2, 60))), 10),
            ("no boot clock", reading(1010, None), 10),
        ];
        for (case, now, expected) in cases {
            assert_eq!(now.since(then), Duration::from_secs(expected), "{case}");
        }
        let lost = reading(500, Some((2, 60)));
        assert_eq!(lost.since(then), Duration::MAX, "reboot and wall set back");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_clock_reads_both_clocks() {
        let (one, other) = (SystemClock.now(), SystemClock.now());
        assert!(one.boot.is_some());
        assert!(other.since(one) < Duration::from_secs(3600));
    }
}
