//! Waiters for another process's lock (promises 4, 20, 29, 30): a new leader takes over at once, and one release serves all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, inspect_spawn_lock};
use spawn_gate::budget::ExhaustionReason;
use spawn_gate::error::LaunchError;
use spawn_gate::lock::{SpawnLockError, acquire_spawn_lock};
use spawn_gate::{Acquired, FileSpawnLock, GateError, How, SpawnBudgetConfig};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, task};

use super::{KEY, WINDOW, builder, gate, lock_path, until_flight};
use crate::support::halt::Halt;
use crate::support::hooked_lock::At;
use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
use crate::support::step_clock::StepClock;
use crate::support::{fail_once, lead, led, refusal};

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_at_once_from_a_leader_that_goes_while_another_process_launches() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let elsewhere = lead(&gate(directory.path(), &clock), KEY).await;
    let here = gate(directory.path(), &clock);
    let mut leader = task::spawn(here.acquire(KEY));
    assert_pending!(leader.poll());
    until_flight(&here, |flight| flight.waiting_for.is_some()).await;
    let follower = tokio::spawn({
        let here = here.clone();
        async move { here.acquire(KEY).await }
    });
    sleep(Duration::from_secs(5)).await;
    drop(leader);
    // A flight of its own, not what is left of the one that it followed.
    until_flight(&here, |flight| flight.age < Duration::from_secs(5)).await;
    until_flight(&here, |flight| flight.waiting_for.is_some()).await;
    elsewhere.refund().await;
    led(follower.await.unwrap()).succeed(7).await.unwrap();
    assert_eq!(here.snapshot(KEY).await.budget.attempts_used, 0);
}

#[tokio::test]
async fn one_release_serves_all_who_wait_and_none_of_them_takes_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let elsewhere = lead(&gate(directory.path(), &clock), KEY).await;
    let launch = elsewhere.fencing_token();
    let looks = Arc::new(AtomicU32::new(0));
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let process = gate(directory.path(), &clock);
            let looks = Arc::clone(&looks);
            let joins = Script::launching(|_| async { panic!("one is running") }).discovering(
                move |call| {
                    looks.fetch_add(1, Ordering::SeqCst);
                    async move { Ok((call > 1).then_some(7)) }
                },
            );
            let asked = process.clone();
            let asking = tokio::spawn(async move { asked.launch(KEY, joins).await });
            (process, asking)
        })
        .collect();
    for (process, _) in &waiting {
        until_flight(process, |flight| flight.waiting_for.is_some()).await;
    }
    elsewhere.succeed(7).await.unwrap();
    for (_, asking) in waiting {
        let joined = asking.await.unwrap().unwrap();
        assert_eq!((joined.value, joined.how), (7, How::Discovered));
    }
    assert_eq!(looks.load(Ordering::SeqCst), 2 * 20);
    let LedgerReading::Found(ledger) = inspect_spawn_lock(lock_path(directory.path()))
        .unwrap()
        .ledger
    else {
        panic!("no ledger");
    };
    assert_eq!(ledger.fencing_token(), launch, "the lock was taken again");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_runs_is_found_while_another_process_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let _elsewhere = lead(&gate(directory.path(), &clock), KEY).await;
    let began = Instant::now();
    let here = gate(directory.path(), &clock);
    let found = here.launch(KEY, super::finder()).await.unwrap();
    assert_eq!(found.how, How::Discovered);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_was_cut_short_and_a_record_that_is_unreadable_are_told_to_who_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let process = || {
        builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .budget(SpawnBudgetConfig::new(1, WINDOW))
            .build()
    };
    let cut_short = lead(&process(), KEY).await;
    let token = cut_short.fencing_token();
    drop(cut_short);
    let refused = refusal(process().acquire(KEY).await);
    let ExhaustionReason::CutShort { launch, at } = &*refused.reason else {
        panic!("{refused}");
    };
    assert_eq!(*launch, token);
    assert!(at.is_some());

    std::fs::write(lock_path(directory.path()), "junk".repeat(100)).unwrap();
    for _ in 0..2 {
        let refused = refusal(process().acquire(KEY).await);
        assert_eq!(*refused.reason, ExhaustionReason::RecordUnreadable);
        assert!(refused.to_string().contains("could not be read"));
    }
}

