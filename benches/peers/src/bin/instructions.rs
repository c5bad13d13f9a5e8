//! Counts the instructions of an operation, which a noisy machine hardly changes: compare them before and after a change.
//!
//! Without arguments it runs itself in valgrind, twice for each operation: the difference of the two counts over the
//! difference of the repetitions is free of what happens once. With an operation and a number, it repeats that.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use peers::flights::{
    Asyncband, Flights, Ours, QuickCache, RawWatch, RsSingleflight, SingleflightAsync,
    WatchWithTimeout,
};
use peers::keys::PeerKey;
use peers::paths::{fan_in, file_lock, leader, refusal};
use spawn_gate::{BackendKey, FileSpawnLock, InMemorySpawnLock, SpawnGate};
use tokio::runtime::{Builder, Runtime};

/// How often an operation is repeated in the shorter run; in the longer one, twice as often.
const REPETITIONS: u64 = 1_000;

/// Followers are brought to where they wait and back again, all together: a repetition for each.
const FOLLOWERS: u64 = 1_000;

type Operation = (&'static str, fn(&Runtime, u64));

/// Governor takes no part: its clock calibrates itself for some time, so that counts differ from run to run.
const OPERATIONS: [Operation; 19] = [
    ("making a key, which is in all of these", make_keys),
    ("leader", lead::<Ours<BackendKey>>),
    ("leader, asyncband", lead::<Asyncband<BackendKey>>),
    ("leader, quick_cache", lead::<QuickCache<BackendKey>>),
    ("leader, singleflight-async", lead::<SingleflightAsync<_>>),
    ("leader, rs-singleflight", lead::<RsSingleflight<_>>),
    ("leader, `String` key", lead_strings::<Ours<_>>),
    (
        "leader, `String` key, rs-singleflight",
        lead_strings::<RsSingleflight<_>>,
    ),
    ("launch", launch),
    ("launch by hand", launch_by_hand),
    ("refusal", refuse),
    ("one of 1,000 followers", follow::<Ours<_>>),
    (
        "one of 1,000 followers, quick_cache",
        follow::<QuickCache<_>>,
    ),
    (
        "one of 1,000 followers, raw `watch` + `timeout`",
        follow::<WatchWithTimeout>,
    ),
    ("one of 1,000 followers, raw `watch`", follow::<RawWatch>),
    ("permit with the file lock, without ledger", plain_permit),
    ("permit with the file lock, with ledger", ledger_permit),
    (
        "permit with a lock file and a record, by hand",
        permit_by_hand,
    ),
    ("launch with the file lock", ledger_launch),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {
            for (name, _) in OPERATIONS {
                let counts = [1, 2].map(|times| count(name, times * REPETITIONS));
                let [short, long] = counts;
                println!("{:>8} {name}", (long - short) / REPETITIONS);
            }
            ExitCode::SUCCESS
        }
        [name, repetitions] => {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime is built");
            let found = OPERATIONS.iter().find(|(found, _)| found == name);
            let (_, repeat) = found.expect("there is such an operation");
            repeat(&runtime, repetitions.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: instructions [OPERATION REPETITIONS]");
            ExitCode::FAILURE
        }
    }
}

/// Returns the instructions of a run, as valgrind counts them.
fn count(name: &str, repetitions: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe().expect("this program has a path"));
    let output = valgrind.args([name, &repetitions.to_string()]).output();
    let output = output.expect("valgrind is installed");
    assert!(output.status.success(), "{name} fails in valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, counted) = said.split_once("Collected :").expect("it says the count");
    let counted = counted.split_whitespace().next();
    counted
        .and_then(|count| count.parse().ok())
        .expect("a number")
}

fn key() -> BackendKey {
    BackendKey::nth(7)
}

fn make_keys(_: &Runtime, repetitions: u64) {
    for _ in 0..repetitions {
        std::hint::black_box(key());
    }
}

fn lead_strings<F: Flights<String>>(runtime: &Runtime, repetitions: u64) {
    let flights = F::default();
    runtime.block_on(leader::lead(&flights, repetitions));
}

fn lead<F: Flights<BackendKey>>(runtime: &Runtime, repetitions: u64) {
    let flights = F::default();
    runtime.block_on(leader::lead(&flights, repetitions));
}

fn launch(runtime: &Runtime, repetitions: u64) {
    let gate = SpawnGate::builder(InMemorySpawnLock::new()).build();
    runtime.block_on(async {
        for _ in 0..repetitions {
            leader::launch_one(&gate, key()).await;
        }
    });
}

fn launch_by_hand(runtime: &Runtime, repetitions: u64) {
    let gate = SpawnGate::builder(InMemorySpawnLock::new()).build();
    runtime.block_on(async {
        for _ in 0..repetitions {
            leader::launch_by_hand(&gate, key()).await;
        }
    });
}

fn refuse(runtime: &Runtime, repetitions: u64) {
    runtime.block_on(async {
        let gate = refusal::used_up_gate().await;
        for _ in 0..repetitions {
            assert!(gate.acquire(key()).await.is_err());
        }
    });
}

fn follow<F: Flights<BackendKey>>(runtime: &Runtime, repetitions: u64) {
    let flights = Arc::new(F::default());
    for _ in 0..repetitions / FOLLOWERS {
        runtime.block_on(fan_in::shot(&flights, FOLLOWERS as usize));
    }
}

fn plain_permit(runtime: &Runtime, repetitions: u64) {
    with_files(runtime, FileSpawnLock::without_ledger, async |gate, _| {
        for _ in 0..repetitions {
            file_lock::take_permit(&gate, key()).await;
        }
    });
}

fn ledger_permit(runtime: &Runtime, repetitions: u64) {
    with_files(
        runtime,
        |lock| lock,
        async |gate, _| {
            for _ in 0..repetitions {
                file_lock::take_permit(&gate, key()).await;
            }
        },
    );
}

fn permit_by_hand(runtime: &Runtime, repetitions: u64) {
    with_files(
        runtime,
        |lock| lock,
        async |_, directory| {
            for _ in 0..repetitions {
                file_lock::take_by_hand(directory.join("by-hand.lock")).await;
            }
        },
    );
}

fn ledger_launch(runtime: &Runtime, repetitions: u64) {
    with_files(
        runtime,
        |lock| lock,
        async |gate, _| {
            for _ in 0..repetitions {
                leader::launch_one(&gate, key()).await;
            }
        },
    );
}

fn with_files(
    runtime: &Runtime,
    adapt: fn(FileSpawnLock) -> FileSpawnLock,
    operation: impl AsyncFnOnce(SpawnGate<BackendKey, u64>, &Path),
) {
    let directory = tempfile::tempdir().expect("a temporary directory is made");
    let lock = FileSpawnLock::new(directory.path()).expect("it serves");
    let gate = SpawnGate::builder(adapt(lock)).build();
    runtime.block_on(operation(gate, directory.path()));
}
