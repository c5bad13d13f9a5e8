//! What a request costs: alone, in a crowd, refused, and with the file lock.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use spawn_gate::{
    Acquired, BackendKey, BrokerInstanceKey, FileSpawnLock, InMemorySpawnLock, SpawnBudgetConfig,
    SpawnGate,
};
use tokio::runtime::{Builder, Runtime};

type Gate = SpawnGate<BackendKey, u64>;

fn key(service: &str) -> BackendKey {
    BackendKey::new(BrokerInstanceKey::Shared, service, "1.11.20")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn lead(gate: &Gate, key: BackendKey) {
    match gate.acquire(key).await.unwrap() {
        Acquired::Led(permit) => permit.succeed(1).await.unwrap(),
        Acquired::Joined(_) => unreachable!("nobody else asks"),
    }
}

fn leader(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("leader");
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    group.bench_function("in-memory lock", |b| {
        b.to_async(&runtime).iter(|| lead(&gate, key("indexer")));
    });
    let directory = tempfile::tempdir().unwrap();
    let gate = Gate::builder(FileSpawnLock::new(directory.path()).unwrap()).build();
    group.bench_function("file lock", |b| {
        b.to_async(&runtime).iter(|| lead(&gate, key("indexer")));
    });
    group.finish();
}

fn refusal(c: &mut Criterion) {
    let runtime = runtime();
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(3600)))
        .build();
    runtime.block_on(async {
        let Acquired::Led(permit) = gate.acquire(key("indexer")).await.unwrap() else {
            unreachable!("nobody else asks");
        };
        permit.fail("no such program").await;
    });
    c.bench_function("refusal", |b| {
        b.to_async(&runtime)
            .iter(|| async { black_box(gate.acquire(key("indexer")).await).is_err() });
    });
}

/// All of `callers` ask for one key; one of them leads, and the others hear its value.
async fn crowd(gate: &Gate, callers: u64) {
    let permit = match gate.acquire(key("indexer")).await.unwrap() {
        Acquired::Led(permit) => permit,
        Acquired::Joined(_) => unreachable!("nobody else asks yet"),
    };
    let followers: Vec<_> = (1..callers)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.acquire(key("indexer")).await.unwrap() })
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
    let flight = gate.snapshot(key("indexer")).await.flight;
    flight.map_or(0, |flight| flight.waiting)
}

fn contention(c: &mut Criterion) {
    let runtime = runtime();
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    let mut group = c.benchmark_group("callers on one key");
    group.sample_size(20);
    for callers in [10, 100, 1_000, 10_000] {
        group.throughput(Throughput::Elements(callers));
        group.bench_with_input(
            BenchmarkId::from_parameter(callers),
            &callers,
            |b, &callers| {
                b.to_async(&runtime).iter(|| crowd(&gate, callers));
            },
        );
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    leader(&mut criterion);
    refusal(&mut criterion);
    contention(&mut criterion);
    criterion.final_summary();
}
