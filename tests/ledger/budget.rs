//! The budget that all processes share (promises 22, 32, 40), also if a clock steps (promise 23) or the count is lost (promise 33).

use std::fs;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spawn_gate::admin::{Ledger, LedgerReading, inspect_spawn_lock};
use spawn_gate::budget::{BootReading, ClockReading, WindowKind};
use spawn_gate::error::Stage;
use spawn_gate::{
    Acquired, FileSpawnLock, GateError, How, InMemorySpawnLock, SpawnBudgetConfig,
    acquire_spawn_lock,
};
use tokio_test::{assert_pending, task};

use super::{Gate, KEY, WINDOW, builder, finder, gate, lock_path, until_flight};
use crate::support::halt::Halt;
use crate::support::hooked_lock::At;
use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
use crate::support::step_clock::StepClock;
use crate::support::{fail_once, launch_failure, lead, refusal};

async fn retry_after(gate: &Gate) -> Duration {
    refusal(gate.acquire(KEY).await).retry_after
}

#[tokio::test]
async fn all_processes_together_get_max_attempts_in_a_window_and_a_restart_resets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..3 {
        fail_once(&gate(directory.path(), &clock), KEY).await;
        clock.advance(Duration::from_secs(1));
    }
    let next = gate(directory.path(), &clock);
    assert_eq!(retry_after(&next).await, Duration::from_secs(27));
    assert_eq!(next.snapshot(KEY).await.budget.attempts_used, 3);

    clock.advance(Duration::from_secs(27));
    let later = gate(directory.path(), &clock);
    assert_eq!(lead(&later, KEY).await.attempt_number(), 1);
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
    fail_once(&gate(), KEY).await;
    clock.advance(Duration::from_secs(29));
    fail_once(&gate(), KEY).await;
    clock.advance(Duration::from_secs(1));
    fail_once(&gate(), KEY).await;
    assert_eq!(retry_after(&gate()).await, Duration::from_secs(29));
}

#[tokio::test]
async fn a_sliding_maximum_beyond_what_a_ledger_holds_counts_as_24_and_one_refusal_is_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let gate = builder(
        FileSpawnLock::new(directory.path()).unwrap(),
        &StepClock::new(),
    )
    .budget(SpawnBudgetConfig::new(100, WINDOW))
    .window_kind(WindowKind::Sliding)
    .build();
    for _ in 0..24 {
        fail_once(&gate, KEY).await;
    }
    for is_first in [true, false, false] {
        match gate.acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => assert_eq!(refusal.first, is_first),
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_maximum_beyond_24_counts_in_full_where_it_need_not_fit_a_record() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let budget = SpawnBudgetConfig::new(26, WINDOW);
    let fixed = builder(lock, &StepClock::new()).budget(budget).build();
    let unrecorded = Gate::builder(InMemorySpawnLock::new())
        .budget(budget)
        .window_kind(WindowKind::Sliding)
        .build();
    for gate in [fixed, unrecorded] {
        for _ in 0..26 {
            fail_once(&gate, KEY).await;
        }
        refusal(gate.acquire(KEY).await);
    }
}

#[tokio::test]
async fn a_snapshot_numbers_the_attempt_as_the_ledger_does() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock), KEY).await;
    let gate = gate(directory.path(), &clock);
    let _permit = lead(&gate, KEY).await;
    let flight = gate.snapshot(KEY).await.flight.unwrap();
    assert_eq!(flight.attempt_number, Some(2));
}

#[tokio::test]
async fn success_in_one_process_resets_the_budget_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock), KEY).await;
    fail_once(&gate(directory.path(), &clock), KEY).await;
    let third = gate(directory.path(), &clock);
    lead(&third, KEY).await.succeed(1).await.unwrap();
    assert_eq!(
        lead(&gate(directory.path(), &clock), KEY)
            .await
            .attempt_number(),
        1
    );
}

/// Long before the window ends.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A fresh gate with two attempts where a success resets the budget only after [`STABLE_AFTER`].
fn gate_with_stable_after(directory: &Path, clock: &StepClock) -> Gate {
    builder(FileSpawnLock::new(directory).unwrap(), clock)
        .budget(SpawnBudgetConfig::new(2, WINDOW))
        .stable_after(STABLE_AFTER)
        .build()
}

