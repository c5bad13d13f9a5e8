//! What a request costs: alone, in a crowd, among many keys, refused, and with the file lock.
//!
//! Where several callers are involved, each launch checks that no other one of its key is in progress. How this compares with
//! other crates is measured in `benches/peers`.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use spawn_gate::{
    Acquired, BackendKey, BackendLauncher, BoxError, BrokerInstanceKey, FileSpawnLock,
    InMemorySpawnLock, LaunchPermit, SpawnBudgetConfig, SpawnGate, async_trait,
};
use tokio::runtime::{Builder, Runtime};

type Gate = SpawnGate<BackendKey, u64>;
type Permit = LaunchPermit<BackendKey, u64>;

fn key(number: usize) -> BackendKey {
    BackendKey::new(
        BrokerInstanceKey::Shared,
        format!("service-{number}"),
        "1.11.20",
    )
}

fn in_memory() -> Gate {
    Gate::builder(InMemorySpawnLock::new()).build()
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn permit(gate: &Gate, key: BackendKey) -> Permit {
    match gate.acquire(key).await.unwrap() {
        Acquired::Led(permit) => permit,
        Acquired::Joined(_) => unreachable!("nobody else asks"),
    }
}

async fn lead(gate: &Gate, key: BackendKey) {
    permit(gate, key).await.succeed(1).await.unwrap();
}

/// Measures `operation` on a key that was made before the clock starts.
fn with_key<F: Future>(
    c: &mut Criterion,
    name: &str,
    runtime: &Runtime,
    operation: impl Fn(BackendKey) -> F,
) {
    c.bench_function(name, |b| {
        b.to_async(runtime)
            .iter_batched(|| key(7), &operation, BatchSize::SmallInput);
    });
}

fn leader(c: &mut Criterion) {
    let runtime = one_thread();
    let gate = &in_memory();
    with_key(c, "leader/acquire and settle", &runtime, |key| {
        lead(gate, key)
    });
    with_key(c, "leader/launch", &runtime, async |key| {
        gate.launch(key, Trivial).await.unwrap().value
    });
    c.bench_function("leader/settle", |b| {
        // By hand, since a permit is made by async code.
        b.to_async(&runtime).iter_custom(async |times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let permit = permit(gate, key(7)).await;
                let began = Instant::now();
                permit.succeed(1).await.unwrap();
                took += began.elapsed();
            }
            took
        });
    });
}

struct Trivial;

#[async_trait]
impl BackendLauncher<BackendKey, u64> for Trivial {
    async fn discover(&self, _key: &BackendKey) -> Result<Option<u64>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _permit: &Permit) -> Result<u64, BoxError> {
        Ok(1)
    }
}

fn file_lock(c: &mut Criterion) {
    let runtime = one_thread();
    let directory = tempfile::tempdir().unwrap();
    let lock = |name| FileSpawnLock::new(directory.path().join(name)).unwrap();
    let gate = &Gate::builder(lock("plain").without_ledger()).build();
    with_key(c, "file lock/without ledger", &runtime, |key| {
        lead(gate, key)
    });
    let gate = &Gate::builder(lock("ledger")).build();
    with_key(c, "file lock/with ledger", &runtime, |key| lead(gate, key));
}

fn refusal(c: &mut Criterion) {
    let runtime = one_thread();
    let gate = &Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(3600)))
        .build();
    runtime.block_on(async { permit(gate, key(7)).await.fail("no such program").await });
    with_key(c, "refusal", &runtime, async |key| {
        assert!(black_box(gate.acquire(key).await).is_err());
    });
}

/// All of `callers` ask for one key; one of them leads, and the others hear its value.
async fn crowd(gate: &Gate, callers: u64) {
    let permit = permit(gate, key(7)).await;
    let followers: Vec<_> = (1..callers)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.acquire(key(7)).await.unwrap() })
        })
        .collect();
    while waiting(gate).await < followers.len() {
        tokio::task::yield_now().await;
    }
    permit.succeed(1).await.unwrap();
    for follower in followers {
        assert!(
            matches!(follower.await.unwrap(), Acquired::Joined(1)),
            "launched twice"
        );
    }
}

async fn waiting(gate: &Gate) -> usize {
    let flight = gate.snapshot(key(7)).await.flight;
    flight.map_or(0, |flight| flight.waiting)
}

fn one_key(c: &mut Criterion) {
    let runtime = one_thread();
    let gate = in_memory();
    let mut group = c.benchmark_group("callers on one key");
    group.sample_size(20);
    for callers in [1, 10, 100, 1_000, 10_000] {
        group.throughput(Throughput::Elements(callers));
        group.bench_with_input(
            BenchmarkId::from_parameter(callers),
            &callers,
            |b, &callers| b.to_async(&runtime).iter(|| crowd(&gate, callers)),
        );
    }
    group.finish();
}

const KEYS: usize = 100_000;

/// One after the other, so that the table holds none of them for long.
fn many_keys(c: &mut Criterion) {
    let runtime = one_thread();
    let gate = &in_memory();
    let mut group = c.benchmark_group("many keys");
    group.sample_size(10);
    group.throughput(Throughput::Elements(KEYS as u64));
    group.bench_function("100,000 in turn", |b| {
        let keys = || (0..KEYS).map(key).collect::<Vec<_>>();
        b.to_async(&runtime).iter_batched(
            keys,
            async |keys| {
                for key in keys {
                    lead(gate, key).await;
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

const TASKS: u64 = 64;
const KEYS_OF_EACH: u64 = 500;

fn random_keys(c: &mut Criterion) {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let gate = in_memory();
    let launching: Arc<[AtomicBool]> = (0..KEYS).map(|_| AtomicBool::new(false)).collect();
    let chance = RandomState::new();
    let random = |at: (u64, u64)| (chance.hash_one(at) % KEYS as u64) as usize;

    let mut group = c.benchmark_group("random keys");
    group.sample_size(20);
    group.throughput(Throughput::Elements(TASKS * KEYS_OF_EACH));
    group.bench_function("64 tasks on 2 threads, 100,000 keys", |b| {
        let keys_of_task = |task| {
            let numbers = (0..KEYS_OF_EACH).map(|at| random((task, at)));
            numbers.map(|number| (number, key(number))).collect()
        };
        b.to_async(&runtime).iter_batched(
            || (0..TASKS).map(keys_of_task).collect::<Vec<Vec<_>>>(),
            async |keys_of_tasks| {
                let tasks = keys_of_tasks.into_iter().map(|keys| {
                    tokio::spawn(lead_or_follow(gate.clone(), Arc::clone(&launching), keys))
                });
                for task in tasks.collect::<Vec<_>>() {
                    task.await.unwrap();
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

async fn lead_or_follow(gate: Gate, launching: Arc<[AtomicBool]>, keys: Vec<(usize, BackendKey)>) {
    for (number, key) in keys {
        if let Acquired::Led(permit) = gate.acquire(key).await.unwrap() {
            assert!(!launching[number].swap(true, SeqCst), "launched twice");
            launching[number].store(false, SeqCst);
            permit.succeed(1).await.unwrap();
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    leader(&mut criterion);
    refusal(&mut criterion);
    file_lock(&mut criterion);
    one_key(&mut criterion);
    many_keys(&mut criterion);
    random_keys(&mut criterion);
    criterion.final_summary();
}
