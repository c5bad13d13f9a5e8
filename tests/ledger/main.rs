//! The ledger (promises 20-24 and 30-33) between gates that share only a lock directory, with a clock that the test steps: the
//! record, the budget of all processes, the results for waiting processes, and writes that fail.

mod budget;
mod join;
mod record;
#[path = "../support/mod.rs"]
mod support;
mod waiters;
mod writes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use spawn_gate::admin::FlightSnapshot;
use spawn_gate::lock::SpawnLock;
use spawn_gate::{FileSpawnLock, SpawnBudgetConfig, SpawnGate, SpawnGateBuilder};

use crate::support::script::Script;
use crate::support::step_clock::StepClock;

type Gate = SpawnGate<&'static str, u32>;

const KEY: &str = "indexer";
const WINDOW: Duration = Duration::from_secs(30);

fn builder(
    lock: impl SpawnLock<&'static str>,
    clock: &StepClock,
) -> SpawnGateBuilder<&'static str, u32> {
    Gate::builder(lock)
        .budget(SpawnBudgetConfig::new(3, WINDOW))
        .clock(clock.clone())
}

/// A fresh gate on the directory, as another process, or the next one after a crash, would have it.
fn gate(directory: &Path, clock: &StepClock) -> Gate {
    builder(FileSpawnLock::new(directory).unwrap(), clock).build()
}

fn lock_path(directory: &Path) -> PathBuf {
    FileSpawnLock::new(directory).unwrap().path_of(&KEY)
}

/// Lets other tasks run until the flight of [`KEY`] is so.
async fn until_flight(gate: &Gate, is_so: impl Fn(&FlightSnapshot) -> bool) {
    while !gate.snapshot(KEY).await.flight.as_ref().is_some_and(&is_so) {
        tokio::task::yield_now().await;
    }
}

/// Finds a backend running.
fn finder() -> Script {
    Script::launching(|_| async { panic!("one is running") }).discovering(|_| async { Ok(Some(9)) })
}
