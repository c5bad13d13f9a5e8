//! Shortages of threads and descriptors (promises 45 and 46): errors that pass, never a panic, and nothing charged.
//!
//! Each test runs again in a child process that lowers its own limits.
#![cfg(target_os = "linux")]

mod support;

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use spawn_gate::admin::{BackendEnd, LedgerReading, inspect_spawn_lock};
use spawn_gate::budget::{ExhaustionReason, SpawnBudgetConfig};
use spawn_gate::error::BoxError;
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLock, TryAcquire};
use spawn_gate::{
    BackendLauncher, FileSpawnLock, GateError, How, SpawnGate, SpawnLockError, launcher_fn,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::support::{lead, refusal};

/// In the child: where its locks are.
const DIRECTORY: &str = "SPAWN_GATE_TEST_DIRECTORY";

const EAGAIN: i32 = 11;

type Gate = SpawnGate<String, u32>;

/// Runs the body in a child process, alone, and as an ordinary user, since limits on processes do not bind root.
fn in_a_child(test: &str, body: impl FnOnce(&Path)) {
    if let Some(directory) = env::var_os(DIRECTORY) {
        return body(Path::new(&directory));
    }
    let outer = tempfile::tempdir().unwrap();
    let (program, locks) = ready_for_anybody(&outer);
    let mut child = Command::new(program);
    if geteuid().is_root() {
        // A user with no other processes, also while these tests run more than once.
        let user = 100_000 + std::process::id() % 1_000_000;
        let user = user * 4 + u32::try_from(test.len() % 4).unwrap();
        chown(&locks, Some(user), Some(user)).unwrap();
        child.uid(user).gid(user);
    }
    let output = child
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, &locks)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("1 passed"), "{text}\n{errors}");
}

/// A copy of this program that everybody can run, and an empty directory.
fn ready_for_anybody(outer: &TempDir) -> (PathBuf, PathBuf) {
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = outer.path().join("test");
    // Copied by another process: a child that another test forks meanwhile would have this one's descriptor for writing, and
    // a program that somebody can write to cannot be run.
    let copied = Command::new("cp")
        .arg(env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let locks = outer.path().join("locks");
    fs::create_dir(&locks).unwrap();
    (program, locks)
}

fn limit_to(resource: Resource, current: u64) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let current = Some(current);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

/// No further thread can be made until [`allow_threads`].
fn forbid_threads() {
    limit_to(Resource::Nproc, 1);
    let refused = std::thread::Builder::new().spawn(|| {}).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(EAGAIN));
}

fn allow_threads() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nproc);
    setrlimit(
        Resource::Nproc,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
}

/// A panic is not to be caught; it ends the child, as with `panic = "abort"`.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
}

fn gate_with(directory: &Path, lock_timeout: Duration) -> Gate {
    let lock = FileSpawnLock::new(directory).unwrap();
    SpawnGate::builder(lock).lock_timeout(lock_timeout).build()
}

fn launcher() -> impl BackendLauncher<String, u32> {
    launcher_fn(|_| async { Ok(None) }, |_| async { Ok(7) })
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The next blocking call needs a new thread.
fn one_thread_whose_others_end_at_once() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::ZERO)
        .build()
        .unwrap()
}

#[track_caller]
fn is_short_of_threads(error: &GateError) {
    let GateError::Lock(lock) = error else {
        panic!("{error:?}");
    };
    let SpawnLockError::NoThread { source, .. } = &*lock.source else {
        panic!("{error:?}");
    };
    assert_eq!(source.raw_os_error(), Some(EAGAIN));
    assert!(error.retry_helps());
}

const SOON: Duration = Duration::from_millis(200);

/// Checks each call of the gate while there are no threads, then once there are.
fn every_call_says_so(runtime: &Runtime, directory: &Path) {
    let gate = gate_with(directory, SOON);
    forbid_threads();
    abort_on_panic();
    runtime.block_on(async {
        let began = Instant::now();
        is_short_of_threads(&gate.launch("a", launcher()).await.unwrap_err());
        assert!(began.elapsed() >= SOON, "it did not try again");
        is_short_of_threads(&gate.acquire("b").await.unwrap_err());
        is_short_of_threads(&gate.reset("a").await.unwrap_err());
        let end = BackendEnd::orderly(1);
        is_short_of_threads(&gate.backend_ended("a", end).await.unwrap_err());
        assert_eq!(gate.snapshot("a").await.budget.attempts_used, 0);
    });
    allow_threads();
    runtime.block_on(async {
        for key in ["a", "b"] {
            assert_eq!(gate.snapshot(key).await.budget.attempts_used, 0);
            let launched = gate.launch(key, launcher()).await.unwrap();
            assert_eq!(launched.how, How::Led);
        }
    });
}

#[test]
fn without_a_thread_every_call_says_so_and_none_panics() {
    in_a_child(
        "without_a_thread_every_call_says_so_and_none_panics",
        |directory| every_call_says_so(&one_thread(), directory),
    );
}

