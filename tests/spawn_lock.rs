//! The spawn lock (promises 14, 16, 17, 19, 24, 31): taken, kept, lost, waited for; alone and behind a gate.

mod support;

use std::error::Error;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use spawn_gate::error::{LaunchError, Stage, TimeoutError};
use spawn_gate::lock::SpawnLock;
use spawn_gate::{
    BackendLauncher, FileSpawnLock, GateError, How, InMemorySpawnLock, LaunchPermit, SpawnGate,
    SpawnLockError, acquire_spawn_lock,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready};

use crate::support::lead;
use crate::support::lock_file::{
    locks, make_private, read_held, read_lock_holder, take, try_acquire, write_private,
};
use crate::support::scripted_lock::{ScriptedLock, held};

const KEY: &str = "indexer";

type Gate = SpawnGate<&'static str, u16>;
type Permit = LaunchPermit<&'static str, u16>;

/// A path for one lock file in a directory of the test's own.
fn one_path() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("indexer.lock");
    (directory, path)
}

/// Takes and leaves the lock of [`KEY`]; returns the fencing token.
async fn fencing_token(locks: &FileSpawnLock) -> u64 {
    try_acquire(locks, &KEY).await.unwrap().fencing_token()
}

fn is_lost(error: &GateError, path: &Path) -> bool {
    match error {
        GateError::Launch(LaunchError::LockLost { source, .. }) => matches!(
            &**source,
            SpawnLockError::DeletedOrRecreated { path: named, .. } if named == path
        ),
        _ => false,
    }
}

/// Turns a hang into a failure. Nothing here depends on how long the time is.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

/// File locks that tell of each try that found the lock held.
fn telltale(locks: &FileSpawnLock) -> (ScriptedLock<&'static str>, mpsc::UnboundedReceiver<()>) {
    let (found_held, told) = mpsc::unbounded_channel();
    let lock = ScriptedLock::new(locks.clone()).on_found_held(move || {
        let _ = found_held.send(());
    });
    (lock, told)
}

// Alone: `acquire_spawn_lock`.

#[test]
fn a_held_lock_is_refused_at_once_and_named() {
    let (_directory, path) = one_path();
    let _held = acquire_spawn_lock(&path).unwrap();
    let refused = acquire_spawn_lock(&path).unwrap_err();
    assert!(refused.retry_helps());
    let SpawnLockError::AlreadyLocked { path: named } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(named, path);
}

#[test]
fn a_lock_is_free_again_once_its_guard_is_dropped() {
    let (_directory, path) = one_path();
    for _ in 0..3 {
        drop(acquire_spawn_lock(&path).unwrap());
    }
}

#[test]
fn a_guard_that_goes_to_another_thread_releases_there() {
    let (_directory, path) = one_path();
    let guard = acquire_spawn_lock(&path).unwrap();
    thread::spawn(move || drop(guard)).join().unwrap();
    drop(acquire_spawn_lock(&path).unwrap());
}

#[test]
fn locks_on_two_paths_do_not_hinder_each_other() {
    let (directory, path) = one_path();
    let _one = acquire_spawn_lock(&path).unwrap();
    let _other = acquire_spawn_lock(directory.path().join("other.lock")).unwrap();
}

#[test]
fn the_lock_file_stays_and_its_content_is_not_touched() {
    let (_directory, path) = one_path();
    write_private(&path, b"of another program");
    let guard = acquire_spawn_lock(&path).unwrap();
    acquire_spawn_lock(&path).unwrap_err();
    assert_eq!(read_held(&path)[1..], b"of another program"[1..]);
    drop(guard);
    assert_eq!(fs::read(&path).unwrap(), b"of another program");
}

#[cfg(unix)]
#[test]
fn a_lock_file_is_made_for_its_user_alone() {
    use std::os::unix::fs::MetadataExt;
    let (_directory, path) = one_path();
    drop(acquire_spawn_lock(&path).unwrap());
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
}

