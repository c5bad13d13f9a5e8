//! All that a seed decides before anything happens. The driver and each process derive it from the seed.

use std::time::Duration;

use crate::chance::Chance;
use crate::harm::Harm;

pub(crate) const KEYS: [&str; 3] = ["indexer", "builder", "broker"];

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) processes: usize,
    pub(crate) tasks: u64,
    pub(crate) keys: &'static [&'static str],
    pub(crate) max_attempts: u32,
    pub(crate) window: Duration,
    /// Out of a hundred: launches that fail.
    pub(crate) failures: u64,
    /// The longest launch.
    pub(crate) launch: Duration,
    /// What may be done to lock files. Without that, the promises are the strictest.
    pub(crate) harms: &'static [Harm],
    /// The number of things that the driver does.
    pub(crate) acts: u64,
}

/// A window that no round outlasts, so that all its launches are in one.
pub(crate) const ENDLESS: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        let (max_attempts, window) = chance.pick(&[
            (3, ENDLESS),
            (20, ENDLESS),
            (1_000_000, ENDLESS),
            // Soon free again, also after the ledger was damaged.
            (3, Duration::from_millis(20)),
            (3, Duration::from_millis(20)),
        ]);
        Self {
            processes: chance.between(4, 8) as usize,
            tasks: chance.between(2, 5),
            keys: &KEYS[..chance.between(1, 3) as usize],
            max_attempts,
            window,
            failures: chance.pick(&[0, 25, 70]),
            launch: Duration::from_micros(chance.pick(&[500, 4_000, 15_000])),
            harms: chance.pick(&[&Harm::ALL, &Harm::ALL, &Harm::OF_MODE, &[]]),
            acts: chance.between(20, 50),
        }
    }

    /// The chance of one process; of the driver, if it has no number.
    pub(crate) fn chance_of(seed: u64, process: Option<usize>) -> (Self, Chance) {
        let mut chance = Chance::new(seed);
        let config = Self::new(&mut chance);
        for _ in 0..process.map_or(0, |number| number + 1) {
            chance.next();
        }
        (config, chance.fork())
    }
}
