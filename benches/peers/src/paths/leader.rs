//! One caller, one key, again and again: what it costs to lead when nobody follows.

use std::hint::black_box;
use std::time::Duration;

use spawn_gate::{
    Acquired, BackendKey, BackendLauncher, BoxError, InMemorySpawnLock, LaunchPermit, SpawnGate,
    async_trait,
};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{LIMIT, one_thread, repeated, timed};
use crate::clock::thread_nanos;
use crate::flights::{Bounded, Flights, RsSingleflight, Visitor, visit_all};
use crate::keys::PeerKey;
use crate::measure::{Comparison, Contender, Plan, compare};

const PLAN: Plan = Plan::turns_of_millis(30);

/// Compares a trivial flight, led.
pub fn leader<K: PeerKey>(path: &str) -> Comparison {
    let runtime = one_thread();
    let mut all = All(&runtime, Vec::new());
    visit_all::<K>(&mut all);
    let reference = <Bounded<K, RsSingleflight<K>> as Flights<K>>::NAME;
    compare(path, PLAN, reference, all.1)
}

struct All<'a>(&'a Runtime, Vec<Contender<'a>>);

impl<K: PeerKey> Visitor<K> for All<'_> {
    fn visit<F: Flights<K>>(&mut self) {
        let (runtime, flights) = (self.0, F::default());
        let run = move |count| runtime.block_on(lead(&flights, count));
        self.1.push(Contender::new(F::NAME, run));
    }
}

/// Leads `count` trivial flights.
pub async fn lead<K: PeerKey, F: Flights<K>>(flights: &F, count: u64) -> Duration {
    let operation = async |key| {
        black_box(flights.run(key, || async { black_box(1) }).await);
    };
    timed(thread_nanos, count, || K::nth(7), operation).await
}

/// Compares `launch` of a launcher that does nothing with its parts: a permit, and a task.
pub fn launch(path: &str) -> Comparison {
    let runtime = &one_thread();
    let gate = &SpawnGate::builder(InMemorySpawnLock::new()).build();
    let contenders = vec![
        repeated(runtime, thread_nanos, LAUNCH, key, async |key| {
            launch_one(gate, key).await;
        }),
        repeated(runtime, thread_nanos, LAUNCH_BY_HAND, key, async |key| {
            launch_by_hand(gate, key).await;
        }),
        repeated(
            runtime,
            thread_nanos,
            "`acquire` + settle + `tokio::spawn` + join (no deadline, no launcher)",
            key,
            async |key| {
                acquire_one(gate, key).await;
                spawn_one().await;
            },
        ),
        repeated(
            runtime,
            thread_nanos,
            "`acquire` + settle",
            key,
            async |key| {
                acquire_one(gate, key).await;
            },
        ),
        repeated(
            runtime,
            thread_nanos,
            "`tokio::spawn` + join",
            || (),
            async |()| spawn_one().await,
        ),
    ];
    compare(path, PLAN, LAUNCH_BY_HAND, contenders)
}

/// The gate, in the comparisons of a launch.
pub const LAUNCH: &str = "spawn-gate `launch`";

/// The reference in the comparison of a launch without files.
pub const LAUNCH_BY_HAND: &str =
    "by hand: `acquire`, a launcher's two calls, settle, in a task, with a deadline";

/// Launches with a launcher that does nothing, by the parts of `launch`.
///
/// # Panics
///
/// If it is refused.
pub async fn launch_by_hand(gate: &Gate, key: BackendKey) {
    let gate = gate.clone();
    let task = tokio::spawn(async move {
        let acquired = gate.acquire(key).await;
        let Acquired::Led(permit) = acquired.expect("nothing fails here") else {
            unreachable!("nobody else asks");
        };
        let found = Trivial.discover(permit.key()).await;
        assert!(found.expect("nothing fails here").is_none());
        let launched = Trivial.launch(&permit).await;
        let value = launched.expect("nothing fails here");
        permit.succeed(value).await.expect("the lock is not lost");
        value
    });
    let launched = timeout(LIMIT, task).await.expect("nothing takes that long");
    black_box(launched.expect("the task does not panic"));
}

type Gate = SpawnGate<BackendKey, u64>;

fn key() -> BackendKey {
    BackendKey::nth(7)
}

async fn acquire_one(gate: &Gate, key: BackendKey) {
    let Acquired::Led(permit) = gate.acquire(key).await.expect("nothing fails here") else {
        unreachable!("nobody else asks");
    };
    permit.succeed(1).await.expect("the lock is not lost");
}

async fn spawn_one() {
    let task = tokio::spawn(async { black_box(1) });
    black_box(task.await.expect("the task does not panic"));
}

/// Launches with a launcher that does nothing.
///
/// # Panics
///
/// If it is refused.
pub async fn launch_one(gate: &SpawnGate<BackendKey, u64>, key: BackendKey) {
    let launched = gate.launch(key, Trivial).await;
    black_box(launched.expect("nothing fails here").value);
}

struct Trivial;

#[async_trait]
impl BackendLauncher<BackendKey, u64> for Trivial {
    async fn discover(&self, _key: &BackendKey) -> Result<Option<u64>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _permit: &LaunchPermit<BackendKey, u64>) -> Result<u64, BoxError> {
        Ok(black_box(1))
    }
}