#[cfg(unix)]
#[test]
fn the_guards_identity_is_that_of_the_file_at_the_path() {
    use std::os::unix::fs::MetadataExt;
    let (_directory, path) = one_path();
    let guard = acquire_spawn_lock(&path).unwrap();
    let metadata = path.metadata().unwrap();
    let identity = guard.file_identity().unwrap();
    assert_eq!(guard.path(), path);
    assert_eq!(
        (identity.device, identity.file),
        (metadata.dev(), metadata.ino())
    );
}

#[test]
fn an_untouched_lock_verifies() {
    let (_directory, path) = one_path();
    let guard = acquire_spawn_lock(&path).unwrap();
    // Written to, yet the same file. (Windows does not let anybody write to what is locked.)
    let _ = fs::write(&path, "other content");
    guard.verify().unwrap();
}

/// Takes the lock, lets `swap` do its work on the path, and hands over what `verify` says.
fn lost_by(swap: impl FnOnce(&Path)) -> (TempDir, SpawnLockError) {
    let (directory, path) = one_path();
    let guard = acquire_spawn_lock(&path).unwrap();
    swap(&path);
    let lost = guard.verify().unwrap_err();
    let SpawnLockError::DeletedOrRecreated {
        path: named,
        opened_identity,
        ..
    } = &lost
    else {
        panic!("{lost:?}");
    };
    assert_eq!(named, &path);
    assert_eq!(opened_identity, &guard.file_identity());
    assert!(lost.retry_helps());
    (directory, lost)
}

