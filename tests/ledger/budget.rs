//! The budget that all processes share (promise 22), also when a clock steps (promise 23) or the count is lost.

use std::fs;
use std::time::Duration;

use spawn_gate::{
    Acquired, BootReading, ClockReading, FileSpawnLock, GateError, LedgerReading,
    SpawnBudgetConfig, Stage, WindowKind, acquire_spawn_lock, inspect_spawn_lock,
};

use super::{Gate, KEY, WINDOW, builder, fail_once, gate, lock_path, permit};
use crate::step_clock::StepClock;

async fn retry_after(gate: &Gate) -> Duration {
    match gate.acquire(KEY).await {
        Err(GateError::BudgetExhausted(refusal)) => refusal.retry_after,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn all_processes_together_get_max_attempts_in_a_window_and_a_restart_resets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..3 {
        fail_once(&gate(directory.path(), &clock)).await;
        clock.advance(Duration::from_secs(1));
    }
    let next = gate(directory.path(), &clock);
    assert_eq!(retry_after(&next).await, Duration::from_secs(27));
    assert_eq!(next.snapshot(KEY).await.budget.attempts_used, 3);

    clock.advance(Duration::from_secs(27));
    let later = gate(directory.path(), &clock);
    assert_eq!(permit(&later).await.attempt_number(), 1);
}

#[tokio::test]
async fn a_sliding_window_holds_across_processes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = || {
        builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .budget(SpawnBudgetConfig::new(2, WINDOW))
            .window_kind(WindowKind::Sliding)
            .build()
    };
    fail_once(&gate()).await;
    clock.advance(Duration::from_secs(29));
    fail_once(&gate()).await;
    clock.advance(Duration::from_secs(1));
    fail_once(&gate()).await;
    assert_eq!(retry_after(&gate()).await, Duration::from_secs(29));
}

#[tokio::test]
async fn success_in_one_process_resets_the_budget_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock)).await;
    fail_once(&gate(directory.path(), &clock)).await;
    let third = gate(directory.path(), &clock);
    permit(&third).await.succeed(1).await.unwrap();
    assert_eq!(
        permit(&gate(directory.path(), &clock))
            .await
            .attempt_number(),
        1
    );
}

#[tokio::test]
async fn what_never_reached_a_launch_is_taken_back_from_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let used = async || {
        gate(directory.path(), &clock)
            .snapshot(KEY)
            .await
            .budget
            .attempts_used
    };
    permit(&gate(directory.path(), &clock)).await.refund().await;
    assert_eq!(used().await, 0);
    permit(&gate(directory.path(), &clock))
        .await
        .discovered(1)
        .await;
    assert_eq!(used().await, 0);
    // What was dropped may have been started.
    drop(permit(&gate(directory.path(), &clock)).await);
    assert_eq!(used().await, 1);
}

#[tokio::test]
async fn a_leader_cancelled_at_any_await_before_its_permit_leaves_no_charge_and_no_lock() {
    let clock = StepClock::new();
    let mut finished = false;
    for polls in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let cancelled = gate(directory.path(), &clock);
        let mut request = Box::pin(cancelled.acquire(KEY));
        let mut granted = None;
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            let mut cx = std::task::Context::from_waker(waker);
            if let std::task::Poll::Ready(result) = request.as_mut().poll(&mut cx) {
                granted = Some(result);
                break;
            }
            // A blocking call finishes between two polls.
            tokio::task::spawn_blocking(|| {}).await.unwrap();
        }
        drop(request);
        if granted.take().is_some() {
            finished = true;
            break;
        }
        // The next request gets the lock once the charge was given back.
        let next = gate(directory.path(), &clock);
        let permit = permit(&next).await;
        assert_eq!(permit.attempt_number(), 1, "cancelled after {polls} polls");
        permit.refund().await;
    }
    assert!(finished);
}

