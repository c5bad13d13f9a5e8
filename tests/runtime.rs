//! The gate and its runtime (promises 25-28 and 44): deadlines, close, shutdown, the content of errors, `Send` and `Sync`.

mod support;

use std::error::Error;
use std::io;
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::admin::{FlightSnapshot, KeySnapshot, LockHolder};
use spawn_gate::budget::ExhaustionReason;
use spawn_gate::budget::{AttemptId, WindowKind};
use spawn_gate::error::{
    BudgetExhausted, LaunchError, LockError, SharedError, Stage, TimeoutError,
};
use spawn_gate::lock::LockName;
use spawn_gate::lock::{FileKind, SpawnLease, SpawnLock, Unsafety};
use spawn_gate::{
    Acquired, BackendKey, BackendLauncher, BoxError, BrokerInstanceKey, FileSpawnLock, GateError,
    How, InMemorySpawnLock, LaunchPermit, Launched, SpawnBeginError, SpawnBudgetConfig,
    SpawnBudgetSnapshot, SpawnCoordinator, SpawnGate, SpawnGateBuilder, SpawnLockError,
    SpawnLockFileIdentity, SpawnLockGuard, SpawnOutcome, SpawnPermit, acquire_spawn_lock,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::script::{LAUNCH_TIME, Script, slow};
use crate::support::scripted_lock::{ScriptedLock, lost};
use crate::support::{attempts_used, gate, launch_failure, lead, seconds, until_waiting};

type Gate = SpawnGate<&'static str, u32>;
type Permit = LaunchPermit<&'static str, u32>;

fn one_thread() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn workers(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count);
    builder.enable_all().build().unwrap()
}

fn never() -> Script {
    Script::launching(|_| std::future::pending())
}

fn timeout_of<V: std::fmt::Debug>(result: Result<V, GateError>) -> TimeoutError {
    match result {
        Err(GateError::Timeout(timeout)) => timeout,
        other => panic!("not a timeout: {other:?}"),
    }
}

fn launch_error<V: std::fmt::Debug>(result: Result<V, GateError>) -> LaunchError {
    match result {
        Err(GateError::Launch(error)) => error,
        other => panic!("not the launch's error: {other:?}"),
    }
}

// Every wait has a deadline, and its error names the stage.

#[tokio::test(start_paused = true)]
async fn a_held_lock_is_waited_for_until_the_deadline_and_no_longer() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = lead(&Gate::builder(lock.clone()).build(), "key").await;
    let gate = Gate::builder(lock).lock_timeout(seconds(5)).build();
    let launcher = slow(|| Ok(7));
    for waits in 1..=2 {
        let began = Instant::now();
        let timeout = match waits {
            1 => timeout_of(gate.acquire("key").await),
            _ => timeout_of(gate.launch("key", launcher.clone()).await),
        };
        assert_eq!((timeout.stage, timeout.after), (Stage::Lock, seconds(5)));
        assert_eq!(timeout.key.as_deref(), Some("key"));
        assert_eq!(began.elapsed().as_secs(), 5);
        assert_eq!(
            timeout.to_string(),
            "timed out after 5s while waiting for the spawn lock of key"
        );
    }
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
    elsewhere.refund().await;
    lead(&gate, "key").await.refund().await;
}