fn current_identity(lost: &SpawnLockError) -> Option<spawn_gate::SpawnLockFileIdentity> {
    match lost {
        SpawnLockError::DeletedOrRecreated {
            current_identity, ..
        } => *current_identity,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deleted_lock_file_is_noticed() {
    let (_directory, lost) = lost_by(|path| fs::remove_file(path).unwrap());
    assert_eq!(current_identity(&lost), None);
}

#[test]
fn a_lock_file_that_was_renamed_away_is_noticed() {
    let (_directory, lost) = lost_by(|path| fs::rename(path, path.with_extension("old")).unwrap());
    assert_eq!(current_identity(&lost), None);
}

/// Windows renames no directory with an open file in it.
#[cfg(unix)]
#[test]
fn a_lock_file_in_a_directory_that_was_removed_is_noticed() {
    let (_directory, path) = one_path();
    let inner = path.with_file_name("inner");
    fs::create_dir(&inner).unwrap();
    let guard = acquire_spawn_lock(inner.join("indexer.lock")).unwrap();
    fs::rename(&inner, path.with_file_name("elsewhere")).unwrap();
    let lost = guard.verify().unwrap_err();
    assert_eq!(current_identity(&lost), None);
}

#[test]
fn a_replaced_lock_file_is_noticed_and_both_files_are_named() {
    let (directory, lost) = lost_by(|path| {
        fs::rename(path, path.with_extension("old")).unwrap();
        fs::write(path, "").unwrap();
    });
    let path = directory.path().join("indexer.lock");
    make_private(&path);
    let there_now = acquire_spawn_lock(&path).unwrap();
    assert_eq!(current_identity(&lost), there_now.file_identity());
}

#[cfg(unix)]
#[test]
fn a_lock_file_that_gave_way_to_a_link_to_itself_is_noticed() {
    let (_directory, lost) = lost_by(|path| {
        let old = path.with_extension("old");
        fs::rename(path, &old).unwrap();
        std::os::unix::fs::symlink(&old, path).unwrap();
    });
    assert!(current_identity(&lost).is_some());
}

#[test]
fn a_lost_lock_keeps_nobody_from_the_file_that_is_there_now() {
    let (_directory, path) = one_path();
    let lost = acquire_spawn_lock(&path).unwrap();
    fs::rename(&path, path.with_extension("old")).unwrap();
    let current = acquire_spawn_lock(&path).unwrap();
    drop(lost);
    current.verify().unwrap();
    assert!(matches!(
        acquire_spawn_lock(&path),
        Err(SpawnLockError::AlreadyLocked { .. })
    ));
}

#[tokio::test]
async fn a_lock_file_that_keeps_no_ledger_is_verified_too_before_a_success_is_told() {
    let (_directory, locks) = locks();
    let locks = locks.without_ledger();
    let gate = Gate::builder(locks.clone()).build();
    let permit = lead(&gate, KEY).await;
    fs::remove_file(locks.path_of(&KEY)).unwrap();
    let error = permit.succeed(7).await.unwrap_err();
    assert!(is_lost(&error, &locks.path_of(&KEY)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_release_is_waited_for_on_a_local_file_system_and_paused_for_on_another_machines() {
    let (directory, locks) = locks();
    let held = try_acquire(&locks, &KEY).await.unwrap();
    let pause = Duration::from_millis(10);
    let mut waiting = tokio_test::task::spawn(locks.released(&KEY, pause));
    assert_pending!(waiting.poll());
    drop(held);
    waiting.await;

    let anywhere = FileSpawnLock::on_any_filesystem(directory.path()).unwrap();
    let began = Instant::now();
    anywhere.released(&KEY, pause).await;
    assert_eq!(began.elapsed(), pause);
}

/// A child between fork and exec holds a duplicate of every descriptor, and with it the lock.
#[cfg(target_os = "linux")]
#[test]
fn a_lock_is_released_also_while_a_forked_child_holds_its_descriptor() {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    /// Whether a child of this process has the file open.
    fn a_child_has_open(path: &Path) -> bool {
        fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let name = process.file_name();
            let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
            pid.is_some_and(|pid| pid != std::process::id())
                && fs::read_dir(process.path().join("fd"))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|open| fs::read_link(open.path()).is_ok_and(|file| file == path))
        })
    }

    let (directory, path) = one_path();
    let directory = directory.path().canonicalize().unwrap();
    let path = directory.join(path.file_name().unwrap());
    // The child looks for its program in every directory of this path, which keeps it before its exec for long enough to
    // be seen there. The links make each look-up slow.
    let mut end = directory.clone();
    for step in 0..30 {
        let link = directory.join(format!("link{step}"));
        symlink(&end, &link).unwrap();
        end = link;
    }
    let search_path = format!("{}:", end.display()).repeat(30_000);

    for _ in 0..50 {
        let guard = acquire_spawn_lock(&path).unwrap();
        let search_path = search_path.clone();
        let spawning = thread::spawn(move || {
            Command::new("no-such-program")
                .env("PATH", search_path)
                .spawn()
                .map(drop)
        });
        while !a_child_has_open(&path) && !spawning.is_finished() {
            thread::yield_now();
        }
        drop(guard);
        let again = acquire_spawn_lock(&path);
        let child_was_there = !spawning.is_finished() && a_child_has_open(&path);
        spawning.join().unwrap().unwrap_err();
        drop(again.unwrap());
        if child_was_there {
            return;
        }
    }
    panic!("no child was ever seen between fork and exec");
}

// With a record: `FileSpawnLock`.

#[tokio::test]
async fn the_holder_is_named_while_it_holds_the_lock_and_not_after() {
    let (_directory, locks) = locks();
    let before = SystemTime::now() - Duration::from_millis(1);
    let lease = take(&locks, KEY).await.unwrap();
    let path = locks.path_of(&KEY);
    let holder = read_lock_holder(&path).unwrap().unwrap();
    assert_eq!((&holder.path, holder.pid), (&path, std::process::id()));
    assert!(before <= holder.since && holder.since <= SystemTime::now());
    assert_eq!(holder.path, path);
    drop(lease);
    assert_eq!(read_lock_holder(&path).unwrap(), None);
}

#[test]
fn the_holder_of_a_lock_file_that_is_not_there_is_an_error_naming_it() {
    let (_directory, path) = one_path();
    let error = read_lock_holder(&path).unwrap_err();
    let SpawnLockError::Open {
        path: named,
        source,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(named, path);
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert!(!path.exists());
}

async fn fencing_tokens_only_grow(make_gate: impl Fn() -> Gate) {
    let mut last = 0;
    for _ in 0..5 {
        let gate = make_gate();
        for _ in 0..2 {
            let permit = lead(&gate, KEY).await;
            assert!(permit.fencing_token() > last);
            last = permit.fencing_token();
            permit.succeed(1).await.unwrap();
        }
    }
}

#[tokio::test]
async fn fencing_tokens_only_grow_from_gate_to_gate() {
    let (_directory, locks) = locks();
    fencing_tokens_only_grow(|| SpawnGate::builder(locks.clone()).build()).await;
    let locks = InMemorySpawnLock::new();
    fencing_tokens_only_grow(|| SpawnGate::builder(locks.clone()).build()).await;
}

#[tokio::test]
async fn fencing_tokens_grow_also_when_the_lock_file_was_deleted() {
    let (_directory, locks) = locks();
    let mut last = 0;
    for _ in 0..3 {
        // Many in a row, since a count must not run ahead of the clock that takes over from it.
        for _ in 0..100 {
            last = fencing_token(&locks).await;
        }
        fs::remove_file(locks.path_of(&KEY)).unwrap();
        assert!(fencing_token(&locks).await > last);
    }
}

#[test]
fn a_try_that_is_dropped_lets_go_of_the_lock_it_takes() {
    let runtime = one_thread_for_blocking_work();
    let (_directory, locks) = locks();
    let (go_on, wait) = std::sync::mpsc::channel();
    runtime.block_on(soon(async {
        // The only thread is busy, so the try is dropped before it is made.
        let busy = tokio::task::spawn_blocking(move || wait.recv());
        let mut a_try = tokio_test::task::spawn(try_acquire(&locks, &KEY));
        assert_pending!(a_try.poll());
        drop(a_try);
        go_on.send(()).unwrap();
        busy.await.unwrap().unwrap();
        // Blocking work is done in order: once this has run, the try is over.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }));
    let path = locks.path_of(&KEY);
    assert!(path.exists(), "the try was never made");
    drop(acquire_spawn_lock(&path).unwrap());
}

#[test]
fn a_try_on_a_runtime_that_is_shut_down_says_so_and_holds_nothing() {
    let runtime = one_thread_for_blocking_work();
    let (_directory, locks) = locks();
    let handle = runtime.handle().clone();
    drop(runtime);
    let _entered = handle.enter();
    let mut a_try = tokio_test::task::spawn(try_acquire(&locks, &KEY));
    let error = assert_ready!(a_try.poll()).unwrap_err();
    let path = locks.path_of(&KEY);
    assert!(matches!(&error, SpawnLockError::RuntimeShutDown { path: named } if *named == path));
    drop(acquire_spawn_lock(&path).unwrap());
}

fn one_thread_for_blocking_work() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap()
}

// Behind a gate: waiting.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_takes_over_once_the_lock_is_released() {
    let (_directory, locks) = locks();
    let (lock, mut told) = telltale(&locks);
    let gate: Gate = SpawnGate::builder(lock).build();
    let held = try_acquire(&locks, &KEY).await.unwrap();
    let waiter = tokio::spawn(async move { lead(&gate, KEY).await.fencing_token() });
    soon(told.recv()).await.unwrap();
    let token = held.fencing_token();
    drop(held);
    assert!(soon(waiter).await.unwrap() > token);
}

#[test]
fn a_waiter_occupies_no_thread() {
    let runtime = one_thread_for_blocking_work();
    let (_directory, locks) = locks();
    let (lock, mut told) = telltale(&locks);
    let gate: Gate = SpawnGate::builder(lock).build();
    let held = acquire_spawn_lock(locks.path_of(&KEY)).unwrap();
    runtime.block_on(soon(async {
        let waiter = tokio::spawn(async move { gate.acquire(KEY).await.map(drop) });
        for work in 0..20 {
            told.recv().await.unwrap();
            // Runs while the lock is held and waited for, on the only thread that there is.
            assert_eq!(
                tokio::task::spawn_blocking(move || work).await.unwrap(),
                work
            );
        }
        drop(held);
        waiter.await.unwrap().unwrap();
    }));
}

#[test]
fn a_runtime_shuts_down_while_a_waiter_waits() {
    let runtime = one_thread_for_blocking_work();
    let (_directory, locks) = locks();
    let (lock, mut told) = telltale(&locks);
    let gate: Gate = SpawnGate::builder(lock).build();
    let held = acquire_spawn_lock(locks.path_of(&KEY)).unwrap();
    runtime.spawn(async move { gate.acquire(KEY).await.map(drop) });
    runtime.block_on(soon(told.recv())).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(runtime);
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(Duration::from_secs(60))
        .expect("the shutdown waits for the holder of the lock");
    held.verify().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gives_up_names_the_lock_its_holder_and_since_when() {
    let (_directory, locks) = locks();
    let limit = Duration::from_secs(7);
    let gate: Gate = SpawnGate::builder(locks.clone())
        .lock_timeout(limit)
        .build();
    let _held = take(&locks, KEY).await.unwrap();
    let holder = read_lock_holder(locks.path_of(&KEY)).unwrap();
    let began = Instant::now();
    let error = gate.acquire(KEY).await.unwrap_err();
    assert!(error.retry_helps());
    let GateError::Timeout(TimeoutError {
        key,
        stage,
        after,
        waiting_for,
        ..
    }) = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (key.as_deref(), *stage, *after),
        (Some(KEY), Stage::Lock, limit)
    );
    assert!(holder.is_some());
    assert_eq!(waiting_for.as_deref(), holder.as_ref());
    assert_eq!(began.elapsed(), limit);
    let text = error.to_string();
    assert!(text.contains(&locks.path_of(&KEY).display().to_string()));
    assert!(text.contains(&format!("process {}", std::process::id())));
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
}

#[tokio::test(start_paused = true)]
async fn whom_a_flight_waits_for_can_be_seen_while_it_waits() {
    let (_directory, locks) = locks();
    let (lock, mut told) = telltale(&locks);
    let gate: Gate = SpawnGate::builder(lock).build();
    let _held = take(&locks, KEY).await.unwrap();
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { gate.acquire(KEY).await.map(drop) }
    });
    // At the second try the holder has been looked up.
    soon(told.recv()).await.unwrap();
    soon(told.recv()).await.unwrap();
    let flight = gate.snapshot(KEY).await.flight.unwrap();
    assert_eq!(flight.stage, Stage::Lock);
    assert_eq!(
        flight.waiting_for,
        read_lock_holder(locks.path_of(&KEY)).unwrap()
    );
    assert_eq!(flight.waiting_for.unwrap().pid, std::process::id());
    waiter.abort();
}

#[tokio::test(start_paused = true)]
async fn pauses_between_tries_grow_are_jittered_and_end_at_the_deadline() {
    let tries = Arc::<Mutex<Vec<Instant>>>::default();
    let noted = Arc::clone(&tries);
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(move |_| {
        noted.lock().unwrap().push(Instant::now());
        async { Err(held()) }
    });
    let limit = Duration::from_secs(30);
    let gate: Gate = SpawnGate::builder(lock).lock_timeout(limit).build();
    let began = Instant::now();
    gate.acquire(KEY).await.unwrap_err();

    let tries = tries.lock().unwrap();
    assert_eq!(
        (tries[0], tries[tries.len() - 1]),
        (began, began + limit),
        "not tried first at once and last at the deadline"
    );
    let pauses: Vec<_> = tries.windows(2).map(|two| two[1] - two[0]).collect();
    // Tokio's timer rounds up to whole milliseconds.
    let is_short = |pause: &Duration| *pause <= Duration::from_millis(2);
    assert!(is_short(&pauses[0]));
    let later = &pauses[10..pauses.len() - 1];
    assert!(!later.iter().any(is_short), "they do not grow");
    assert!(
        later
            .iter()
            .all(|pause| *pause <= Duration::from_millis(26)),
        "a release goes unnoticed for long"
    );
    assert!(later.iter().any(|pause| *pause != later[0]), "no jitter");
}

// Behind a gate: losing the lock.

#[tokio::test]
async fn a_lock_lost_under_a_permit_is_named_to_its_leader_and_all_followers() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone()).build();
    let path = locks.path_of(&KEY);
    let permit = lead(&gate, KEY).await;
    permit.verify().await.unwrap();
    let mut followers: Vec<_> = (0..3)
        .map(|_| tokio_test::task::spawn(gate.acquire(KEY)))
        .collect();
    for follower in &mut followers {
        assert_pending!(follower.poll());
    }

    fs::rename(&path, path.with_extension("old")).unwrap();
    assert!(matches!(
        permit.verify().await,
        Err(SpawnLockError::DeletedOrRecreated { path: named, current_identity: None, .. }) if named == path
    ));
    let lost = permit.succeed(1).await.unwrap_err();
    assert!(is_lost(&lost, &path), "{lost:?}");
    for mut follower in followers {
        let lost = assert_ready!(follower.poll()).unwrap_err();
        assert!(is_lost(&lost, &path), "{lost:?}");
    }
    // The count went with the file.
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
}