/// Uses both attempts of [`gate_with_stable_after`], the first one for a success, then checks that they stay used.
async fn a_success_frees_nothing_after(second_attempt: impl AsyncFnOnce(&dyn Fn() -> Gate)) {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = || gate_with_stable_after(directory.path(), &clock);
    lead(&gate(), KEY).await.succeed(1).await.unwrap();
    clock.advance(Duration::from_secs(1));
    second_attempt(&gate).await;
    clock.advance(STABLE_AFTER);
    let left = WINDOW - STABLE_AFTER - Duration::from_secs(1);
    assert_eq!(retry_after(&gate()).await, left);
}

#[tokio::test]
async fn a_success_frees_nothing_after_a_launch_that_was_killed() {
    a_success_frees_nothing_after(async |gate| kill_while_launching(gate())).await;
}

#[tokio::test]
async fn a_success_frees_nothing_after_a_permit_that_was_dropped() {
    a_success_frees_nothing_after(async |gate| drop(lead(&gate(), KEY).await)).await;
}

#[tokio::test]
async fn a_success_frees_nothing_after_a_look_that_found_its_backend_gone_and_was_refused() {
    a_success_frees_nothing_after(async |gate| {
        lead(&gate(), KEY).await.succeed(2).await.unwrap();
        let launcher = Script::launching(|_| async { Ok(3) });
        let refused = gate().launch(KEY, launcher.clone()).await;
        assert!(
            matches!(refused, Err(GateError::BudgetExhausted(_))),
            "{refused:?}"
        );
        assert_eq!((launcher.discover.calls(), launcher.launches()), (1, 0));
    })
    .await;
}

/// Launches on a runtime that is gone before the launch ends, as everything is when a process is killed.
fn kill_while_launching(gate: Gate) {
    let launching = Halt::new();
    let launcher = Script::launching({
        let launching = launching.clone();
        move |_| {
            let launching = launching.clone();
            async move {
                launching.halt().await;
                pending().await
            }
        }
    });
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move { gate.launch(KEY, launcher).await });
        runtime.block_on(launching.reached());
    });
    process.join().unwrap();
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
    lead(&gate(directory.path(), &clock), KEY)
        .await
        .refund()
        .await;
    assert_eq!(used().await, 0);
    lead(&gate(directory.path(), &clock), KEY)
        .await
        .discovered(1)
        .await;
    assert_eq!(used().await, 0);
    // What was dropped may have been started.
    drop(lead(&gate(directory.path(), &clock), KEY).await);
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
        let permit = lead(&next, KEY).await;
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
        fail_once(&broker, KEY).await;
    }
    assert_eq!(retry_after(&broker).await, WINDOW);
    gate(directory.path(), &clock).reset(KEY).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(lead(&broker, KEY).await.attempt_number(), 1);
}

async fn refusing_after_dropped_permits(directory: &Path, clock: &StepClock) -> Gate {
    let broker = gate(directory, clock);
    for _ in 0..3 {
        drop(lead(&broker, KEY).await);
    }
    assert_eq!(retry_after(&broker).await, WINDOW);
    broker
}

