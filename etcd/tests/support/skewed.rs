//! The clock of a host that is set wrong.

use std::time::Duration;

use spawn_gate::budget::{ClockReading, SharedClock, SystemClock};

/// The machine's clock, ahead by so many seconds, or behind. Of another boot than any other host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Skewed {
    pub(crate) seconds: i64,
    pub(crate) boot: u128,
}

impl SharedClock for Skewed {
    fn now(&self) -> ClockReading {
        let mut now = SystemClock.now();
        let shift = Duration::from_secs(self.seconds.unsigned_abs());
        now.unix = match self.seconds < 0 {
            true => now.unix - shift,
            false => now.unix + shift,
        };
        if let Some(boot) = &mut now.boot {
            boot.id = self.boot;
        }
        now
    }
}