#[tokio::test(start_paused = true)]
async fn each_storm_has_one_first_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let process = || {
        builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .budget(SpawnBudgetConfig::new(1, WINDOW))
            .build()
    };
    let [here, operator] = [process(), process()];
    for _ in 0..3 {
        fail_once(&here, KEY).await;
        let refusals = [(); 3].map(|()| here.acquire(KEY));
        let mut first = Vec::new();
        for refused in refusals {
            first.push(refusal(refused.await).first);
        }
        assert_eq!(first, [true, false, false]);
        operator.reset(KEY).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_in_the_future_counts_as_now_and_locks_nobody_out_for_longer_than_a_window() {
    for skew in [Duration::from_millis(200), Duration::from_secs(3600)] {
        let directory = tempfile::tempdir().unwrap();
        let ahead = StepClock::new();
        let behind = StepClock::new();
        // Of another boot, so that the wall clock is all there is.
        behind.set(|now| now.boot = None);
        ahead.advance(skew);
        for _ in 0..3 {
            fail_once(&gate(directory.path(), &ahead), KEY).await;
        }
        let here = gate(directory.path(), &behind);
        let refused = refusal(here.acquire(KEY).await);
        assert_eq!(refused.retry_after, WINDOW, "skew {skew:?}");
        behind.advance(WINDOW);
        sleep(WINDOW).await;
        let permit = lead(&here, KEY).await;
        assert_eq!(permit.attempt_number(), 1, "skew {skew:?}");
    }
}

#[test]
fn a_lock_is_free_when_its_flight_has_ended_although_a_write_of_its_waits_for_a_thread() {
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .start_paused(true)
        .build()
        .unwrap();
    let gate = gate(directory.path(), &StepClock::new());
    let (end, ended) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let permit = lead(&gate, KEY).await;
        // Takes the only thread that may block, for as long as the test likes. Paused time stands still meanwhile.
        let reader = tokio::task::spawn_blocking(move || ended.recv());
        let settling = tokio::spawn(permit.succeed(7));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(6)).await;
        settling.await.unwrap().unwrap();
        drop(acquire_spawn_lock(&path).unwrap());
        drop(end);
        reader.await.unwrap().unwrap_err();
        // The late write is not made any more: it would go to a record that is not ours.
        let read = || match inspect_spawn_lock(&path).unwrap().ledger {
            LedgerReading::Found(ledger) => ledger.last_outcome().cloned(),
            other => panic!("{other:?}"),
        };
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert_eq!(read(), None);
    });
}

#[tokio::test(start_paused = true)]
async fn a_late_report_of_an_elder_backend_does_not_take_the_place_of_the_newest_ones() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let here = builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
        .stable_after(WINDOW)
        .build();
    let mut launches = Vec::new();
    for _ in 0..2 {
        let permit = lead(&here, KEY).await;
        launches.push(permit.fencing_token());
        permit.succeed(7).await.unwrap();
    }
    use spawn_gate::admin::BackendEnd;
    for launch in launches.iter().rev() {
        here.backend_ended(KEY, BackendEnd::orderly(*launch))
            .await
            .unwrap();
        assert_eq!(here.snapshot(KEY).await.budget.attempts_used, 1);
    }
    let Ok(Acquired::Led(permit)) = here.acquire(KEY).await else {
        panic!("it does not lead");
    };
    assert_eq!(permit.attempt_number(), 2);
}