#[tokio::test(start_paused = true)]
async fn an_operators_reset_reaches_a_process_whose_permits_were_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = refusing_after_dropped_permits(directory.path(), &clock).await;
    gate(directory.path(), &clock).reset(KEY).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(lead(&broker, KEY).await.attempt_number(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_success_elsewhere_reaches_a_process_whose_permits_were_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = refusing_after_dropped_permits(directory.path(), &clock).await;
    // The window of the others' clock is over, that of this process's is not.
    clock.advance(WINDOW);
    let other = gate(directory.path(), &clock);
    lead(&other, KEY).await.succeed(1).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let found = broker.launch(KEY, finder()).await.unwrap();
    assert_eq!(found.how, How::Discovered);
}

#[tokio::test(start_paused = true)]
async fn a_used_up_budget_is_refused_without_waiting_for_whoever_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&broker, KEY).await;
    }
    let _held = acquire_spawn_lock(lock_path(directory.path())).unwrap();
    // So that the broker looks into the ledger again.
    tokio::time::advance(Duration::from_secs(2)).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(retry_after(&broker).await, WINDOW);
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_finds_nothing_is_refused_without_waiting_for_whoever_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&broker, KEY).await;
    }
    let _held = acquire_spawn_lock(lock_path(directory.path())).unwrap();
    let asked = tokio::time::Instant::now();
    let launcher = Script::launching(|_| async { Ok(1) });
    let refused = refusal(broker.launch(KEY, launcher.clone()).await);
    assert_eq!(refused.retry_after, WINDOW);
    assert_eq!(launcher.discover.calls(), 1);
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_out_of_attempts_waits_for_a_launch_in_progress_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [broker, other] = [(); 2].map(|()| gate(directory.path(), &clock));
    for _ in 0..3 {
        fail_once(&broker, KEY).await;
    }
    other.reset(KEY).await.unwrap();
    for _ in 0..2 {
        fail_once(&other, KEY).await;
    }
    let last = lead(&other, KEY).await;
    // So that the broker looks into the ledger again.
    tokio::time::advance(Duration::from_secs(1)).await;
    let asking = tokio::spawn({
        let broker = broker.clone();
        async move { broker.launch(KEY, finder()).await }
    });
    while !asking.is_finished() {
        let flight = broker.snapshot(KEY).await.flight;
        if flight.is_some_and(|flight| flight.waiting_for.is_some()) {
            break;
        }
        tokio::task::yield_now().await;
    }
    last.succeed(1).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap().how, How::Discovered);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_out_of_attempts_finds_what_another_one_launched_and_is_not_yet_stable() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [broker, other] = [(); 2].map(|()| cautious(directory.path(), &clock));
    fail_once(&broker, KEY).await;
    other.reset(KEY).await.unwrap();
    lead(&other, KEY).await.succeed(9).await.unwrap();
    // So that the broker looks into the ledger again.
    tokio::time::advance(Duration::from_secs(1)).await;
    let launched = broker.launch(KEY, finder()).await.unwrap();
    assert_eq!((launched.value, launched.how), (9, How::Discovered));
}

fn ledger(directory: &Path) -> Ledger {
    match inspect_spawn_lock(lock_path(directory)).unwrap().ledger {
        LedgerReading::Found(ledger) => *ledger,
        other => panic!("{other:?}"),
    }
}

/// A process that makes one attempt in a window, also if the backend starts well and does not stay up.
fn cautious(directory: &Path, clock: &StepClock) -> Gate {
    builder(FileSpawnLock::new(directory).unwrap(), clock)
        .budget(SpawnBudgetConfig::new(1, WINDOW))
        .stable_after(WINDOW)
        .build()
}

/// A process that makes two attempts in a window and no more.
fn strict(directory: &Path, clock: &StepClock) -> Gate {
    builder(FileSpawnLock::new(directory).unwrap(), clock)
        .budget(SpawnBudgetConfig::new(2, WINDOW))
        .build()
}