#[test]
fn without_a_thread_every_call_says_so_also_on_a_runtime_with_workers() {
    let test = "without_a_thread_every_call_says_so_also_on_a_runtime_with_workers";
    in_a_child(test, |directory| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        every_call_says_so(&runtime, directory);
    });
}

#[test]
fn a_shortage_of_threads_that_passes_is_waited_out() {
    in_a_child(
        "a_shortage_of_threads_that_passes_is_waited_out",
        |directory| {
            let gate = gate_with(directory, Duration::from_secs(30));
            forbid_threads();
            abort_on_panic();
            one_thread().block_on(async {
                let passes = async {
                    tokio::time::sleep(SOON).await;
                    allow_threads();
                };
                let (launched, ()) = tokio::join!(gate.launch("a", launcher()), passes);
                assert_eq!(launched.unwrap().how, How::Led);
            });
        },
    );
}

#[test]
fn an_outcome_is_recorded_also_if_no_thread_is_left_for_it() {
    in_a_child(
        "an_outcome_is_recorded_also_if_no_thread_is_left_for_it",
        |directory| {
            let runtime = one_thread_whose_others_end_at_once();
            let lock = FileSpawnLock::new(directory).unwrap();
            let gate: Gate = SpawnGate::builder(lock)
                .budget(SpawnBudgetConfig::new(1, SOON * 100))
                .build();
            runtime.block_on(async {
                let failing = lead(&gate, "failing".to_owned()).await;
                let called_off = lead(&gate, "called off".to_owned()).await;
                tokio::time::sleep(SOON).await;
                forbid_threads();
                failing.fail("no such program").await;
                called_off.discovered(7).await;
                allow_threads();
                let why = refusal(gate.acquire("failing").await).reason;
                assert!(
                    matches!(&*why, ExhaustionReason::LaunchFailed { message } if message.contains("no such program")),
                    "{why:?}"
                );
                assert_eq!(gate.snapshot("called off").await.budget.attempts_used, 0);
            });
        },
    );
}

/// There, a call on the runtime's thread could hang it.
#[test]
fn without_a_thread_no_outcome_is_recorded_on_a_file_system_that_may_hang() {
    in_a_child(
        "without_a_thread_no_outcome_is_recorded_on_a_file_system_that_may_hang",
        |directory| {
            let runtime = one_thread_whose_others_end_at_once();
            let lock = FileSpawnLock::on_any_filesystem(directory).unwrap();
            let path = lock.path_of(&"indexer");
            let gate: Gate = SpawnGate::builder(lock).build();
            let threads = || fs::read_dir("/proc/self/task").unwrap().count();
            let at_first = threads();
            runtime.block_on(async {
                let permit = lead(&gate, "indexer".to_owned()).await;
                while threads() > at_first {
                    tokio::task::yield_now().await;
                }
                forbid_threads();
                drop(permit.fail("no such program").await);
                allow_threads();
            });
            let report = inspect_spawn_lock(path).unwrap();
            let LedgerReading::Found(ledger) = &report.ledger else {
                panic!("{report:?}");
            };
            assert_eq!(ledger.last_outcome(), None);
        },
    );
}

#[test]
fn two_hundred_keys_are_launched_at_once_with_sixty_four_descriptors() {
    in_a_child(
        "two_hundred_keys_are_launched_at_once_with_sixty_four_descriptors",
        |directory| {
            limit_to(Resource::Nofile, 64);
            let gate = gate_with(directory, Duration::from_secs(60));
            let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let launches: Vec<_> = (0..200)
                    .map(|number| {
                        let gate = gate.clone();
                        let slow = launcher_fn(
                            |_| async { Ok(None) },
                            |_| async {
                                // There are descriptors left for the launches themselves.
                                let _file = fs::File::open("/dev/null")?;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                                Ok(7)
                            },
                        );
                        tokio::spawn(async move { gate.launch(number.to_string(), slow).await })
                    })
                    .collect();
                for launch in launches {
                    assert_eq!(launch.await.unwrap().unwrap().how, How::Led);
                }
            });
        },
    );
}

#[test]
fn a_lock_file_is_opened_once_another_one_is_closed() {
    in_a_child(
        "a_lock_file_is_opened_once_another_one_is_closed",
        |directory| {
            limit_to(Resource::Nofile, 64);
            let lock = FileSpawnLock::new(directory).unwrap();
            one_thread().block_on(async {
                let try_it = |key: u32| {
                    let later = tokio::time::Instant::now() + Duration::from_secs(60);
                    let lock = lock.clone();
                    async move {
                        let request = LockRequest::new(LedgerUpdate::none(), later);
                        match lock.try_acquire(&key, request).await {
                            Ok(TryAcquire::Acquired(lease)) => lease,
                            other => panic!("{other:?}"),
                        }
                    }
                };
                let mut held = Vec::new();
                for key in 0..16 {
                    held.push(try_it(key).await);
                }
                let mut one_more = tokio_test::task::spawn(try_it(16));
                tokio_test::assert_pending!(one_more.poll());
                drop(held.pop());
                assert!(one_more.is_woken());
                drop(one_more.await);
            });
        },
    );
}

