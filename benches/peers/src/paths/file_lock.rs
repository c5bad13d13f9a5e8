//! A permit with the file lock, taken and settled, when nobody else wants it.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_fd_lock::LockWrite;
use running_process::broker::server as reference;
use rustix::fs::{FlockOperation, flock, fstat, stat};
use spawn_gate::{Acquired, BackendKey, FileSpawnLock, SpawnGate, async_trait};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::leader::{LAUNCH, launch_one};
use super::{LIMIT, one_thread, repeated};
use crate::clock::nanos;
use crate::file_by_hand::{self, IfHeld, newest_success};
use crate::keys::PeerKey;
use crate::measure::{Comparison, Plan, compare};

const PLAN: Plan = Plan::more_turns_of_millis(40);

/// The gate with a ledger, in the comparison of a permit.
pub const WITH_LEDGER: &str = "spawn-gate, with ledger";

/// The gate without a ledger, in the comparison of a permit.
pub const WITHOUT_LEDGER: &str = "spawn-gate, without ledger";

/// The lock with a record, in the comparison of a permit.
pub const TWO_HOPS: &str = "by hand: lock, identity, record read, charged, settled, in two hops";

/// The lock alone, in the comparison of a permit.
pub const ONE_HOP: &str = "`spawn_blocking` + raw system calls (no record, no budget)";

/// Compares a permit.
///
/// # Panics
///
/// If the directory for temporary files cannot be used.
pub fn file_lock(path: &str) -> Comparison {
    let runtime = &one_thread();
    let directory = tempfile::tempdir().expect("a temporary directory is made");
    let lock = |name: &str| FileSpawnLock::new(directory.path().join(name)).expect("it serves");
    let plain = SpawnGate::builder(lock("plain").without_ledger()).build();
    let with_ledger = SpawnGate::builder(lock("ledger")).build();
    let at = |name: &str| {
        let path = directory.path().join(name);
        move || path.clone()
    };
    let permit_of = |gate: SpawnGate<_, _>| async move |key| take_permit(&gate, key).await;
    let contenders = vec![
        repeated(runtime, nanos, WITHOUT_LEDGER, key, permit_of(plain)),
        repeated(runtime, nanos, WITH_LEDGER, key, permit_of(with_ledger)),
        repeated(runtime, nanos, TWO_HOPS, at("by-hand.lock"), async |path| {
            take_by_hand(path).await;
        }),
        repeated(runtime, nanos, ONE_HOP, at("hop.lock"), async |path| {
            // The lock is given back on this thread: that needs no wait.
            let locked = spawn_blocking(move || raw_lock(&path)).await;
            raw_unlock(locked.expect("it does not panic"));
        }),
        repeated(
            runtime,
            nanos,
            "running-process `acquire_spawn_lock` in `spawn_blocking` (no record, no budget)",
            at("reference.lock"),
            async |path| {
                let locked = spawn_blocking(move || reference::acquire_spawn_lock(path)).await;
                drop(locked.expect("it does not panic").expect("it is free"));
            },
        ),
        repeated(
            runtime,
            nanos,
            "async-fd-lock (no identity, no record, no budget)",
            at("async-fd.lock"),
            async |path| {
                let mut options = tokio::fs::OpenOptions::new();
                options.read(true).write(true).create(true);
                let file = options.open(path).await.expect("it opens");
                drop(file.try_lock_write().await.expect("it is free"));
            },
        ),
        repeated(
            runtime,
            nanos,
            "raw system calls",
            at("raw.lock"),
            async |path| {
                raw_unlock(raw_lock(&path));
            },
        ),
        repeated(
            runtime,
            nanos,
            "`spawn_blocking` + join",
            at("none"),
            async |path| {
                let back = spawn_blocking(move || path).await;
                black_box(back.expect("it does not panic"));
            },
        ),
    ];
    compare(path, PLAN, TWO_HOPS, contenders)
}

/// Takes a lock with a record, charges, and settles, by hand.
///
/// # Panics
///
/// If it is refused.
pub async fn take_by_hand(path: PathBuf) {
    let held = file_by_hand::take(path, IfHeld::Fail).await;
    let held = held.expect("nobody else asks");
    held.verify().expect("the lock is not lost");
    held.succeed().await.expect("the lock is not lost");
}

/// The three hops, in the comparison of a launch with the file lock.
pub const THREE_HOPS: &str =
    "by hand: record read, then the two hops, a launcher's two calls, in a task, with a deadline";

/// Compares `launch` of a launcher that does nothing.
///
/// # Panics
///
/// If the directory for temporary files cannot be used.
pub fn launch(path: &str) -> Comparison {
    let runtime = &one_thread();
    let directory = tempfile::tempdir().expect("a temporary directory is made");
    let lock = FileSpawnLock::new(directory.path().join("ledger")).expect("it serves");
    let gate = &SpawnGate::builder(lock).build();
    let by_hand = &directory.path().join("by-hand.lock");
    let contenders = vec![
        repeated(runtime, nanos, LAUNCH, key, async |key| {
            launch_one(gate, key).await;
        }),
        repeated(runtime, nanos, THREE_HOPS, key, async |key| {
            launch_by_hand(by_hand.clone(), key).await;
        }),
    ];
    compare(path, PLAN, THREE_HOPS, contenders)
}

fn key() -> BackendKey {
    BackendKey::nth(7)
}

/// Launches with a launcher that does nothing: looks, takes the lock and charges if nobody has launched since, launches, settles.
async fn launch_by_hand(path: PathBuf, key: BackendKey) {
    let task = tokio::spawn(async move {
        let seen = newest_success(path.clone()).await;
        let seen = seen.expect("it can be read");
        if let Some(found) = Trivial.discover(&key).await {
            return found;
        }
        let held = file_by_hand::take(path, IfHeld::Fail).await;
        let held = held.expect("nobody else asks");
        assert_eq!(held.newest_success(), seen, "nobody else launches");
        held.verify().expect("the lock is not lost");
        let value = Trivial.launch(&key).await;
        held.succeed().await.expect("the lock is not lost");
        value
    });
    let launched = timeout(LIMIT, task).await.expect("nothing takes that long");
    black_box(launched.expect("the task does not panic"));
}

#[async_trait]
trait Launcher {
    async fn discover(&self, key: &BackendKey) -> Option<u64>;
    async fn launch(&self, key: &BackendKey) -> u64;
}

struct Trivial;

#[async_trait]
impl Launcher for Trivial {
    async fn discover(&self, _key: &BackendKey) -> Option<u64> {
        None
    }

    async fn launch(&self, _key: &BackendKey) -> u64 {
        black_box(1)
    }
}

/// Takes a permit and settles it.
///
/// # Panics
///
/// If it is refused.
pub async fn take_permit(gate: &SpawnGate<BackendKey, u64>, key: BackendKey) {
    let Acquired::Led(permit) = gate.acquire(key).await.expect("nothing fails here") else {
        unreachable!("nobody else asks");
    };
    permit.succeed(1).await.expect("the lock is not lost");
}

/// Opens, locks, and compares the handle's identity with the path's.
fn raw_lock(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let file = options.truncate(false).open(path).expect("it opens");
    flock(&file, FlockOperation::NonBlockingLockExclusive).expect("it is free");
    let opened = fstat(&file).expect("it has an identity");
    let found = stat(path).expect("it is there");
    assert_eq!((opened.st_dev, opened.st_ino), (found.st_dev, found.st_ino));
    file
}

fn raw_unlock(file: File) {
    flock(&file, FlockOperation::Unlock).expect("it was locked");
}