#[tokio::test(start_paused = true)]
async fn a_timeout_at_the_lock_names_its_file_and_its_holder() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let _elsewhere = lead(&Gate::builder(lock.clone()).build(), "key").await;
    let gate = Gate::builder(lock.clone()).lock_timeout(seconds(2)).build();
    let mut waiter = task::spawn(gate.acquire("key"));
    assert_pending!(waiter.poll());
    let timeout = timeout_of(waiter.await);
    let holder = timeout.waiting_for.clone().unwrap();
    assert_eq!(
        (holder.pid, &holder.path),
        (std::process::id(), &lock.path_of(&"key"))
    );
    assert!(
        timeout.to_string().contains(&holder.to_string()),
        "{timeout}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_try_at_the_lock_that_never_returns_is_given_up() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| std::future::pending());
    let gate = Gate::builder(lock.clone()).lock_timeout(seconds(5)).build();
    let timeout = timeout_of(gate.acquire("key").await);
    assert_eq!((timeout.stage, timeout.after), (Stage::Lock, seconds(5)));
    let timeout = timeout_of(gate.launch("key", slow(|| Ok(7))).await);
    assert_eq!((timeout.stage, timeout.after), (Stage::Lock, seconds(5)));
    assert_eq!(
        (lock.tries.calls(), attempts_used(&gate, "key").await),
        (2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn however_little_time_there_is_a_free_lock_is_had() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .lock_timeout(Duration::ZERO)
        .build();
    lead(&gate, "key").await.refund().await;
    gate.launch("key", slow(|| Ok(7))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_discover_that_never_returns_ends_at_its_deadline_and_is_refunded() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .discover_timeout(seconds(4))
        .build();
    let launcher = slow(|| Ok(7)).discovering(|_| std::future::pending());
    let began = Instant::now();
    let timeout = timeout_of(gate.launch("key", launcher.clone()).await);
    assert_eq!(
        (timeout.stage, timeout.after),
        (Stage::Discover, seconds(4))
    );
    assert_eq!(timeout.key.as_deref(), Some("key"));
    assert_eq!(began.elapsed().as_secs(), 4);
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_launcher_that_never_returns_is_dropped_at_its_deadline_and_charged() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .launch_timeout(seconds(60))
        .budget(SpawnBudgetConfig::new(3, seconds(100)))
        .build();
    let launcher = Script::launching(|call| async move {
        match call {
            1 => std::future::pending().await,
            _ => Ok(7),
        }
    });
    let began = Instant::now();
    let (leader, follower) = tokio::join!(
        gate.launch("key", launcher.clone()),
        gate.launch("key", launcher.clone())
    );
    for heard in [leader, follower] {
        let timeout = timeout_of(heard);
        assert_eq!((timeout.stage, timeout.after), (Stage::Launch, seconds(60)));
        assert_eq!(timeout.key.as_deref(), Some("key"));
    }
    assert_eq!(began.elapsed().as_secs(), 60);
    assert_eq!(attempts_used(&gate, "key").await, 1);
    // Were it not dropped, the next launch would run beside it, which `launches` would notice.
    gate.launch("key", launcher.clone()).await.unwrap();
    assert_eq!(launcher.launches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_follower_has_one_deadline_for_all_the_flights_it_joins() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(seconds(10))
        .build();
    let first = lead(&gate, "key").await;
    let mut other = task::spawn(gate.acquire("key"));
    assert_pending!(other.poll());
    let follower = tokio::spawn({
        let gate = gate.clone();
        async move { (gate.acquire("key").await, Instant::now()) }
    });
    until_waiting(&gate, "key", 2).await;
    let began = Instant::now();
    sleep(seconds(6)).await;
    first.refund().await;
    let _second = match assert_ready!(other.poll()).unwrap() {
        Acquired::Led(permit) => permit,
        Acquired::Joined(value) => panic!("joined: {value}"),
    };
    let (heard, at) = follower.await.unwrap();
    let timeout = timeout_of(heard);
    assert_eq!((timeout.stage, timeout.after), (Stage::Follow, seconds(10)));
    assert_eq!((at - began).as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn unless_set_otherwise_a_follower_waits_as_long_as_all_stages_may_take() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .lock_timeout(seconds(10))
        .discover_timeout(seconds(20))
        .launch_timeout(seconds(30))
        .build();
    let launcher = Script::launching(|_| async {
        sleep(seconds(29)).await;
        Ok(7)
    })
    .discovering(|_| async {
        sleep(seconds(19)).await;
        Ok(None)
    });
    let (leader, follower) = tokio::join!(
        gate.launch("key", launcher.clone()),
        gate.launch("key", launcher.clone())
    );
    assert_eq!(
        (leader.unwrap().how, follower.unwrap().how),
        (How::Led, How::Joined)
    );

    let _kept = lead(&gate, "key").await;
    let timeout = timeout_of(gate.acquire("key").await);
    assert_eq!(timeout.stage, Stage::Follow);
    assert!(timeout.after >= seconds(60), "{:?}", timeout.after);
}

#[tokio::test(start_paused = true)]
async fn a_limit_without_measure_is_as_good_as_for_ever() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .lock_timeout(Duration::MAX)
        .discover_timeout(Duration::MAX)
        .launch_timeout(Duration::MAX)
        .follow_timeout(Duration::MAX)
        .drain_timeout(Duration::MAX)
        .budget(SpawnBudgetConfig::new(u32::MAX, Duration::MAX))
        .stable_after(Duration::MAX)
        .build();
    assert_eq!(gate.launch("key", slow(|| Ok(7))).await.unwrap().value, 7);
    gate.close().await.unwrap();
}

// Closing.

#[tokio::test(start_paused = true)]
async fn a_closed_gate_refuses_every_request_and_says_that_a_retry_does_not_help() {
    let gate = gate::<&str>();
    gate.clone().close().await.unwrap();
    let launcher = slow(|| Ok(7));
    let errors = [
        gate.acquire("key").await.unwrap_err(),
        gate.launch("key", launcher.clone()).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, GateError::Closed), "{error:?}");
        assert!(!error.retry_helps());
    }
    assert_eq!(launcher.launches(), 0);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_is_in_flight_and_its_callers_hear_the_outcome() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7));
    let callers = [(); 2].map(|()| {
        tokio::spawn({
            let (gate, launcher) = (gate.clone(), launcher.clone());
            async move { gate.launch("key", launcher).await }
        })
    });
    until_waiting(&gate, "key", 2).await;
    let mut closing = task::spawn(gate.close());
    assert_pending!(closing.poll());
    let began = Instant::now();
    closing.await.unwrap();
    assert_eq!(began.elapsed().as_secs(), LAUNCH_TIME.as_secs());
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().value, 7);
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_that_cannot_drain_in_time_names_its_stage_and_tells_those_who_still_wait() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .drain_timeout(seconds(3))
        .build();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    let began = Instant::now();
    let timeout = gate.close().await.unwrap_err();
    assert_eq!((timeout.stage, timeout.after), (Stage::Drain, seconds(3)));
    assert_eq!(timeout.key, None);
    assert_eq!(
        timeout.to_string(),
        "timed out after 3s while draining the flights in progress"
    );
    assert_eq!(began.elapsed().as_secs(), 3);
    assert!(assert_ready!(follower.poll()).unwrap_err().is_closed());
    gate.close().await.unwrap();
    assert!(permit.succeed(7).await.unwrap_err().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_dropped_leaves_the_gate_closed() {
    let gate = gate::<&str>();
    let permit = lead(&gate, "key").await;
    let mut closing = task::spawn(gate.close());
    assert_pending!(closing.poll());
    drop(closing);
    permit.succeed(7).await.unwrap();
    let error = gate.acquire("key").await.unwrap_err();
    assert!(matches!(error, GateError::Closed), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_over_from_a_leader_that_goes_away_after_the_gate_was_closed() {
    let lock = InMemorySpawnLock::new();
    let _elsewhere = lead(&Gate::builder(lock.clone()).build(), "key").await;
    let gate = Gate::builder(lock).build();
    let mut leader = task::spawn(gate.acquire("key"));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    let mut closing = task::spawn(gate.close());
    assert_pending!(closing.poll());
    drop(leader);
    tokio::time::advance(Duration::ZERO).await;
    tokio::task::yield_now().await;
    let error = assert_ready!(follower.poll()).unwrap_err();
    assert!(matches!(error, GateError::Closed), "{error:?}");
    assert_ready!(closing.poll()).unwrap();
}

/// So often a caller is answered at once; far more often than a task may go on without giving way.
const MANY: u32 = 10_000;

#[tokio::test]
async fn a_caller_that_is_answered_at_once_again_and_again_gives_way_to_other_tasks() {
    let gate = gate::<&str>();
    let other = tokio::spawn(async {});
    for _ in 0..MANY {
        lead(&gate, "key").await.succeed(1).await.unwrap();
    }
    assert!(other.is_finished(), "starved by a caller that leads");

    while let Ok(Acquired::Led(permit)) = gate.acquire("key").await {
        permit.fail("no such program").await;
    }
    let other = tokio::spawn(async {});
    for _ in 0..MANY {
        gate.acquire("key").await.unwrap_err();
    }
    assert!(other.is_finished(), "starved by a caller that is refused");

    let other = tokio::spawn(async {});
    for _ in 0..MANY {
        gate.snapshots().await;
    }
    assert!(other.is_finished(), "starved by an operator who looks");
}

#[tokio::test]
async fn a_caller_that_drives_its_requests_by_itself_is_woken_however_many_it_makes() {
    let gate = gate::<&str>();
    let requests = async {
        for _ in 0..MANY {
            lead(&gate, "key").await.succeed(1).await.unwrap();
        }
    };
    let mut requests = task::spawn(requests);
    // As a blocking executor does that runs on a runtime's thread: nothing else gets that thread meanwhile.
    while requests.poll().is_pending() {
        assert!(requests.is_woken());
    }
}

// Waiting does not block the thread of the runtime.

/// How often this thread waited in the kernel by itself, as against losing the processor to another one. `None` if the kernel does
/// not count that.
#[cfg(target_os = "linux")]
fn times_blocked() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let count = |line: &str| {
        line.strip_prefix("voluntary_ctxt_switches:")?
            .trim()
            .parse()
            .ok()
    };
    status.lines().find_map(count)
}

#[cfg(target_os = "linux")]
#[test]
fn waiters_of_a_lock_file_that_come_and_go_do_not_block_the_only_thread_of_a_runtime() {
    const WAITERS: u64 = 300;

    let directory = tempfile::tempdir().unwrap();
    let locks = FileSpawnLock::new(directory.path()).unwrap();
    let _held = acquire_spawn_lock(locks.path_of(&"key")).unwrap();
    let waits = Arc::new(AtomicU64::new(0));
    let lock = ScriptedLock::new(locks).on_wait({
        let waits = Arc::clone(&waits);
        move |_| {
            waits.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        }
    });
    let gate = Gate::builder(lock).build();
    one_thread().block_on(async {
        let Some(before) = times_blocked() else {
            return eprintln!("left out: this kernel does not count blocking calls");
        };
        for _ in 0..WAITERS {
            let waits_before = waits.load(Ordering::SeqCst);
            let mut waiter = task::spawn(gate.acquire("key"));
            assert_pending!(waiter.poll());
            while waits.load(Ordering::SeqCst) == waits_before {
                tokio::task::yield_now().await;
            }
            // It waits for the release by now, or does so within these turns.
            turns().await;
            drop(waiter);
            turns().await;
        }
        // This task is always ready, so the runtime itself never waits: what waits is a system call. If each wait or try made
        // one that does (the close of an inotify instance, an fsync, the join of a thread), there would be about as many as
        // waiters. Two or three come from mutexes whose holder is not running at that moment.
        let blocked = times_blocked().unwrap() - before;
        assert!(blocked < WAITERS / 10, "blocked {blocked} times");
    });
}

#[cfg(target_os = "linux")]
async fn turns() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

// Callers, handles and runtimes that go away.

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_costs_one_launch_and_the_launch_goes_on() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7));
    for waiting in 1..=20 {
        let client = tokio::spawn({
            let (gate, launcher) = (gate.clone(), launcher.clone());
            async move { gate.launch("key", launcher).await }
        });
        until_waiting(&gate, "key", 1).await;
        assert_eq!(attempts_used(&gate, "key").await, 1, "client {waiting}");
        client.abort();
        until_waiting(&gate, "key", 0).await;
    }
    let launched = gate.launch("key", launcher.clone()).await.unwrap();
    assert_eq!((launched.value, launched.how), (7, How::Joined));
    assert_eq!(launcher.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_launch_goes_on_when_every_handle_of_its_gate_is_gone() {
    let lock = InMemorySpawnLock::new();
    let (launched, mut is_launched) = mpsc::unbounded_channel();
    let launcher = Script::launching(move |_| {
        let launched = launched.clone();
        async move {
            sleep(LAUNCH_TIME).await;
            launched.send(())?;
            Ok(7)
        }
    });
    let gate = Gate::builder(lock.clone()).build();
    let mut caller = Box::pin(gate.launch("key", launcher));
    assert!(tokio::time::timeout(seconds(1), &mut caller).await.is_err());
    drop(caller);
    drop(gate);
    is_launched.recv().await.unwrap();
    // The lock is let go of as soon as the launch is settled.
    lead(&Gate::builder(lock).build(), "key")
        .await
        .refund()
        .await;
}

/// Runs a launch on a runtime that is shut down in the middle of it, and a follower on another one.
fn shut_down_mid_launch(shut_down: fn(Runtime)) {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let gate = Gate::builder(lock.clone()).build();
    let here = one_thread();
    let there = workers(2);
    let (began, mut has_begun) = mpsc::unbounded_channel();
    let launcher = Script::launching(move |_| {
        began.send(()).unwrap();
        std::future::pending()
    });
    there.spawn({
        let gate = gate.clone();
        async move { gate.launch("key", launcher).await }
    });
    let follower = here.spawn({
        let gate = gate.clone();
        async move {
            has_begun.recv().await.unwrap();
            gate.acquire("key").await
        }
    });
    here.block_on(until_waiting(&gate, "key", 2));

    shut_down(there);
    let heard = here.block_on(follower).unwrap();
    assert!(matches!(launch_error(heard), LaunchError::Abandoned { .. }));
    drop(acquire_spawn_lock(lock.path_of(&"key")).unwrap());
    assert_eq!(here.block_on(attempts_used(&gate, "key")), 1);
    here.block_on(async { lead(&gate, "key").await.succeed(7).await })
        .unwrap();
}

#[test]
fn a_runtime_shut_down_in_the_background_mid_launch_abandons_it_and_frees_the_file_lock() {
    shut_down_mid_launch(Runtime::shutdown_background);
}

#[test]
fn a_runtime_shut_down_with_a_timeout_mid_launch_abandons_it_and_frees_the_file_lock() {
    shut_down_mid_launch(|runtime| runtime.shutdown_timeout(seconds(60)));
}

#[test]
fn when_a_runtime_is_shut_down_before_the_launch_a_follower_on_another_one_takes_over() {
    let gate = gate::<&str>();
    let here = one_thread();
    let there = workers(2);
    let (looks, mut has_looked) = mpsc::unbounded_channel();
    let lost_launcher = never().discovering(move |_| {
        looks.send(()).unwrap();
        std::future::pending()
    });
    there.spawn({
        let (gate, launcher) = (gate.clone(), lost_launcher.clone());
        async move { gate.launch("key", launcher).await }
    });
    let follower = here.spawn({
        let gate = gate.clone();
        async move {
            has_looked.recv().await.unwrap();
            let fails = Script::launching(|_| async { Err("no such program".into()) });
            gate.launch("key", fails).await
        }
    });
    here.block_on(until_waiting(&gate, "key", 2));
    there.shutdown_background();
    let error = launch_error(here.block_on(follower).unwrap());
    let LaunchError::Failed { attempt, .. } = error else {
        panic!("not launched anew: {error:?}");
    };
    assert_eq!(attempt, 1, "the lost runtime's attempt is refunded");
    assert_eq!(lost_launcher.launches(), 0);
}

#[test]
fn when_a_runtime_is_shut_down_while_it_takes_the_lock_a_follower_on_another_one_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let (has_begun, begun) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let may_go_on = Mutex::new(may_go_on);
    let file_lock = FileSpawnLock::new(directory.path()).unwrap();
    // Holds up each try in the middle, on the worker's thread.
    let lock = ScriptedLock::new(file_lock.without_ledger()).on_try(move |_| {
        has_begun.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
        async { Ok(()) }
    });
    let gate = Gate::builder(lock).build();
    let here = one_thread();
    let there = workers(1);
    there.spawn({
        let gate = gate.clone();
        async move { drop(gate.acquire("key").await) }
    });
    begun.recv().unwrap();
    let follower = here.spawn({
        let gate = gate.clone();
        async move { lead(&gate, "key").await.succeed(7).await }
    });
    here.block_on(until_waiting(&gate, "key", 1));
    there.shutdown_background();
    // The one that is held up by now, and the follower's own.
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    here.block_on(follower).unwrap().unwrap();
}