#[tokio::test(start_paused = true)]
async fn an_operators_reset_reaches_processes_that_are_refusing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&broker).await;
    }
    assert_eq!(retry_after(&broker).await, WINDOW);
    gate(directory.path(), &clock).reset(&KEY).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(permit(&broker).await.attempt_number(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_refused_requests_looks_into_the_ledger_once_a_second_and_tells_once() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&gate).await;
    }
    let mut told = 0;
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(50)).await;
        match gate.acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => told += u32::from(refusal.first),
            other => panic!("not refused: {other:?}"),
        }
    }
    assert_eq!(told, 1);
    // Nothing of this was charged, and what the ledger says is as before.
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 3);
}

#[tokio::test]
async fn a_reset_waits_for_the_launch_in_progress_and_names_its_holder_when_it_gives_up() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let held = permit(&gate(directory.path(), &clock)).await;
    let operator = Gate::builder(FileSpawnLock::new(directory.path()).unwrap())
        .lock_timeout(Duration::ZERO)
        .build();
    let Err(GateError::Timeout(timeout)) = operator.reset(&KEY).await else {
        panic!("it did not wait");
    };
    assert_eq!(timeout.stage, Stage::Lock);
    assert_eq!(timeout.waiting_for.unwrap().pid, std::process::id());
    drop(held);
    operator.reset(&KEY).await.unwrap();
    assert_eq!(operator.snapshot(KEY).await.budget.attempts_used, 0);
}

#[tokio::test]
async fn no_step_of_a_clock_and_no_reboot_locks_a_key_out_for_longer_than_one_window() {
    let hour = Duration::from_secs(3600);
    type Step = fn(&mut ClockReading, Duration);
    let steps: [(&str, Step); 6] = [
        ("wall back", |now, by| now.unix -= by),
        ("wall forward", |now, by| now.unix += by),
        ("reboot", |now, _| {
            now.boot = Some(BootReading {
                id: 8,
                elapsed: Duration::ZERO,
            });
        }),
        ("reboot with the wall set back", |now, by| {
            now.unix -= by;
            now.boot = Some(BootReading {
                id: 8,
                elapsed: Duration::ZERO,
            });
        }),
        ("another time namespace", |now, by| {
            now.boot.as_mut().unwrap().elapsed += by;
        }),
        ("no boot clock any more", |now, _| now.boot = None),
    ];
    for (name, step) in steps {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        for _ in 0..3 {
            fail_once(&gate(directory.path(), &clock)).await;
        }
        clock.advance(Duration::from_secs(10));
        clock.set(|now| step(now, hour));
        match gate(directory.path(), &clock).acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => {
                assert!(refusal.retry_after <= WINDOW, "{name}: {refusal:?}");
                clock.advance(refusal.retry_after);
                let later = gate(directory.path(), &clock);
                assert_eq!(permit(&later).await.attempt_number(), 1, "{name}");
            }
            // At worst the step cost this window.
            Ok(Acquired::Led(permit)) => assert_eq!(permit.attempt_number(), 1, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn two_time_namespaces_that_take_turns_share_one_budget() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let shifted = StepClock::new();
    shifted.set(|now| {
        let boot = now.boot.as_mut().unwrap();
        boot.elapsed += Duration::from_secs(100_000);
        boot.id += 1;
    });
    fail_once(&gate(directory.path(), &clock)).await;
    fail_once(&gate(directory.path(), &shifted)).await;
    fail_once(&gate(directory.path(), &clock)).await;
    for clock in [&clock, &shifted] {
        assert!(retry_after(&gate(directory.path(), clock)).await <= WINDOW);
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_counts_as_a_budget_just_used_up_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let path = lock_path(directory.path());
    for junk in [
        "x",
        "4711\n",
        &"\0".repeat(4000),
        &"record 1 version 1 checksum 0\nend\n".repeat(200),
    ] {
        let contents = format!("{:128}{junk}", "");
        drop(fs::remove_file(&path));
        drop(acquire_spawn_lock(&path).unwrap());
        fs::write(&path, contents).unwrap();
        let refused = gate(directory.path(), &clock);
        assert_eq!(retry_after(&refused).await, WINDOW);
        assert!(matches!(
            inspect_spawn_lock(&path).unwrap().ledger,
            LedgerReading::Found(_)
        ));
        clock.advance(WINDOW);
        let healed = gate(directory.path(), &clock);
        assert_eq!(permit(&healed).await.attempt_number(), 1);
    }
}
