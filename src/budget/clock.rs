//! The clock that all processes of a machine share, and the time passed on it.
//!
//! It reads two clocks, since neither is enough alone: the wall clock steps when it is set; the time since boot cannot be
//! compared across a reboot. A time namespace shifts the time since boot. The shift is taken out, since the number of a namespace
//! is reused after its end and so identifies none.

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
    /// Identifies the boot: only times with the same id can be compared.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_hexadecimal"))]
    pub id: u128,
    /// Time since that boot, the same in all time namespaces.
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

    static BOOT: OnceLock<Option<(u128, i128)>> = OnceLock::new();
    let (id, shift) = (*BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
        Some((id, namespace_shift()?))
    }))?;
    let here = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
    let nanos = u64::try_from(i128::try_from(here.as_nanos()).ok()? - shift).ok()?;
    Some(BootReading {
        id,
        elapsed: Duration::from_nanos(nanos),
    })
}

/// By how many nanoseconds this process's time namespace shifts the time since boot; `None` if that is unknown.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn namespace_shift() -> Option<i128> {
    use std::os::unix::fs::MetadataExt;

    let number = |path: &str| std::fs::metadata(path).map(|namespace| namespace.ino());
    shift_of(
        number("/proc/self/ns/time"),
        number("/proc/self/ns/time_for_children"),
        || std::fs::read_to_string("/proc/self/timens_offsets").ok(),
    )
}

/// The shift of the namespace `here`. `offsets` are those of the namespace that the `children` of this process are made in.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn shift_of(
    here: std::io::Result<u64>,
    children: std::io::Result<u64>,
    offsets: impl FnOnce() -> Option<String>,
) -> Option<i128> {
    match here {
        // The kernel has no time namespaces.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(0),
        here if here.as_ref().ok() == children.as_ref().ok() => shift_in(&offsets()?),
        _ => None,
    }
}

/// The shift of the time since boot in the kernel's list, in nanoseconds.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn shift_in(offsets: &str) -> Option<i128> {
    let mut fields = offsets
        .lines()
        .find_map(|line| line.strip_prefix("boottime"))?
        .split_whitespace();
    let mut next = || fields.next()?.parse::<i64>().ok().map(i128::from);
    let (seconds, nanos) = (next()?, next()?);
    Some(seconds * 1_000_000_000 + nanos)
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

    #[test]
    #[cfg(target_os = "linux")]
    fn the_shift_of_a_time_namespace_is_read() {
        let offsets = "monotonic  -7  5\nboottime   100000  250\n";
        assert_eq!(shift_in(offsets), Some(100_000 * 1_000_000_000 + 250));
        assert_eq!(
            shift_in("boottime -2 999999999\n"),
            Some(-2_000_000_000 + 999_999_999)
        );
        assert_eq!(shift_in("monotonic 0 0\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_shift_is_unknown_if_children_are_made_in_another_time_namespace() {
        use std::io::ErrorKind::{NotFound, PermissionDenied};

        let offsets = || Some("boottime 1 2\n".to_owned());
        let shift = |here, children| shift_of(here, children, offsets);
        assert_eq!(shift(Ok(7), Ok(7)), Some(1_000_000_002));
        assert_eq!(shift(Ok(7), Ok(8)), None);
        assert_eq!(shift(Ok(7), Err(PermissionDenied.into())), None);
        assert_eq!(shift(Err(PermissionDenied.into()), Ok(7)), None);
        assert_eq!(shift(Err(NotFound.into()), Err(NotFound.into())), Some(0));
        assert_eq!(shift_of(Ok(7), Ok(7), || None), None);
    }

    /// In a child: prints the time since boot.
    #[test]
    #[cfg(target_os = "linux")]
    #[ignore = "the process in another time namespace"]
    fn print_boot_reading() {
        let boot = SystemClock.now().boot.unwrap();
        println!("@@ {} {}", boot.id, boot.elapsed.as_secs());
    }

    /// Where no time namespace can be made (in many containers), this is left out.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_time_since_boot_is_the_same_in_all_time_namespaces() {
        let output = std::process::Command::new("unshare")
            .args(["--time", "--boottime", "100000", "--fork"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "budget::clock::tests::print_boot_reading"])
            .args(["--ignored", "--nocapture"])
            .output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let Some(line) = text.iter().find_map(|text| text.split_once("@@ ")) else {
            eprintln!("skipped: no time namespace can be made");
            return;
        };
        let mut fields = line.1.split_whitespace();
        let here = SystemClock.now().boot.unwrap();
        assert_eq!(fields.next().unwrap(), here.id.to_string());
        let there: u64 = fields.next().unwrap().parse().unwrap();
        assert!(here.elapsed.as_secs().abs_diff(there) < 3600);
    }
}