/// Why the last launch failed, as a caller hears who is refused.
async fn last_failure(gate: &Gate) -> Option<String> {
    match gate.acquire(KEY).await {
        Err(GateError::BudgetExhausted(refusal)) => launch_failure(&refusal),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_tells_why_the_last_launch_failed_in_whichever_process() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [failing, other] = [(); 2].map(|()| gate(directory.path(), &clock));
    for attempt in 1..=3 {
        let reason = format!("reason {attempt}\nand more");
        lead(&failing, KEY).await.fail(reason).await;
    }
    // After a second, they look into the ledger again.
    for _ in 0..2 {
        for gate in [&failing, &other, &failing, &other] {
            let told = last_failure(gate).await.unwrap();
            assert_eq!(told, r"reason 3\nand more");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_waited_for_the_last_attempt_tells_why_it_failed_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [failing, other] = [(); 2].map(|()| gate(directory.path(), &clock));
    fail_once(&failing, KEY).await;
    fail_once(&failing, KEY).await;
    let last = lead(&failing, KEY).await;
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.acquire(KEY).await }
    });
    until_flight(&other, |flight| flight.waiting_for.is_some()).await;
    last.fail("the last reason").await;
    assert!(waiting.await.unwrap().is_err());
    assert_eq!(last_failure(&other).await.unwrap(), "the last reason");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_tells_no_reason_of_a_launch_before_one_that_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let process = || gate(directory.path(), &clock);
    let [one, other] = [process(), process()];
    for _ in 0..3 {
        lead(&one, KEY).await.fail("an old reason").await;
    }
    assert!(last_failure(&one).await.is_some());
    process().reset(KEY).await.unwrap();
    for _ in 0..3 {
        // When a process is killed, its record stays as it is now.
        drop(lead(&process(), KEY).await);
    }
    // So that it looks into the ledger again.
    tokio::time::advance(Duration::from_secs(1)).await;
    for gate in [&one, &other, &one, &other] {
        assert_eq!(last_failure(gate).await, None);
    }
    let lost = ledger(directory.path()).lost_launch();
    let last = ledger(directory.path()).last_outcome().unwrap().launch;
    assert!(lost.unwrap() > last);
    one.reset(KEY).await.unwrap();
    for _ in 0..3 {
        let permit = lead(&process(), KEY).await;
        assert_eq!(ledger(directory.path()).lost_launch(), None, "under way");
        permit.fail("a new reason").await;
    }
    assert_eq!(last_failure(&process()).await.unwrap(), "a new reason");
    assert_eq!(ledger(directory.path()).lost_launch(), None);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_killed_while_it_looks_for_a_backend_takes_no_reason_away() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..2 {
        fail_once(&gate(directory.path(), &clock), KEY).await;
    }
    let looking = gate(directory.path(), &clock);
    let never_finds = Script::launching(|_| pending()).discovering(|_| pending());
    let mut request = task::spawn(looking.launch(KEY, never_finds));
    assert_pending!(request.poll());
    until_flight(&looking, |flight| flight.stage == Stage::Discover).await;
    let record = fs::read(lock_path(directory.path())).unwrap();
    request.await.unwrap_err();
    // When a process is killed, its record stays as it was.
    fs::write(lock_path(directory.path()), record).unwrap();
    let told = last_failure(&strict(directory.path(), &clock)).await;
    assert_eq!(told.unwrap(), "no such program");
    assert_eq!(ledger(directory.path()).lost_launch(), None);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_given_back_takes_no_reason_away() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let process = || gate(directory.path(), &clock);
    fail_once(&process(), KEY).await;
    fail_once(&process(), KEY).await;
    lead(&process(), KEY).await.refund().await;
    let told = last_failure(&strict(directory.path(), &clock)).await;
    assert_eq!(told.unwrap(), "no such program");
    assert_eq!(ledger(directory.path()).lost_launch(), None);
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_only_the_ledger_allowed_tells_why_it_failed_when_its_lock_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [one, other] = [(); 2].map(|()| cautious(directory.path(), &clock));
    lead(&one, KEY).await.succeed(9).await.unwrap();
    other.reset(KEY).await.unwrap();
    let path = lock_path(directory.path());
    let loses_its_lock = Script::launching(move |_| {
        fs::remove_file(&path).unwrap();
        async { Ok(9) }
    });
    one.launch(KEY, loses_its_lock).await.unwrap_err();
    let Err(GateError::BudgetExhausted(refusal)) = one.acquire(KEY).await else {
        panic!("not refused");
    };
    assert!(refusal.first);
    assert!(launch_failure(&refusal).unwrap().contains("was lost"));
}

