//! Counts how many flights of a key run at once, whoever claims to let only one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Watches one key.
#[derive(Debug, Default)]
pub struct Watchdog {
    running: AtomicU32,
}

/// What the watchdogs of a contender saw.
#[derive(Debug, Default)]
pub struct Sightings {
    flights: AtomicU64,
    violations: AtomicU64,
    most_at_once: AtomicU32,
}

impl Watchdog {
    /// Notes that a flight begins.
    pub fn enter(&self, sightings: &Sightings) {
        let running = self.running.fetch_add(1, SeqCst) + 1;
        sightings.flights.fetch_add(1, SeqCst);
        sightings
            .violations
            .fetch_add(u64::from(running > 1), SeqCst);
        sightings.most_at_once.fetch_max(running, SeqCst);
    }

    /// Notes that a flight ends.
    pub fn leave(&self) {
        self.running.fetch_sub(1, SeqCst);
    }
}

/// What was seen of one contender.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The contender.
    pub name: &'static str,
    /// How many flights there were.
    pub flights: u64,
    /// How many of them began while another one of the same key ran.
    pub violations: u64,
    /// How many of one key ran at once, at most.
    pub most_at_once: u32,
}

impl Sightings {
    /// Returns what was seen of the contender, which is called `name`.
    pub fn of(&self, name: &'static str) -> Seen {
        Seen {
            name,
            flights: self.flights.load(SeqCst),
            violations: self.violations.load(SeqCst),
            most_at_once: self.most_at_once.load(SeqCst),
        }
    }
}
