//! The clock that all processes of a machine share, and the time passed on it.
//!
//! It reads two clocks, since neither is enough alone: the wall clock steps when it is set; the time since boot cannot be
//! compared across a reboot or between time namespaces.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time that another one can be subtracted from.
pub(crate) trait TimePoint: Copy {
    /// The time from `earlier` to `self`; zero if `earlier` is later.
    fn since(self, earlier: Self) -> Duration;
}

impl TimePoint for Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// One reading of the machine's clocks.
///
/// Between two readings of one boot, the time since boot counts, which nobody can set. Otherwise the wall clock counts: setting
/// it forward ends a window early. A reading in the reader's future counts as now, so setting a clock back prolongs a window by
/// at most one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ClockReading {
    /// Time since the Unix epoch by the wall clock.
    pub unix: Duration,
    /// Time since boot, suspended time included, on platforms that provide it.
    pub boot: Option<BootReading>,
}

/// A reading of the time since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BootReading {
    /// Identifies the boot and the time namespace: only times with the same id can be compared.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_hexadecimal"))]
    pub id: u128,
    /// Time since that boot.
    pub elapsed: Duration,
}

/// Serializes as text, since many formats have no integer of this size.
#[cfg(feature = "serde")]
fn as_hexadecimal<S: serde::Serializer>(id: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:032x}"))
}

impl ClockReading {
    /// Returns the wall clock's time.
    pub fn system_time(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(self.unix).unwrap_or(UNIX_EPOCH)
    }
}

impl ClockReading {
    /// Both readings' times since boot, if they are of the same boot.
    fn of_one_boot(self, other: Self) -> Option<(Duration, Duration)> {
        let (one, other) = (self.boot?, other.boot?);
        (one.id == other.id).then_some((one.elapsed, other.elapsed))
    }

    /// Whether `self` is later than `other`, in whole milliseconds, the precision of a ledger.
    pub(crate) fn is_after(self, other: Self) -> bool {
        let (one, other) = self.of_one_boot(other).unwrap_or((self.unix, other.unix));
        one.as_millis() > other.as_millis()
    }

    /// The reading that was `age` ago.
    pub(crate) fn before(self, age: Duration) -> Self {
        Self {
            unix: self.unix.saturating_sub(age),
            boot: self.boot.and_then(|boot| {
                let elapsed = boot.elapsed.checked_sub(age)?;
                Some(BootReading { elapsed, ..boot })
            }),
        }
    }
}

impl TimePoint for ClockReading {
    fn since(self, earlier: Self) -> Duration {
        let by_boot = self.of_one_boot(earlier);
        by_boot
            .and_then(|(now, then)| now.checked_sub(then))
            .unwrap_or_else(|| self.unix.saturating_sub(earlier.unix))
    }
}

/// The clock that measures a budget's window in a ledger. A seam for tests; programs use [`SystemClock`].
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
        let boot = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
        Some(boot ^ u128::from(time_namespace()?))
    }))?;
    let elapsed = clock_gettime(ClockId::Boottime);
    Some(BootReading {
        id,
        elapsed: Duration::try_from(elapsed).ok()?,
    })
}

/// The number of this process's time namespace: zero if the kernel has no time namespaces, `None` if it is unknown.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn time_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;

    match std::fs::metadata("/proc/self/ns/time") {
        Ok(namespace) => Some(namespace.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(0),
        Err(_) => None,
    }
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
    fn within_a_boot_the_time_since_boot_counts_and_otherwise_the_wall_clock() {
        let then = reading(1000, Some((1, 50)));
        let cases = [
            ("steady", reading(1010, Some((1, 60))), 10),
            ("wall set forward", reading(9010, Some((1, 60))), 10),
            ("wall set back", reading(500, Some((1, 60))), 10),
            ("wall set back a little", reading(1004, Some((1, 60))), 10),
            (
                "reboot, or another namespace",
                reading(1010, Some((2, 7))),
                10,
            ),
            ("no boot clock", reading(1010, None), 10),
        ];
        for (case, now, expected) in cases {
            assert_eq!(now.since(then), Duration::from_secs(expected), "{case}");
            assert!(now.is_after(then), "{case}");
            assert!(!then.is_after(now), "{case}");
        }
        let behind = reading(500, Some((2, 60)));
        assert_eq!(
            behind.since(then),
            Duration::ZERO,
            "a reading in the future counts as now"
        );
        assert!(then.is_after(behind));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_clock_reads_both_clocks() {
        let (one, other) = (SystemClock.now(), SystemClock.now());
        assert!(one.boot.is_some());
        assert!(other.since(one) < Duration::from_secs(3600));
    }
}
