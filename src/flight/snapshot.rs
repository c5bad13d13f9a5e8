//! Snapshots of a gate's keys and flights, for operators.

use std::fmt;
use std::time::Duration;

use crate::budget::{SpawnBudgetSnapshot, Usage};
use crate::error::Stage;
use crate::key::{GateKey, key_label};
use crate::lock::LockHolder;

/// A key's budget and flight, at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeySnapshot<K> {
    /// The budget.
    pub budget: SpawnBudgetSnapshot<K>,
    /// The flight in progress.
    pub flight: Option<FlightSnapshot>,
}

/// A flight in progress, at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FlightSnapshot {
    /// Its stage: [`Stage::Lock`], [`Stage::Discover`] or [`Stage::Launch`].
    pub stage: Stage,
    /// How long it has been in progress.
    pub age: Duration,
    /// The attempt's place in its window, from 1; `None` if it is not charged yet.
    pub attempt_number: Option<u32>,
    /// The number of callers that wait for its outcome, including the leader's caller and calls of
    /// [`close`](crate::SpawnGate::close).
    pub waiting: usize,
    /// The holder of the spawn lock, if the flight waits for the lock and the holder is known.
    pub waiting_for: Option<LockHolder>,
}

impl<K> KeySnapshot<K> {
    pub(crate) fn new(key: K, usage: Usage, flight: Option<FlightSnapshot>) -> Self {
        let budget = SpawnBudgetSnapshot::new(key, usage, flight.is_some());
        Self { budget, flight }
    }
}

/// `indexer: 1 of 3 attempts used; launching for 1.2s, attempt 1, callers waiting: 4`
impl<K: GateKey> fmt::Display for KeySnapshot<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", key_label(&self.budget.key), self.budget)?;
        match &self.flight {
            Some(flight) => write!(f, "; {flight}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for FlightSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = match self.stage {
            Stage::Lock => "waiting for the spawn lock",
            Stage::Discover => "looking for a running backend",
            _ => "launching",
        };
        write!(f, "{doing} for {:.1?}", self.age)?;
        if let Some(number) = self.attempt_number {
            write!(f, ", attempt {number}")?;
        }
        if let Some(holder) = &self.waiting_for {
            write!(f, " ({holder})")?;
        }
        write!(f, ", callers waiting: {}", self.waiting)
    }
}