/// A holder that leaves no trace in the ledger may have launched all the same.
#[tokio::test]
async fn a_waiter_looks_again_after_a_holder_that_keeps_no_ledger() {
    for by_gate in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        let locks = FileSpawnLock::new(directory.path()).unwrap();
        let other = builder(locks.clone().without_ledger(), &clock).build();
        let (permit, guard) = match by_gate {
            true => (Some(lead(&other, KEY).await), None),
            false => (None, Some(acquire_spawn_lock(locks.path_of(&KEY)).unwrap())),
        };
        let (lock, waits) = ScriptedLock::halting(directory.path(), |at| matches!(at, At::Wait(_)));
        let waiter = builder(lock, &clock).build();
        let joins = Script::launching(|_| async { panic!("one is running") })
            .discovering(|call| async move { Ok((call > 1).then_some(7)) });
        let waiting = tokio::spawn(async move { waiter.launch(KEY, joins).await });
        waits.reached().await;
        waits.let_go();
        if let Some(permit) = permit {
            permit.succeed(7).await.unwrap();
        }
        drop(guard);
        let joined = waiting.await.unwrap().unwrap();
        assert_eq!(
            (joined.value, joined.how),
            (7, How::Discovered),
            "{by_gate}"
        );
    }
}

/// Who finds a backend with the lock held tells those who wait, so they need not take the lock one after the other.
#[tokio::test]
async fn a_look_with_the_lock_serves_all_who_wait() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    // Killed while it launched: the backend came up, and nothing says so.
    drop(lead(&gate(directory.path(), &clock), KEY).await);
    let found = Script::launching(|_| async { panic!("one is running") })
        .discovering(|call| async move { Ok((call > 1).then_some(7)) });
    let holder = gate(directory.path(), &clock);
    let looked = holder.launch(KEY, found).await.unwrap();
    assert_eq!(looked.how, How::Discovered);
    let LedgerReading::Found(ledger) = inspect_spawn_lock(lock_path(directory.path()))
        .unwrap()
        .ledger
    else {
        panic!("no ledger");
    };
    assert!(ledger.to_string().contains("found "), "{ledger}");
}

/// A failure is shared also by who only finds it in the ledger with the lock in hand.
#[tokio::test]
async fn a_failure_is_shared_although_the_ledger_did_not_answer_while_it_was_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let elsewhere = lead(&gate(directory.path(), &clock), KEY).await;
    let waits = Halt::new();
    let lock = ScriptedLock::hooked(directory.path(), {
        let waits = waits.clone();
        move |at| {
            let waits = waits.clone();
            async move {
                match at {
                    At::Look(_) => Err(SpawnLockError::Unresponsive {
                        after: Duration::ZERO,
                    }),
                    At::Wait(_) => {
                        waits.halt().await;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        }
    });
    let waiter = builder(lock, &clock).build();
    let waiting = tokio::spawn(async move { waiter.acquire(KEY).await });
    waits.reached().await;
    elsewhere.fail("no such program").await;
    waits.let_go();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            GateError::Launch(LaunchError::FailedElsewhere { .. })
        ),
        "{error:?}"
    );
}

/// Of a failure and a backend that was found running, the newer one counts.
#[tokio::test]
async fn a_backend_that_was_found_after_a_failure_is_joined() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let elsewhere = lead(&gate(directory.path(), &clock), KEY).await;
    let (lock, waits) = ScriptedLock::halting(directory.path(), |at| matches!(at, At::Wait(_)));
    let waiter = builder(lock, &clock).build();
    let joins = Script::launching(|_| async { panic!("one is running") })
        .discovering(|call| async move { Ok((call > 1).then_some(7)) });
    let waiting = tokio::spawn(async move { waiter.launch(KEY, joins).await });
    waits.reached().await;
    elsewhere.fail("no such program").await;
    // Somebody started it by other means, and a third process finds it with the lock held.
    let third = lead(&gate(directory.path(), &clock), KEY).await;
    third.discovered(7).await;
    waits.let_go();
    let joined = waiting.await.unwrap().unwrap();
    assert_eq!((joined.value, joined.how), (7, How::Discovered));
}
