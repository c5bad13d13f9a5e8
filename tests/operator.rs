//! What an operator, or whoever watches the backends, may do to a gate: abort a flight, report a backend's end.

mod support;

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spawn_gate::admin::BackendEnd;
use spawn_gate::budget::{ExhaustionReason, WindowKind};
use spawn_gate::lock::acquire_spawn_lock;
use spawn_gate::{
    Acquired, FileSpawnLock, GateError, GateKey, InMemorySpawnLock, LaunchError, SpawnBudgetConfig,
    SpawnGate, SpawnGateBuilder,
};
use tokio::time::{Instant, advance, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::script::Script;
use crate::support::step_clock::StepClock;
use crate::support::{attempts_used, lead, refusal, seconds, until_waiting};

type Gate = SpawnGate<&'static str, u32>;

const KEY: &str = "indexer";

/// Says when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A launcher that hangs, and whether its launch was dropped.
fn hanging() -> (Script, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let launcher = Script::launching({
        let dropped = Arc::clone(&dropped);
        move |_| {
            let dropped = Dropped(Arc::clone(&dropped));
            async move {
                let _dropped = dropped;
                pending().await
            }
        }
    });
    (launcher, dropped)
}

#[track_caller]
fn is_aborted(error: &GateError) {
    assert!(
        matches!(error, GateError::Launch(LaunchError::Aborted { key }) if &**key == KEY),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_aborted_launch_is_dropped_charged_and_told_to_all_and_its_lock_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let path = lock.path_of(&KEY);
    let gate = Gate::builder(lock).build();
    let (launcher, dropped) = hanging();
    let leader = tokio::spawn({
        let (gate, launcher) = (gate.clone(), launcher.clone());
        async move { gate.launch(KEY, launcher).await }
    });
    until_waiting(&gate, KEY, 1).await;
    let mut follower = task::spawn(gate.acquire(KEY));
    assert_pending!(follower.poll());
    while launcher.launches() == 0 {
        tokio::task::yield_now().await;
    }

    assert!(gate.abort(KEY).await);
    assert!(dropped.load(Ordering::SeqCst));
    drop(acquire_spawn_lock(&path).unwrap());
    is_aborted(&leader.await.unwrap().unwrap_err());
    is_aborted(&assert_ready!(follower.poll()).unwrap_err());
    assert_eq!(attempts_used(&gate, KEY).await, 1);
    assert!(!gate.abort(KEY).await, "there is no flight any more");
    lead(&gate, KEY).await.succeed(7).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_is_aborted_while_it_waits_for_its_lock_is_charged_nothing() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = lead(&Gate::builder(lock.clone()).build(), KEY).await;
    let gate = Gate::builder(lock).build();
    let mut asking = task::spawn(gate.acquire(KEY));
    assert_pending!(asking.poll());
    assert!(gate.abort(KEY).await);
    is_aborted(&asking.await.unwrap_err());
    assert_eq!(attempts_used(&gate, KEY).await, 0);
    drop(elsewhere);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_aborted_keeps_its_lock_until_it_is_settled_and_its_success_is_none() {
    let gate: Gate = support::gate();
    let permit = lead(&gate, KEY).await;
    let mut follower = task::spawn(gate.acquire(KEY));
    assert_pending!(follower.poll());
    assert!(gate.abort(KEY).await);
    is_aborted(&assert_ready!(follower.poll()).unwrap_err());
    assert_eq!(attempts_used(&gate, KEY).await, 1);

    let mut next = task::spawn(gate.acquire(KEY));
    assert_pending!(next.poll());
    is_aborted(&permit.succeed(7).await.unwrap_err());
    let Ok(Acquired::Led(next)) = next.await else {
        panic!("it does not lead");
    };
    assert_eq!(next.attempt_number(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_close_ends_what_has_not_drained_by_its_timeout() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .drain_timeout(seconds(3))
        .build();
    let (launcher, dropped) = hanging();
    let asking = tokio::spawn({
        let gate = gate.clone();
        async move { gate.launch(KEY, launcher).await }
    });
    until_waiting(&gate, KEY, 1).await;
    gate.close().await.unwrap_err();
    assert!(asking.await.unwrap().unwrap_err().is_closed());
    assert!(dropped.load(Ordering::SeqCst));
}

// The end of a backend.

fn watched<K: GateKey>(builder: SpawnGateBuilder<K, u32>) -> SpawnGateBuilder<K, u32> {
    builder
        .budget(SpawnBudgetConfig::new(2, seconds(60)))
        .stable_after(seconds(30))
}

/// Launches one that starts well, and returns its fencing token.
async fn start(gate: &Gate) -> u64 {
    let permit = lead(gate, KEY).await;
    let launch = permit.fencing_token();
    permit.succeed(7).await.unwrap();
    launch
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_ends_in_an_orderly_way_again_and_again_uses_up_no_budget() {
    for kind in [WindowKind::Fixed, WindowKind::Sliding] {
        let gate = watched(Gate::builder(InMemorySpawnLock::new()))
            .window_kind(kind)
            .build();
        for _ in 0..10 {
            let launch = start(&gate).await;
            advance(seconds(2)).await;
            gate.backend_ended(KEY, BackendEnd::orderly(launch))
                .await
                .unwrap();
            assert_eq!(attempts_used(&gate, KEY).await, 0, "{kind:?}");
            // Once is enough, and a report of an elder one is none.
            gate.backend_ended(KEY, BackendEnd::orderly(launch))
                .await
                .unwrap();
        }
        lead(&gate, KEY).await.fail("no such program").await;
        gate.backend_ended(KEY, BackendEnd::orderly(1))
            .await
            .unwrap();
        assert_eq!(attempts_used(&gate, KEY).await, 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_is_counted_and_the_next_refusal_tells_why() {
    let gate = watched(Gate::builder(InMemorySpawnLock::new())).build();
    for _ in 0..2 {
        let launch = start(&gate).await;
        gate.backend_ended(KEY, BackendEnd::failed(launch, "exit status: 1"))
            .await
            .unwrap();
        // It is gone, so it does not prove stable.
        advance(seconds(1)).await;
    }
    let refused = refusal(gate.acquire(KEY).await);
    assert_eq!(
        refused.reason.to_string(),
        "the backend of the last launch ended: exit status: 1"
    );
}

/// A gate as another process has it.
fn process(directory: &Path, clock: &StepClock) -> Gate {
    let lock = FileSpawnLock::new(directory).unwrap();
    watched(Gate::builder(lock)).clock(clock.clone()).build()
}

#[tokio::test(start_paused = true)]
async fn an_end_is_known_to_all_processes_whichever_reports_it() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let process = || process(directory.path(), &clock);
    for _ in 0..5 {
        let launch = start(&process()).await;
        assert_eq!(attempts_used(&process(), KEY).await, 1);
        process()
            .backend_ended(KEY, BackendEnd::orderly(launch))
            .await
            .unwrap();
        assert_eq!(attempts_used(&process(), KEY).await, 0);
    }
    for _ in 0..2 {
        let launch = start(&process()).await;
        process()
            .backend_ended(KEY, BackendEnd::failed(launch, "exit status: 1"))
            .await
            .unwrap();
    }
    for _ in 0..2 {
        let refused = refusal(process().acquire(KEY).await);
        assert!(
            matches!(&*refused.reason, ExhaustionReason::BackendEnded { reason, .. } if reason == "exit status: 1"),
            "{refused}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_reported_while_a_launcher_holds_the_lock_and_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [elder, launching, other] = [(); 3].map(|()| {
        let lock = FileSpawnLock::new(directory.path()).unwrap();
        Gate::builder(lock)
            .budget(SpawnBudgetConfig::new(1, seconds(60)))
            .stable_after(seconds(30))
            .clock(clock.clone())
            .build()
    });
    let launch = start(&elder).await;
    // Its next start is refused as long as its end is not reported; and that comes while the lock is held.
    let waits_for_its_end = Script::launching(|_| async { Ok(8) }).discovering(move |call| {
        let (elder, other) = (elder.clone(), other.clone());
        async move {
            match call {
                // So that the second look is made with the lock held.
                1 => drop(other.reset(KEY).await),
                _ => {
                    let reported = elder.backend_ended(KEY, BackendEnd::orderly(launch));
                    timeout(seconds(5), reported).await.expect("a deadlock")?;
                }
            }
            Ok(None)
        }
    });
    let began = Instant::now();
    let launched = launching.launch(KEY, waits_for_its_end).await.unwrap();
    assert_eq!(launched.value, 8);
    assert!(began.elapsed() < seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_report_for_a_key_that_was_never_launched_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let gate = process(directory.path(), &StepClock::new());
    gate.backend_ended(KEY, BackendEnd::orderly(7))
        .await
        .unwrap();
    assert_eq!(attempts_used(&gate, KEY).await, 0);
    let names = std::fs::read_dir(directory.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["probe.lock"], "no file is made for it");
    advance(Duration::from_millis(1)).await;
}
