//! A clock for ledgers that stands until a test steps it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::budget::{BootReading, ClockReading, SharedClock};

/// Clones are one clock.
#[derive(Clone, Debug)]
pub(crate) struct StepClock(Arc<Mutex<ClockReading>>);

impl StepClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(ClockReading {
            unix: Duration::from_secs(1_800_000_000),
            boot: Some(BootReading {
                id: 7,
                elapsed: Duration::from_secs(5000),
            }),
        })))
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut ClockReading)) {
        change(&mut self.0.lock().unwrap());
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.set(|now| {
            now.unix += by;
            if let Some(boot) = &mut now.boot {
                boot.elapsed += by;
            }
        });
    }
}

impl SharedClock for StepClock {
    fn now(&self) -> ClockReading {
        *self.0.lock().unwrap()
    }
}
