//! All that a seed decides before anything happens.

use crate::chance::Chance;
use crate::model::{Millis, Rules};

/// All that a seed decides before anything happens.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) is_real: bool,
    pub(crate) has_ledger: bool,
    /// The lock answers at once where it can.
    pub(crate) at_once: bool,
    pub(crate) tells_loss: bool,
    pub(crate) gates: usize,
    pub(crate) keys: usize,
    pub(crate) rules: Rules,
    pub(crate) lock: Millis,
    pub(crate) discover: Millis,
    pub(crate) launch: Millis,
    pub(crate) follow: Millis,
    pub(crate) drain: Millis,
    pub(crate) steps: u64,
    /// Out of a hundred: calls of the lock that are late, that fail, and launches that fail.
    pub(crate) slow: u64,
    pub(crate) faults: u64,
    pub(crate) failures: u64,
    /// Out of a hundred: steps in which the world takes a lock away.
    pub(crate) losses: u64,
    /// Out of a hundred: steps in which a request is frozen or dropped.
    pub(crate) leashes: u64,
    /// The longest time between two steps.
    pub(crate) stride: Millis,
}

impl Config {
    pub(crate) fn new(is_real: bool, chance: &mut Chance) -> Self {
        let has_ledger = is_real || chance.percent(70);
        let often = |chance: &mut Chance, most| match chance.percent(50) {
            true => chance.below(most),
            false => 0,
        };
        Self {
            is_real,
            has_ledger,
            at_once: !has_ledger && chance.percent(50),
            tells_loss: chance.percent(50),
            gates: usize::try_from(chance.between(1, 3)).unwrap(),
            keys: usize::try_from(chance.between(1, 2)).unwrap(),
            rules: Rules {
                max: u32::try_from(chance.between(1, 4)).unwrap(),
                window: chance.pick(&[700, 3_000, 10_000, 30_000]),
                is_sliding: chance.percent(50),
                stable_after: chance.percent(40).then_some(chance.between(500, 9_000)),
            },
            lock: chance.pick(&[0, 500, 5_000, 40_000]),
            discover: chance.pick(&[500, 3_000]),
            launch: chance.pick(&[1_000, 8_000]),
            follow: chance.pick(&[1_000, 9_000, 60_000]),
            drain: chance.pick(&[0, 1_000, 30_000]),
            steps: if is_real { 40 } else { 110 },
            slow: if is_real { 0 } else { often(chance, 30) },
            faults: if is_real { 0 } else { often(chance, 10) },
            failures: chance.pick(&[10, 60, 95]),
            losses: often(chance, if is_real { 4 } else { 10 }),
            leashes: often(chance, 35),
            stride: chance.pick(&[20, 300, 2_000]),
        }
    }
}