#[test]
fn a_permit_that_nobody_came_for_is_given_back_when_its_runtime_is_shut_down() {
    let directory = tempfile::tempdir().unwrap();
    let gate = Gate::new(directory.path()).unwrap();
    let here = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let there = workers(1);
    let mut kept = task::spawn(gate.acquire("key"));
    {
        let _entered = there.enter();
        assert_pending!(kept.poll());
    }
    let follower = here.spawn({
        let gate = gate.clone();
        async move { lead(&gate, "key").await.succeed(7).await }
    });
    here.block_on(async {
        until_waiting(&gate, "key", 1).await;
        while gate.snapshot("key").await.flight.unwrap().stage != Stage::Launch {
            tokio::task::yield_now().await;
        }
    });
    drop(there);
    here.block_on(follower).unwrap().unwrap();
    // Whoever comes late asks again.
    let late = here.block_on(kept).unwrap();
    assert!(matches!(late, Acquired::Led(_)), "{late:?}");
}

#[test]
fn a_permit_may_be_dropped_where_there_is_no_runtime() {
    let gate = gate::<&str>();
    let there = one_thread();
    let permit = there.block_on(lead(&gate, "key"));
    drop(there);
    std::thread::spawn(move || drop(permit)).join().unwrap();
    let here = one_thread();
    assert_eq!(here.block_on(attempts_used(&gate, "key")), 1);
    here.block_on(async { lead(&gate, "key").await.succeed(7).await })
        .unwrap();
}

