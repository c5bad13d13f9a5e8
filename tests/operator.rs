//! Interventions of operators and of programs that watch backends (promises 42-44): abort, close, report of a backend's end.

mod support;

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spawn_gate::admin::BackendEnd;
use spawn_gate::budget::{ExhaustionReason, WindowKind};
use spawn_gate::error::LaunchError;
use spawn_gate::lock::acquire_spawn_lock;
use spawn_gate::{
    Acquired, FileSpawnLock, GateError, GateKey, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate,
    SpawnGateBuilder,
};
use tokio::time::{Instant, advance, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::halt::Halt;
use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
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
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_reported_while_it_is_looked_for_frees_an_attempt_for_that_launch() {
    for with_lock in [false, true] {
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
        let looks = Script::launching(|_| async { Ok(8) }).discovering(move |call| {
            let (elder, other) = (elder.clone(), other.clone());
            async move {
                if with_lock && call == 1 {
                    // Somebody takes the lock meanwhile, so that a second look is made with the lock held.
                    drop(refusal(other.acquire(KEY).await));
                } else {
                    // The lock may be held, and whoever holds it waits for this.
                    let reported = elder.backend_ended(KEY, BackendEnd::orderly(launch));
                    timeout(seconds(5), reported).await.expect("a deadlock")?;
                }
                Ok(None)
            }
        });
        let launched = launching.launch(KEY, looks).await.unwrap();
        assert_eq!(launched.value, 8, "{with_lock}");
        assert_eq!(attempts_used(&launching, KEY).await, 1, "{with_lock}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_reported_while_the_next_one_launches_is_taken_back_and_no_other_charge() {
    for in_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        let gate = match in_file {
            true => process(directory.path(), &clock),
            false => watched(Gate::builder(InMemorySpawnLock::new())).build(),
        };
        let elder = start(&gate).await;
        let permit = lead(&gate, KEY).await;
        assert_eq!(attempts_used(&gate, KEY).await, 2, "{in_file}");
        let ended = || gate.backend_ended(KEY, BackendEnd::orderly(elder));
        ended().await.unwrap();
        ended().await.unwrap();
        let younger = permit.fencing_token();
        permit.succeed(8).await.unwrap();
        assert_eq!(attempts_used(&gate, KEY).await, 1, "{in_file}");
        ended().await.unwrap();
        assert_eq!(attempts_used(&gate, KEY).await, 1, "{in_file}");
        // The report of the next end does not take the place of the first.
        gate.backend_ended(KEY, BackendEnd::orderly(younger))
            .await
            .unwrap();
        assert_eq!(attempts_used(&gate, KEY).await, 0, "{in_file}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_launch_that_failed_changes_nothing_while_the_next_one_launches() {
    for in_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let gate = match in_file {
            true => process(directory.path(), &StepClock::new()),
            false => watched(Gate::builder(InMemorySpawnLock::new())).build(),
        };
        let failed = lead(&gate, KEY).await;
        let launch = failed.fencing_token();
        failed.fail("no such program").await;
        let permit = lead(&gate, KEY).await;
        gate.backend_ended(KEY, BackendEnd::orderly(launch))
            .await
            .unwrap();
        permit.fail("no such program").await;
        assert_eq!(attempts_used(&gate, KEY).await, 2, "{in_file}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_backend_that_was_stable_changes_nothing() {
    for end in [BackendEnd::orderly as fn(u64) -> _, |launch| {
        BackendEnd::failed(launch, "exit status: 1")
    }] {
        for in_file in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let clock = StepClock::new();
            let gate = match in_file {
                true => process(directory.path(), &clock),
                false => watched(Gate::builder(InMemorySpawnLock::new())).build(),
            };
            lead(&gate, KEY).await.fail("no such program").await;
            let launch = start(&gate).await;
            advance(seconds(31)).await;
            clock.advance(seconds(31));
            gate.backend_ended(KEY, end(launch)).await.unwrap();
            assert_eq!(attempts_used(&gate, KEY).await, 0, "{in_file}");
            // Nor does it take the charge of the next one.
            let permit = lead(&gate, KEY).await;
            gate.backend_ended(KEY, end(launch)).await.unwrap();
            permit.fail("no such program").await;
            assert_eq!(attempts_used(&gate, KEY).await, 1, "{in_file}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_stopped_with_a_ledger_as_without() {
    for in_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        let builder = match in_file {
            true => Gate::builder(FileSpawnLock::new(directory.path()).unwrap()),
            false => Gate::builder(InMemorySpawnLock::new()),
        };
        let gate = builder
            .budget(SpawnBudgetConfig::new(3, seconds(30)))
            .stable_after(seconds(5))
            .clock(clock.clone())
            .build();
        let launcher = Script::launching(|_| async { Ok(7) });
        for _ in 0..29 {
            drop(gate.launch(KEY, launcher.clone()).await);
            advance(seconds(1)).await;
            clock.advance(seconds(1));
        }
        assert_eq!(launcher.launches(), 3, "{in_file}");
    }
}

// At the edges.

#[tokio::test(start_paused = true)]
async fn an_abort_that_comes_as_the_permit_is_had_is_not_lost() {
    for leads_task in [false, true] {
        let halt = Halt::new();
        let halted = halt.clone();
        let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(move |_| {
            let halt = halted.clone();
            async move {
                halt.halt().await;
                Ok(())
            }
        });
        let gate = Gate::builder(lock).build();
        let launcher = Script::launching(|_| async { Ok(7) });
        let leader = tokio::spawn({
            let (gate, launcher) = (gate.clone(), launcher.clone());
            async move {
                match leads_task {
                    true => gate.launch(KEY, launcher).await.map(drop),
                    false => gate.acquire(KEY).await.map(drop),
                }
            }
        });
        halt.reached().await;
        let mut follower = task::spawn(gate.acquire(KEY));
        assert_pending!(follower.poll());
        halt.let_go();
        assert!(gate.abort(KEY).await);
        is_aborted(&leader.await.unwrap().unwrap_err());
        is_aborted(&timeout(seconds(1), follower).await.unwrap().unwrap_err());
        assert_eq!(launcher.launches(), 0);
        assert_eq!(attempts_used(&gate, KEY).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_aborted_launch_that_succeeds_or_fails_later_stays_charged_and_hears_of_the_abort() {
    for succeeds in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let gate = process(directory.path(), &StepClock::new());
        let permit = lead(&gate, KEY).await;
        gate.abort(KEY).await;
        is_aborted(&match succeeds {
            true => permit.succeed(7).await.unwrap_err(),
            false => permit.fail("no such program").await,
        });
        assert_eq!(attempts_used(&gate, KEY).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_whose_lock_does_not_answer_has_a_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let path = lock.path_of(&KEY);
    let lock = ScriptedLock::new(lock).on_verify(|_| pending());
    let gate = Gate::builder(lock).build();
    let began = Instant::now();
    gate.reset(KEY).await.unwrap();
    assert_eq!(began.elapsed(), seconds(5));
    drop(acquire_spawn_lock(&path).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_success_after_an_abort_is_a_failure_to_all_processes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let one_attempt = || {
        Gate::builder(FileSpawnLock::new(directory.path()).unwrap())
            .budget(SpawnBudgetConfig::new(1, seconds(60)))
            .clock(clock.clone())
            .build()
    };
    let gate = one_attempt();
    let permit = lead(&gate, KEY).await;
    gate.abort(KEY).await;
    is_aborted(&permit.succeed(7).await.unwrap_err());
    for gate in [gate, one_attempt()] {
        advance(seconds(1)).await;
        let refused = refusal(gate.acquire(KEY).await);
        assert_eq!(
            refused.reason.to_string(),
            "the last launch failed: the launch of indexer was aborted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_that_was_aborted_does_not_count_as_one() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(60)))
        .build();
    lead(&gate, KEY).await.fail("no such program").await;
    let hangs =
        Script::launching(|_| async { panic!("no attempt is left") }).discovering(|_| pending());
    let looking = tokio::spawn({
        let gate = gate.clone();
        async move { gate.launch(KEY, hangs).await }
    });
    until_waiting(&gate, KEY, 1).await;
    assert!(gate.abort(KEY).await);
    is_aborted(&looking.await.unwrap().unwrap_err());
    let finds = Script::launching(|_| async { panic!("one is running") })
        .discovering(|_| async { Ok(Some(7)) });
    assert_eq!(gate.launch(KEY, finds).await.unwrap().value, 7);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_aborted_before_its_caller_collected_it_is_not_given_out() {
    let directory = tempfile::tempdir().unwrap();
    let gate = process(directory.path(), &StepClock::new());
    let mut asking = task::spawn(gate.acquire(KEY));
    assert_pending!(asking.poll());
    while !asking.is_woken() {
        tokio::task::yield_now().await;
    }
    assert!(gate.abort(KEY).await);
    is_aborted(&asking.await.unwrap_err());
    assert_eq!(attempts_used(&gate, KEY).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_nobody_collected_costs_nothing_if_it_is_aborted() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new());
    let directory = tempfile::tempdir().unwrap();
    let gates = [
        Gate::builder(lock).build(),
        process(directory.path(), &StepClock::new()),
    ];
    for gate in gates {
        let mut asking = task::spawn(gate.acquire(KEY));
        assert_pending!(asking.poll());
        while !asking.is_woken() {
            tokio::task::yield_now().await;
        }
        assert!(gate.abort(KEY).await);
        assert!(gate.snapshot(KEY).await.flight.is_none());
        drop(asking);
        assert_eq!(attempts_used(&gate, KEY).await, 0);
        lead(&gate, KEY).await.succeed(7).await.unwrap();
    }
}
