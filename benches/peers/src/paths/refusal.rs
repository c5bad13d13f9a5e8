//! A request whose budget is used up.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use running_process::broker::server as reference;
use spawn_gate::{
    Acquired, BackendKey, InMemorySpawnLock, SpawnBeginError, SpawnBudgetConfig, SpawnCoordinator,
    SpawnGate, SpawnOutcome,
};

use super::{one_thread, repeated};
use crate::clock::thread_nanos;
use crate::keys::{PeerKey, VERSION, service};
use crate::measure::{Comparison, Plan, compare};

const PLAN: Plan = Plan::turns_of_millis(30);

/// The gate, in this comparison.
pub const REFUSED: &str = "spawn-gate `acquire`";

/// The reference in this comparison.
pub const REFERENCE: &str = "running-process coordinator in a std mutex";

/// Longer than the benchmark.
const WINDOW: Duration = Duration::from_secs(3600);

/// Compares a refusal.
pub fn refusal(path: &str) -> Comparison {
    let runtime = &one_thread();
    let gate = &runtime.block_on(used_up_gate());
    let ours = &used_up_coordinator();
    let theirs = &used_up_reference();
    let contenders = vec![
        repeated(runtime, thread_nanos, REFUSED, ours_key, async |key| {
            assert!(black_box(gate.acquire(key).await).is_err());
        }),
        repeated(
            runtime,
            thread_nanos,
            "spawn-gate coordinator in a std mutex",
            ours_key,
            async |key| {
                let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
                let refused = ours.try_begin(key, Instant::now());
                assert!(matches!(
                    refused,
                    Err(SpawnBeginError::BudgetExhausted { .. })
                ));
            },
        ),
        repeated(
            runtime,
            thread_nanos,
            REFERENCE,
            reference_key,
            async |key| {
                let mut theirs = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                let refused = theirs.try_begin(key, Instant::now());
                assert!(matches!(
                    refused,
                    Err(reference::SpawnBeginError::BudgetExhausted { .. })
                ));
            },
        ),
    ];
    compare(path, PLAN, REFERENCE, contenders)
}

fn ours_key() -> BackendKey {
    BackendKey::nth(7)
}

fn reference_key() -> reference::backend_registry::BackendKey {
    let instance = reference::instance::BrokerInstanceKey::Shared;
    reference::backend_registry::BackendKey::new(instance, service(7), VERSION)
}

/// Makes a gate that refuses the key number 7.
pub async fn used_up_gate() -> SpawnGate<BackendKey, u64> {
    let gate = SpawnGate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, WINDOW))
        .build();
    let Ok(Acquired::Led(permit)) = gate.acquire(ours_key()).await else {
        unreachable!("nobody else asks");
    };
    permit.fail("no such program").await;
    gate
}

fn used_up_coordinator() -> Mutex<SpawnCoordinator> {
    let mut ours = SpawnCoordinator::with_config(SpawnBudgetConfig::new(1, WINDOW));
    let now = Instant::now();
    ours.try_begin(ours_key(), now)
        .expect("one attempt is left");
    ours.finish(&ours_key(), SpawnOutcome::Failed, now);
    Mutex::new(ours)
}

fn used_up_reference() -> Mutex<reference::SpawnCoordinator> {
    let config = reference::SpawnBudgetConfig::new(1, WINDOW);
    let mut theirs = reference::SpawnCoordinator::with_config(config);
    let now = Instant::now();
    theirs
        .try_begin(reference_key(), now)
        .expect("one attempt is left");
    theirs.finish(&reference_key(), reference::SpawnOutcome::Failed, now);
    Mutex::new(theirs)
}
