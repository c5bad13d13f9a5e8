//! What is left of the budget, packed into four bytes.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::budget::whole_millis;

/// What is left of the budget after a failed launch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AttemptsLeft(NonZeroU32);

impl fmt::Debug for AttemptsLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptsLeft")
            .field("remaining", &self.remaining())
            .field("retry_after", &self.retry_after())
            .finish()
    }
}

/// Set if no attempt is left; the lower bits are then a time.
const NONE_LEFT: u32 = 1 << 31;

/// Set if that time is in seconds (more than 12 days) and not in milliseconds.
const IN_SECONDS: u32 = 1 << 30;

impl AttemptsLeft {
    pub(crate) fn new(remaining: u32, retry_after: Option<Duration>) -> Self {
        // Packed: larger errors make a follower's return measurably slower.
        let packed = match retry_after.map(whole_millis) {
            Some(time) if remaining == 0 => NONE_LEFT | packed_time(time),
            _ => remaining.min(NONE_LEFT - 2) + 1,
        };
        Self(NonZeroU32::new(packed).unwrap_or(NonZeroU32::MIN))
    }

    /// Returns how many attempts are left.
    pub fn remaining(self) -> u32 {
        match self.0.get() {
            packed if packed & NONE_LEFT != 0 => 0,
            packed => packed - 1,
        }
    }

    /// Returns the time until an attempt is free again, rounded up, if none is left.
    pub fn retry_after(self) -> Option<Duration> {
        let packed = self.0.get();
        let time = u64::from(packed & !(NONE_LEFT | IN_SECONDS));
        (packed & NONE_LEFT != 0).then(|| match packed & IN_SECONDS {
            0 => Duration::from_millis(time),
            _ => Duration::from_secs(time),
        })
    }
}

fn packed_time(time: Duration) -> u32 {
    match u32::try_from(time.as_millis()) {
        Ok(millis) if millis < IN_SECONDS => millis,
        _ => {
            let seconds = time.as_secs().saturating_add(1);
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            IN_SECONDS | seconds.min(IN_SECONDS - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_as_it_was_noted() {
        let cases = [
            (3, None, 3, None),
            (u32::MAX, None, NONE_LEFT - 2, None),
            (0, None, 0, None),
            (0, Some((0, 1)), 0, Some((0, 1_000_000))),
            (0, Some((30, 0)), 0, Some((30, 0))),
            (
                0,
                Some((1_073_741, 823_000_000)),
                0,
                Some((1_073_741, 823_000_000)),
            ),
            (0, Some((1_073_741, 824_000_000)), 0, Some((1_073_742, 0))),
            (0, Some((30 * 86_400, 0)), 0, Some((30 * 86_400 + 1, 0))),
            (
                0,
                Some((u64::MAX, 0)),
                0,
                Some((u64::from(IN_SECONDS) - 1, 0)),
            ),
        ];
        for (remaining, retry_after, told_remaining, told) in cases {
            let time = |(seconds, nanos)| Duration::new(seconds, nanos);
            let left = AttemptsLeft::new(remaining, retry_after.map(time));
            assert_eq!(
                (left.remaining(), left.retry_after()),
                (told_remaining, told.map(time))
            );
        }
    }
}