// What errors tell.

/// An error with a cause of its own.
#[derive(Debug)]
struct NotReady(io::Error);

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the backend did not become ready")
    }
}

impl Error for NotReady {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// The messages of an error and its sources.
fn chain(error: &dyn Error) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_chain_of_sources_carries_the_launchers_own_error_to_every_caller() {
    let gate = gate::<&str>();
    let not_ready = || -> BoxError { Box::new(NotReady(io::Error::other("connection refused"))) };
    let launcher = Script::launching(move |_| async move {
        sleep(LAUNCH_TIME).await;
        Err(not_ready())
    });
    let (leader, follower) = tokio::join!(
        gate.launch("key", launcher.clone()),
        gate.launch("key", launcher)
    );
    for heard in [leader, follower] {
        let error = heard.unwrap_err();
        assert_eq!(
            chain(&error),
            [
                "attempt 1 to launch key failed",
                "the backend did not become ready",
                "connection refused"
            ]
        );
        let LaunchError::Failed { source, .. } = launch_error::<()>(Err(error)) else {
            panic!("not a failure");
        };
        assert!(source.downcast_ref::<NotReady>().is_some());
    }

    let cannot_look = slow(|| Ok(7)).discovering(move |_| async move { Err(not_ready()) });
    let error = gate.launch("key", cannot_look).await.unwrap_err();
    assert_eq!(
        chain(&error),
        [
            "the look for a running key failed",
            "the backend did not become ready",
            "connection refused"
        ]
    );
}

/// Why the last launch failed, as callers hear who are refused.
async fn last_failures(gate: &Gate) -> [Option<String>; 2] {
    let launched = gate.launch("key", slow(|| Ok(7))).await.unwrap_err();
    let acquired = gate.acquire("key").await.unwrap_err();
    [launched, acquired].map(|error| {
        let GateError::BudgetExhausted(refusal) = &error else {
            panic!("not refused: {error:?}");
        };
        let why = launch_failure(refusal)?;
        assert!(error.to_string().contains(&why), "{error}");
        Some(why)
    })
}

#[tokio::test(start_paused = true)]
async fn a_refusal_tells_why_the_last_launch_failed() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .launch_timeout(seconds(5))
        .build();
    for storm in 1..=2 {
        for attempt in 1..=3 {
            let cause = io::Error::other(format!("reason {attempt} of {storm}"));
            lead(&gate, "key").await.fail(NotReady(cause)).await;
        }
        let told = format!("the backend did not become ready: reason 3 of {storm}");
        assert_eq!(last_failures(&gate).await, [Some(told.clone()), Some(told)]);
        sleep(seconds(30)).await;
    }