/// Replaces the lock file at the first so many calls of `discover` with the lock held, and at each `launch` if told to.
struct Swapper {
    path: PathBuf,
    in_discover: usize,
    in_launch: bool,
    discovered: AtomicUsize,
    launched: AtomicUsize,
    swapped: AtomicUsize,
}

impl Swapper {
    fn new(locks: &FileSpawnLock, in_discover: usize, in_launch: bool) -> Arc<Self> {
        Arc::new(Self {
            path: locks.path_of(&KEY),
            in_discover,
            in_launch,
            discovered: AtomicUsize::new(0),
            launched: AtomicUsize::new(0),
            swapped: AtomicUsize::new(0),
        })
    }

    fn calls(&self) -> (usize, usize) {
        (
            self.discovered.load(Ordering::SeqCst),
            self.launched.load(Ordering::SeqCst),
        )
    }

    /// Moves the file away instead of deleting it: on Windows a deleted file can keep its name until it is closed.
    fn swap(&self) {
        let swap = self.swapped.fetch_add(1, Ordering::SeqCst);
        fs::rename(&self.path, self.path.with_extension(format!("old{swap}"))).unwrap();
        write_private(&self.path, b"");
    }
}

#[async_trait]
impl BackendLauncher<&'static str, u16> for Swapper {
    async fn discover(
        &self,
        _: &&'static str,
    ) -> Result<Option<u16>, Box<dyn Error + Send + Sync>> {
        let calls = self.discovered.fetch_add(1, Ordering::SeqCst);
        assert!(calls < 100, "it goes on for ever");
        // The first one is made without the lock.
        if calls > 0 && calls <= self.in_discover {
            self.swap();
        }
        Ok(None)
    }

    async fn launch(&self, permit: &Permit) -> Result<u16, Box<dyn Error + Send + Sync>> {
        self.launched.fetch_add(1, Ordering::SeqCst);
        permit.verify().await?;
        if self.in_launch {
            self.swap();
            permit.verify().await.expect_err("not noticed");
        }
        Ok(7201)
    }
}

