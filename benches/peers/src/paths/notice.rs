//! A process waits for the lock that another one holds: how soon it notices the release, and what it costs to wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use async_fd_lock::LockWrite;
use rustix::fs::{FlockOperation, flock};
use spawn_gate::{Acquired, BackendKey, FileSpawnLock, LaunchPermit, SpawnGate};
use tokio::time::timeout;

use super::one_thread;
use crate::clock::nanos;
use crate::file_by_hand::{self, IfHeld};
use crate::keys::PeerKey;
use crate::measure::{Comparison, summarize};
use crate::other::{Other, play};

/// The role of a process that waits for a lock.
pub const WAITER: &str = "waiter";

const SAMPLES: u64 = 64;

type Gate = SpawnGate<BackendKey, u64>;

/// The gate, in this comparison.
pub const NOTICED: &str = "spawn-gate";

/// The reference in this comparison.
pub const BLOCKED: &str = "by hand: a thread blocked, the same record charged and settled";

/// Compares the time from the holder's release to the waiter's permit. The release begins when it is asked for.
///
/// # Panics
///
/// If the directory for temporary files cannot be used.
pub fn notice(path: &str) -> Comparison {
    let directory = tempfile::tempdir().expect("a temporary directory is made");
    let mut waiter = Other::start(WAITER, directory.path(), &[]);
    let runtime = one_thread();
    let gate = gate(directory.path());
    let by_hand = by_hand_path(directory.path());
    let (mut ours, mut records, mut flocks) = (Vec::new(), Vec::new(), Vec::new());
    for sample in 0..SAMPLES {
        // Long enough that whoever tries with growing pauses has reached the longest; of different length, so that the
        // release falls anywhere in a pause.
        let hold = Duration::from_millis(80 + 7 * sample % 40);

        let permit = runtime.block_on(permit(&gate));
        waiter.tell("permit");
        thread::sleep(hold);
        let released = nanos();
        let settled = runtime.block_on(permit.succeed(1));
        settled.expect("the lock is not lost");
        ours.push(since(released, &waiter.hear()));

        let held = runtime.block_on(file_by_hand::take(by_hand.clone(), IfHeld::Fail));
        let held = held.expect("nobody else asks");
        waiter.tell("record");
        thread::sleep(hold);
        let released = nanos();
        let settled = runtime.block_on(held.succeed());
        settled.expect("the lock is not lost");
        records.push(since(released, &waiter.hear()));

        let file = lock_file(directory.path());
        waiter.tell("flock");
        thread::sleep(hold);
        let released = nanos();
        flock(&file, FlockOperation::Unlock).expect("it was locked");
        flocks.push(since(released, &waiter.hear()));
    }
    let blocked = "async-fd-lock, a thread blocked (no identity, no record, no budget)";
    let samples = vec![
        (NOTICED.to_owned(), ours),
        (BLOCKED.to_owned(), records),
        (blocked.to_owned(), flocks),
    ];
    summarize(path.to_owned(), BLOCKED, samples)
}

fn since(released: u64, noticed: &str) -> f64 {
    let noticed: u64 = noticed.parse().expect("a reading of the clock");
    noticed.saturating_sub(released) as f64
}

/// Counts the system calls of a process while it waits, a second.
///
/// # Errors
///
/// If they cannot be counted here, why.
pub fn idle_calls() -> Result<f64, String> {
    let found = Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("strace is not installed".to_owned());
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let runtime = one_thread();
    let gate = gate(directory.path());
    let permit = runtime.block_on(permit(&gate));
    let counts = [1, 6].map(|seconds| calls_within(directory.path(), seconds));
    runtime.block_on(permit.refund());
    let [short, long] = counts;
    // What both have in common is the start, the end, and the first second.
    Ok((long? - short?) / 5.0)
}

fn calls_within(directory: &Path, seconds: u64) -> Result<f64, String> {
    let counts = directory.join("calls");
    let counts_path = counts.to_str().ok_or("the directory's name is not text")?;
    let mut waiter = Other::start(
        WAITER,
        directory,
        &["strace", "-f", "-c", "-o", counts_path],
    );
    waiter.tell(&format!("idle {seconds}"));
    waiter.hear();
    drop(waiter);
    let table = std::fs::read_to_string(counts).map_err(|error| error.to_string())?;
    Ok(sum_of_calls(&table))
}

/// Adds up the fourth column, in which each line but those of the frame has the count of one system call.
fn sum_of_calls(table: &str) -> f64 {
    let lines = table.lines().filter(|line| !line.ends_with(" total"));
    let counts = lines.filter_map(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok());
    counts.sum()
}

/// Plays the role of a waiter.
pub fn play_waiter(directory: &Path) {
    let runtime = one_thread();
    let gate = gate(directory);
    play(|line| match line.split_once(' ') {
        None if line == "permit" => runtime.block_on(async {
            let permit = permit(&gate).await;
            let noticed = nanos();
            permit.refund().await;
            noticed.to_string()
        }),
        None if line == "record" => runtime.block_on(async {
            let held = file_by_hand::take(by_hand_path(directory), IfHeld::Wait).await;
            let noticed = nanos();
            let settled = held.expect("it is free in time").succeed().await;
            settled.expect("the lock is not lost");
            noticed.to_string()
        }),
        None => runtime.block_on(async {
            let file = tokio::fs::File::from_std(open(&flock_path(directory)));
            let _lock = file.lock_write().await.expect("it can be locked");
            nanos().to_string()
        }),
        Some((_, seconds)) => runtime.block_on(async {
            let limit = Duration::from_secs(seconds.parse().expect("a number"));
            let waited = timeout(limit, gate.acquire(key())).await;
            assert!(waited.is_err(), "it is held meanwhile");
            String::new()
        }),
    });
}

fn key() -> BackendKey {
    BackendKey::nth(7)
}

fn gate(directory: &Path) -> Gate {
    let lock = FileSpawnLock::new(directory.join("locks")).expect("the directory serves");
    SpawnGate::builder(lock).build()
}

async fn permit(gate: &Gate) -> LaunchPermit<BackendKey, u64> {
    match gate.acquire(key()).await.expect("it is free in time") {
        Acquired::Led(permit) => permit,
        Acquired::Joined(_) => unreachable!("nobody else asks in this process"),
    }
}

fn by_hand_path(directory: &Path) -> PathBuf {
    directory.join("by-hand")
}

fn flock_path(directory: &Path) -> PathBuf {
    directory.join("flock")
}

fn open(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("it opens")
}

fn lock_file(directory: &Path) -> File {
    let file = open(&flock_path(directory));
    flock(&file, FlockOperation::LockExclusive).expect("it can be locked");
    file
}