    for _ in 1..=3 {
        gate.launch("key", never()).await.unwrap_err();
    }
    let told = "timed out after 5s while launching key";
    assert_eq!(
        last_failures(&gate).await,
        [(); 2].map(|()| Some(told.into()))
    );
    sleep(seconds(30)).await;

    for _ in 1..=3 {
        drop(lead(&gate, "key").await);
    }
    let refusal = support::refusal(gate.acquire("key").await);
    assert!(
        matches!(&*refusal.reason, ExhaustionReason::CutShort { launch, .. } if *launch > 0),
        "{refusal}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_success_that_is_not_yet_stable_tells_of_no_failure() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .window_kind(WindowKind::Sliding)
        .stable_after(seconds(20))
        .build();
    for _ in 1..=3 {
        lead(&gate, "key").await.fail("no such program").await;
        sleep(seconds(10)).await;
    }
    lead(&gate, "key").await.succeed(7).await.unwrap();
    let Err(GateError::BudgetExhausted(refusal)) = gate.acquire("key").await else {
        panic!("not refused");
    };
    assert!(
        matches!(&*refusal.reason, ExhaustionReason::NotStable { .. }),
        "{refusal}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_chain_of_sources_carries_the_locks_own_error() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        Err(SpawnLockError::Lock {
            path: "key.lock".into(),
            source: io::Error::other("input/output error"),
        })
    });
    let error = Gate::builder(lock)
        .build()
        .acquire("key")
        .await
        .unwrap_err();
    assert_eq!(
        chain(&error),
        [
            "cannot take the spawn lock of key",
            "cannot lock the spawn lock key.lock",
            "input/output error"
        ]
    );

    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_verify(|call| async move {
        match call {
            // Before the permit.
            1 => Ok(()),
            _ => Err(lost()),
        }
    });
    let permit = lead(&Gate::builder(lock).build(), "key").await;
    assert_eq!(
        chain(&permit.succeed(7).await.unwrap_err()),
        [
            "the spawn lock of key was lost during its launch",
            "the spawn lock key.lock was deleted or replaced under its holder"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn each_error_says_whether_and_when_a_retry_helps() {
    let one_attempt = || {
        Gate::builder(InMemorySpawnLock::new())
            .budget(SpawnBudgetConfig::new(1, seconds(30)))
            .build()
    };
    let gate = one_attempt();
    let failed = lead(&gate, "key").await.fail("no such program").await;
    assert_eq!(
        (failed.retry_helps(), failed.retry_after()),
        (true, Some(seconds(30)))
    );
    let refused = gate.acquire("key").await.unwrap_err();
    assert_eq!(
        (refused.retry_helps(), refused.retry_after()),
        (true, Some(seconds(30)))
    );
    sleep(seconds(30)).await;
    let permit = lead(&gate, "key").await;
    let timed_out = gate.acquire("key").await.unwrap_err();
    assert!(matches!(timed_out, GateError::Timeout(_)), "{timed_out:?}");
    assert_eq!(
        (timed_out.retry_helps(), timed_out.retry_after()),
        (true, None)
    );
    drop(permit);

    let broken_lock = |retry_helps| {
        let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(move |_| async move {
            Err(SpawnLockError::Service {
                lock: "key".into(),
                source: "no quorum".into(),
                retry_helps,
            })
        });
        Gate::builder(lock).build()
    };
    for retry_helps in [false, true] {
        let error = broken_lock(retry_helps).acquire("key").await.unwrap_err();
        assert!(matches!(error, GateError::Lock(_)), "{error:?}");
        assert_eq!(error.retry_helps(), retry_helps);
    }
}

// Seams, and what may cross threads.

/// A launcher that is chosen at run time.
struct Fixed(u32);

#[async_trait]
impl BackendLauncher<&'static str, u32> for Fixed {
    async fn discover(&self, _key: &&'static str) -> Result<Option<u32>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _permit: &Permit) -> Result<u32, BoxError> {
        Ok(self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_launcher_may_be_a_trait_object_with_all_it_implements() {
    let launchers: [Arc<dyn BackendLauncher<&'static str, u32>>; 2] = [
        Arc::new(Fixed(7)),
        Arc::new(slow(|| Ok(7)).discovering(|_| async { Ok(Some(5)) })),
    ];
    let gate = gate::<&str>();
    let mut heard = Vec::new();
    for launcher in launchers {
        let launched = gate.launch("key", launcher).await.unwrap();
        heard.push((launched.value, launched.how));
    }
    assert_eq!(heard, [(7, How::Led), (5, How::Discovered)]);
}

#[tokio::test(start_paused = true)]
async fn the_futures_of_the_gate_and_of_permits_may_cross_threads() {
    fn require_send<T: Send>(_: &T) {}
    fn require_send_once<T: Send>(_: T) {}

    let gate = gate::<&str>();
    require_send(&gate.acquire("key"));
    require_send(&gate.launch("key", slow(|| Ok(7))));
    require_send(&gate.snapshot("key"));
    require_send(&gate.snapshots());
    require_send(&gate.reset("key"));
    require_send(&gate.close());

    require_send(&lead(&gate, "key").await.verify());
    require_send_once(lead(&gate, "key").await.succeed(7));
    // The future that settles a permit holds it, so each one that is dropped costs an attempt.
    gate.reset("key").await.unwrap();
    require_send_once(lead(&gate, "key").await.fail("no such program"));
    require_send_once(lead(&gate, "key").await.discovered(7));
    gate.reset("key").await.unwrap();
    require_send_once(lead(&gate, "key").await.refund());
    assert_eq!(attempts_used(&gate, "key").await, 1);
}

#[test]
fn public_types_may_cross_threads_and_be_moved_once_polled() {
    fn require<T: Send + Sync + Unpin + 'static>() {}

    require::<Gate>();
    require::<SpawnGateBuilder<&'static str, u32>>();
    require::<Acquired<&'static str, u32>>();
    require::<Permit>();
    require::<Launched<u32>>();
    require::<How>();
    require::<KeySnapshot<&'static str>>();
    require::<FlightSnapshot>();
    require::<Arc<dyn BackendLauncher<&'static str, u32>>>();

    require::<FileSpawnLock>();
    require::<InMemorySpawnLock<&'static str>>();
    require::<Box<dyn SpawnLock<&'static str>>>();
    require::<Box<dyn SpawnLease>>();
    require::<SpawnLockGuard>();
    require::<SpawnLockFileIdentity>();
    require::<LockHolder>();
    require::<LockName>();
    require::<FileKind>();
    require::<Unsafety>();

    require::<BackendKey>();
    require::<BrokerInstanceKey>();
    require::<SpawnCoordinator>();
    require::<SpawnPermit>();
    require::<SpawnOutcome>();
    require::<SpawnBudgetSnapshot>();
    require::<SpawnBudgetConfig>();
    require::<AttemptId>();
    require::<WindowKind>();
    require::<Stage>();
}

#[test]
fn errors_may_cross_threads_and_those_of_a_flight_can_be_cloned() {
    fn require<T: Error + Send + Sync + Unpin + 'static>() {}
    fn require_clone<T: Error + Clone + Send + Sync + Unpin + 'static>() {}

    require::<SpawnLockError>();
    require_clone::<SpawnBeginError>();
    require_clone::<GateError>();
    require_clone::<BudgetExhausted>();
    require_clone::<LockError>();
    require_clone::<LaunchError>();
    require_clone::<TimeoutError>();
    // Not an error itself, so that it can be had from any: it dereferences to one.
    fn shared<T: std::ops::Deref<Target = dyn Error + Send + Sync> + Clone + Send + Sync>() {}
    shared::<SharedError>();
}
