//! What an operator sees of a gate.

use std::time::Duration;

use crate::budget::Usage;
use crate::coordinator::SpawnBudgetSnapshot;
use crate::error::Stage;
use crate::lock::LockHolder;

/// A key's budget and flight, at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeySnapshot<K> {
    /// The budget.
    pub budget: SpawnBudgetSnapshot<K>,
    /// The flight in progress.
    pub flight: Option<FlightSnapshot>,
}

/// A flight in progress, at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightSnapshot {
    /// What it is doing: [`Stage::Lock`], [`Stage::Discover`] or [`Stage::Launch`].
    pub stage: Stage,
    /// How long it has been in progress.
    pub age: Duration,
    /// The attempt's place in its window, from 1; `None` if it may only look for a running backend.
    pub attempt_number: Option<u32>,
    /// Callers that wait for its outcome, the one that asked for the launch and those in
    /// [`close`](crate::SpawnGate::close) included.
    pub waiting: usize,
    /// Who holds the spawn lock, if it waits for that and the holder is known.
    pub waiting_for: Option<LockHolder>,
}

impl<K> KeySnapshot<K> {
    pub(crate) fn new(key: K, usage: Usage, flight: Option<FlightSnapshot>) -> Self {
        let mut budget = SpawnBudgetSnapshot::new(key, usage);
        budget.in_flight = flight.is_some();
        Self { budget, flight }
    }
}
