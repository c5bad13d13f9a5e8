//! A permit with the file lock, taken and settled, when nobody else wants it.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use async_fd_lock::LockWrite;
use running_process::broker::server as reference;
use rustix::fs::{FlockOperation, flock, fstat, stat};
use spawn_gate::{Acquired, BackendKey, FileSpawnLock, SpawnGate};
use tokio::task::spawn_blocking;

use super::{one_thread, repeated};
use crate::clock::nanos;
use crate::keys::PeerKey;
use crate::measure::{Comparison, Plan, compare};

const PLAN: Plan = Plan::more_turns_of_millis(40);
const FLOOR: &str = "`spawn_blocking` + raw system calls";

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
        repeated(
            runtime,
            nanos,
            "spawn-gate, without ledger",
            || BackendKey::nth(7),
            permit_of(plain),
        ),
        repeated(
            runtime,
            nanos,
            "spawn-gate, with ledger",
            || BackendKey::nth(7),
            permit_of(with_ledger),
        ),
        repeated(runtime, nanos, FLOOR, at("hop.lock"), async |path| {
            // The lock is given back on this thread: that needs no wait.
            let locked = spawn_blocking(move || raw_lock(&path)).await;
            raw_unlock(locked.expect("it does not panic"));
        }),
        repeated(
            runtime,
            nanos,
            "running-process `acquire_spawn_lock` in `spawn_blocking`",
            at("reference.lock"),
            async |path| {
                let locked = spawn_blocking(move || reference::acquire_spawn_lock(path)).await;
                drop(locked.expect("it does not panic").expect("it is free"));
            },
        ),
        repeated(
            runtime,
            nanos,
            "async-fd-lock",
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
    compare(path, PLAN, FLOOR, contenders)
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