#[tokio::test]
async fn a_lock_lost_while_the_launcher_runs_is_named_to_all_callers() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone()).build();
    let swapper = Swapper::new(&locks, 0, true);
    let launch = || gate.launch(KEY, Arc::clone(&swapper));
    let (leader, one, other) = tokio::join!(launch(), launch(), launch());
    for outcome in [leader, one, other] {
        let lost = outcome.unwrap_err();
        assert!(is_lost(&lost, &swapper.path), "{lost:?}");
    }
    assert_eq!(swapper.calls(), (1, 1));
    // The count went with the file.
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_file_replaced_before_the_launch_is_taken_anew() {
    let (_directory, locks) = locks();
    // No ledger tells that nobody has held the lock since the first look.
    let gate: Gate = SpawnGate::builder(locks.clone().without_ledger()).build();
    let swapper = Swapper::new(&locks, 1, false);
    let launched = gate.launch(KEY, Arc::clone(&swapper)).await.unwrap();
    assert_eq!((launched.value, launched.how), (7201, How::Led));
    assert_eq!(swapper.calls(), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lock_file_replaced_again_and_again_ends_the_flight_before_its_launch() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone().without_ledger()).build();
    let swapper = Swapper::new(&locks, usize::MAX, false);
    let error = gate.launch(KEY, Arc::clone(&swapper)).await.unwrap_err();
    let GateError::Lock(error) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(
        &*error.source,
        SpawnLockError::DeletedOrRecreated { path, .. } if *path == swapper.path
    ));
    let (tries, launches) = swapper.calls();
    assert!((2..=10).contains(&tries), "tried {tries} times");
    assert_eq!(launches, 0);
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
    drop(acquire_spawn_lock(&swapper.path).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_lock_file_stays_broken_hears_what_is_wrong_and_is_refunded() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone()).build();
    let path = locks.path_of(&KEY);
    fs::create_dir(&path).unwrap();
    let launcher = Swapper::new(&locks, 0, false);
    // More often than the budget has attempts.
    for _ in 0..5 {
        let acquired = gate.acquire(KEY).await.map(drop);
        let launched = gate.launch(KEY, Arc::clone(&launcher)).await.map(drop);
        for error in [acquired, launched].map(Result::unwrap_err) {
            assert!(!error.retry_helps());
            let GateError::Lock(error) = &error else {
                panic!("{error:?}");
            };
            assert!(matches!(
                &*error.source,
                SpawnLockError::NotARegularFile { path: named, .. } if *named == path
            ));
        }
        assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
    }
    let (_, launches) = launcher.calls();
    assert_eq!(launches, 0);
    fs::remove_dir(&path).unwrap();
    lead(&gate, KEY).await.succeed(1).await.unwrap();
}

