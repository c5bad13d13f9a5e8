//! What an operator sees of a gate.

use std::time::Duration;

use tokio::time::Instant;

use crate::coordinator::SpawnBudgetSnapshot;
use crate::error::Stage;
use crate::flight::Claim;
use crate::lock::LockHolder;
use crate::table::Look;

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
    /// Callers that wait for its outcome, the one that asked for the launch included.
    pub waiting: usize,
    /// Who holds the spawn lock, if it waits for that and the holder is known.
    pub waiting_for: Option<LockHolder>,
}

impl<K> KeySnapshot<K> {
    pub(crate) fn new<T>(key: K, look: &Look<T>, now: Instant) -> Self {
        let mut budget = SpawnBudgetSnapshot::new(key, look.usage);
        let flight = look.flight.as_ref().and_then(|flight| {
            let (stage, waiting_for) = flight.progress()?;
            Some(FlightSnapshot {
                stage,
                age: now.saturating_duration_since(flight.began),
                attempt_number: match flight.claim {
                    Claim::Launch(attempt) => Some(attempt.number),
                    Claim::Look(_) => None,
                },
                waiting: flight.waiting(),
                waiting_for,
            })
        });
        budget.in_flight = flight.is_some();
        Self { budget, flight }
    }
}
