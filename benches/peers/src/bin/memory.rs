//! Prints what 100,000 keys that failed once take: bytes a key while in their window, and bytes in all once they are idle.
//!
//! A program of its own, since the allocator that counts would slow down what else is measured.

use std::hint::black_box;
use std::thread::sleep;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use peers::keys::{PeerKey, VERSION, service};
use running_process::broker::server as reference;
use spawn_gate::{
    Acquired, BackendKey, InMemorySpawnLock, SpawnBudgetConfig, SpawnCoordinator, SpawnGate,
    SpawnOutcome,
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const KEYS: usize = 100_000;

/// Long enough to use all keys within it.
const WINDOW: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;

/// So many other keys are used when the window is over: idle keys are looked for when others are used.
const OTHER_KEYS: usize = 1_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().expect("a runtime");
    let budget = SpawnBudgetConfig::new(ATTEMPTS, WINDOW);

    let lock = InMemorySpawnLock::new();
    let gate = SpawnGate::builder(lock).budget(budget).build();
    measure("spawn-gate", |number, fails| {
        runtime.block_on(use_gate(&gate, number, fails));
    });

    let mut ours = SpawnCoordinator::with_config(budget);
    measure("spawn-gate coordinator", |number, fails| {
        let (key, now) = (BackendKey::nth(number), Instant::now());
        let permit = ours.try_begin(key, now).expect("an attempt is left");
        let outcome = if fails {
            SpawnOutcome::Failed
        } else {
            SpawnOutcome::Success
        };
        ours.finish(&permit.key, outcome, now);
    });

    let budget = reference::SpawnBudgetConfig::new(ATTEMPTS, WINDOW);
    let mut theirs = reference::SpawnCoordinator::with_config(budget);
    measure("running-process coordinator", |number, fails| {
        let instance = reference::instance::BrokerInstanceKey::Shared;
        let key = reference::backend_registry::BackendKey::new(instance, service(number), VERSION);
        let now = Instant::now();
        let permit = theirs.try_begin(key, now).expect("an attempt is left");
        let outcome = if fails {
            reference::SpawnOutcome::Failed
        } else {
            reference::SpawnOutcome::Success
        };
        theirs.finish(&permit.key, outcome, now);
    });
}

/// Prints a line: the two figures, and the name.
fn measure(name: &str, mut use_key: impl FnMut(usize, bool)) {
    // Whatever is made once, or grows once, is there before it is counted: also what the first failure makes, whose key then
    // succeeds and is idle.
    use_key(KEYS, true);
    for other in 0..OTHER_KEYS {
        use_key(KEYS + other, false);
    }
    let before = ALLOCATOR.current_usage();
    for number in 0..KEYS {
        use_key(number, true);
    }
    let in_window = ALLOCATOR.current_usage() - before;
    // A key may be remembered for one window more.
    for _ in 0..2 {
        sleep(WINDOW + Duration::from_millis(100));
        for other in 0..OTHER_KEYS {
            use_key(KEYS + other, false);
        }
    }
    let left = ALLOCATOR.current_usage().saturating_sub(before);
    println!("{} {left} {name}", in_window / KEYS);
}

async fn use_gate(gate: &SpawnGate<BackendKey, u64>, number: usize, fails: bool) {
    let acquired = gate.acquire(BackendKey::nth(number)).await;
    let Acquired::Led(permit) = acquired.expect("an attempt is left") else {
        unreachable!("nobody else asks");
    };
    if fails {
        black_box(permit.fail("no such program").await);
    } else {
        permit.succeed(1).await.expect("the lock is not lost");
    }
}