#[tokio::test(start_paused = true)]
async fn a_process_forgets_its_own_reason_when_another_ones_success_is_known_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let [failing, other] = [(); 2].map(|()| {
        builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .window_kind(WindowKind::Sliding)
            .stable_after(WINDOW)
            .build()
    });
    let step = Duration::from_secs(10);
    for _ in 0..3 {
        fail_once(&failing, KEY).await;
        clock.advance(step);
        tokio::time::advance(step).await;
    }
    lead(&other, KEY).await.succeed(9).await.unwrap();
    let found = failing.launch(KEY, finder()).await.unwrap();
    assert_eq!(found.how, How::Discovered);
    assert_eq!(last_failure(&failing).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_refused_requests_looks_into_the_ledger_once_a_second_and_tells_once() {
    let directory = tempfile::tempdir().unwrap();
    let looks = Arc::<AtomicU32>::default();
    let lock = ScriptedLock::hooked(directory.path(), {
        let looks = Arc::clone(&looks);
        move |at| {
            let is_look = matches!(at, At::Look(_));
            looks.fetch_add(u32::from(is_look), Ordering::SeqCst);
            async { Ok(()) }
        }
    });
    let gate = builder(lock, &StepClock::new()).build();
    for _ in 0..3 {
        fail_once(&gate, KEY).await;
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
    assert_eq!(looks.load(Ordering::SeqCst), 5);
    // Nothing of this was charged, and what the ledger says is as before.
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 3);
}

#[tokio::test]
async fn a_reset_waits_for_the_launch_in_progress_and_names_its_holder_when_it_gives_up() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let held = lead(&gate(directory.path(), &clock), KEY).await;
    let operator = Gate::builder(FileSpawnLock::new(directory.path()).unwrap())
        .lock_timeout(Duration::ZERO)
        .build();
    let Err(GateError::Timeout(timeout)) = operator.reset(KEY).await else {
        panic!("it did not wait");
    };
    assert_eq!(timeout.stage, Stage::Lock);
    assert_eq!(timeout.waiting_for.unwrap().pid, std::process::id());
    drop(held);
    operator.reset(KEY).await.unwrap();
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
            fail_once(&gate(directory.path(), &clock), KEY).await;
        }
        clock.advance(Duration::from_secs(10));
        clock.set(|now| step(now, hour));
        match gate(directory.path(), &clock).acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => {
                assert!(refusal.retry_after <= WINDOW, "{name}: {refusal:?}");
                clock.advance(refusal.retry_after);
                let later = gate(directory.path(), &clock);
                assert_eq!(lead(&later, KEY).await.attempt_number(), 1, "{name}");
            }
            // At worst the step cost this window.
            Ok(Acquired::Led(permit)) => assert_eq!(permit.attempt_number(), 1, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_wall_clock_set_back_by_less_than_a_window_makes_that_no_longer() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..3 {
        fail_once(&gate(directory.path(), &clock), KEY).await;
    }
    clock.advance(Duration::from_secs(10));
    clock.set(|now| now.unix -= Duration::from_secs(25));
    let left = retry_after(&gate(directory.path(), &clock)).await;
    assert_eq!(left, Duration::from_secs(20));
    clock.advance(left);
    let later = gate(directory.path(), &clock);
    assert_eq!(lead(&later, KEY).await.attempt_number(), 1);
}

#[tokio::test]
async fn a_wall_clock_set_back_again_and_again_makes_a_window_no_longer() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..3 {
        fail_once(&gate(directory.path(), &clock), KEY).await;
    }
    for left in [20, 10] {
        clock.advance(Duration::from_secs(10));
        clock.set(|now| now.unix -= Duration::from_secs(9));
        let told = retry_after(&gate(directory.path(), &clock)).await;
        assert_eq!(told, Duration::from_secs(left));
    }
    clock.advance(Duration::from_secs(10));
    let later = gate(directory.path(), &clock);
    assert_eq!(lead(&later, KEY).await.attempt_number(), 1);
}

#[tokio::test]
async fn of_attempts_in_two_boots_those_of_the_newer_one_go_by_the_time_since_it() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = || {
        builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .window_kind(WindowKind::Sliding)
            .build()
    };
    fail_once(&gate(), KEY).await;
    clock.advance(Duration::from_secs(1));
    clock.set(|now| {
        now.boot = Some(BootReading {
            id: 8,
            elapsed: Duration::ZERO,
        });
    });
    // Dropped, so that the outcome in the record is still of the boot before.
    for _ in 0..2 {
        drop(lead(&gate(), KEY).await);
    }
    // The first one goes by the wall clock, as nothing else is known of it any more.
    clock.set(|now| now.unix += WINDOW);
    assert_eq!(gate().snapshot(KEY).await.budget.attempts_used, 2);
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
    fail_once(&gate(directory.path(), &clock), KEY).await;
    fail_once(&gate(directory.path(), &shifted), KEY).await;
    fail_once(&gate(directory.path(), &clock), KEY).await;
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
        assert_eq!(lead(&healed, KEY).await.attempt_number(), 1);
    }
}