// Behind a gate: letting go.

/// Ends a permit in one of five ways.
async fn end(permit: Permit, way: u32) {
    match way {
        0 => permit.succeed(1).await.unwrap(),
        1 => drop(permit.fail("no such program").await),
        2 => permit.discovered(1).await,
        3 => permit.refund().await,
        _ => drop(permit),
    }
}

#[tokio::test]
async fn the_lock_is_free_however_a_permit_ends() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone()).build();
    let path = locks.path_of(&KEY);
    for ending in 0..5 {
        gate.reset(KEY).await.unwrap();
        let permit = lead(&gate, KEY).await;
        assert!(acquire_spawn_lock(&path).is_err());
        end(permit, ending).await;
        drop(acquire_spawn_lock(&path).unwrap());
        assert_eq!(read_lock_holder(&path).unwrap(), None);
    }
}

/// Tries the lock in the moment in which it wakes somebody.
struct Alarm {
    path: PathBuf,
    was_free: Mutex<Vec<bool>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let is_free = acquire_spawn_lock(&self.path).is_ok();
        self.was_free.lock().unwrap().push(is_free);
    }
}

#[tokio::test]
async fn the_lock_is_free_before_a_follower_is_woken_however_a_permit_ends() {
    let (_directory, locks) = locks();
    let gate: Gate = SpawnGate::builder(locks.clone()).build();
    for ending in 0..5 {
        gate.reset(KEY).await.unwrap();
        let permit = lead(&gate, KEY).await;
        let alarm = Arc::new(Alarm {
            path: locks.path_of(&KEY),
            was_free: Mutex::default(),
        });
        let waker = Waker::from(Arc::clone(&alarm));
        let mut follower = Box::pin(gate.acquire(KEY));
        let polled = follower.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        end(permit, ending).await;
        assert_eq!(*alarm.was_free.lock().unwrap(), [true], "ending {ending}");
    }
}

#[cfg(unix)]
#[test]
fn a_lock_that_was_handed_to_a_child_is_held_until_the_child_is_gone() {
    use std::process::{Command, Stdio};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("indexer.lock");
    let descriptor = acquire_spawn_lock(&path).unwrap().hand_over().unwrap();
    // `cat` holds it as its standard output, and ends with its standard input.
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(descriptor)
        .spawn()
        .unwrap();
    assert!(matches!(
        acquire_spawn_lock(&path),
        Err(SpawnLockError::AlreadyLocked { .. })
    ));
    drop(child.stdin.take());
    child.wait().unwrap();
    drop(acquire_spawn_lock(&path).unwrap());

    let kept = acquire_spawn_lock(&path).unwrap().hand_over().unwrap();
    assert!(acquire_spawn_lock(&path).is_err());
    drop(kept);
    drop(acquire_spawn_lock(&path).unwrap());
}