#[test]
fn a_caller_that_waits_for_a_launch_hears_its_outcome_also_while_no_lease_is_free() {
    in_a_child(
        "a_caller_that_waits_for_a_launch_hears_its_outcome_also_while_no_lease_is_free",
        |directory| {
            limit_to(Resource::Nofile, 64);
            let lock = FileSpawnLock::new(directory).unwrap();
            let gate = || Gate::builder(lock.clone()).build();
            let (holder, waiter) = (gate(), gate());
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().start_paused(true).build();
            runtime.unwrap().block_on(async {
                let permit = lead(&holder, "0".to_owned()).await;
                let is_up = Arc::<AtomicBool>::default();
                let launcher = launcher_fn(
                    {
                        let is_up = Arc::clone(&is_up);
                        move |_| {
                            let found = is_up.load(Ordering::SeqCst).then_some(9);
                            async move { Ok::<_, BoxError>(found) }
                        }
                    },
                    |_| async { Ok(7) },
                );
                let waiting = {
                    let waiter = waiter.clone();
                    tokio::spawn(async move { waiter.launch("0".to_owned(), launcher).await })
                };
                let waits_for = async || {
                    let flight = waiter.snapshot("0").await.flight;
                    flight.and_then(|flight| flight.waiting_for)
                };
                while waits_for().await.is_none() {
                    yield_now().await;
                }
                let mut others = Vec::new();
                for key in 1..16 {
                    others.push(lead(&holder, key.to_string()).await);
                }
                // This one gets the lease that the permit has, and keeps it.
                let later = tokio::time::Instant::now() + Duration::from_secs(60);
                let request = LockRequest::new(LedgerUpdate::none(), later);
                let mut next = tokio_test::task::spawn(lock.try_acquire(&16_u32, request));
                tokio_test::assert_pending!(next.poll());
                // A waiter tries again after a second, and is in the queue, too, from then on.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                is_up.store(true, Ordering::SeqCst);
                permit.succeed(7).await.unwrap();
                let joined = waiting.await.unwrap().unwrap();
                assert_eq!(joined.how, How::Discovered);
            });
        },
    );
}

#[test]
fn a_wait_for_a_lock_file_to_open_ends_with_the_lock_deadline() {
    in_a_child(
        "a_wait_for_a_lock_file_to_open_ends_with_the_lock_deadline",
        |directory| {
            limit_to(Resource::Nofile, 64);
            let gate = gate_with(directory, SOON);
            one_thread().block_on(async {
                let mut held = Vec::new();
                for number in 0..16 {
                    held.push(lead(&gate, number.to_string()).await);
                }
                let error = gate.acquire("one more").await.unwrap_err();
                let GateError::Lock(lock) = &error else {
                    panic!("{error:?}");
                };
                assert!(
                    matches!(
                        &*lock.source,
                        SpawnLockError::TooManyLocks { limit: 16, .. }
                    ),
                    "{error:?}"
                );
                assert!(error.retry_helps());
                drop(held.pop());
                drop(lead(&gate, "one more".to_owned()).await);
                // Looking takes no lock file from those who launch.
                let path = FileSpawnLock::new(directory).unwrap().path_of(&"0");
                assert!(inspect_spawn_lock(path).unwrap().is_held);
                assert_eq!(gate.snapshot("0").await.budget.attempts_used, 1);
            });
        },
    );
}

#[test]
fn a_shortage_of_descriptors_that_passes_is_waited_out_and_charges_nothing() {
    in_a_child(
        "a_shortage_of_descriptors_that_passes_is_waited_out_and_charges_nothing",
        |directory| {
            let runtime = one_thread();
            let gate = gate_with(directory, SOON);
            let patient = gate_with(directory, Duration::from_secs(30));
            runtime.block_on(async {
                let mut taken = Vec::new();
                limit_to(Resource::Nofile, 64);
                while let Ok(file) = fs::File::open("/dev/null") {
                    taken.push(file);
                }
                let error = gate.acquire("a").await.unwrap_err();
                assert!(matches!(&error, GateError::Lock(_)), "{error:?}");
                assert!(error.retry_helps(), "{error:?}");
                let passes = async {
                    tokio::time::sleep(SOON).await;
                    drop(taken);
                };
                let (launched, ()) = tokio::join!(patient.launch("a", launcher()), passes);
                assert_eq!(launched.unwrap().how, How::Led);
                assert_eq!(patient.snapshot("a").await.budget.attempts_used, 0);
            });
        },
    );
}
