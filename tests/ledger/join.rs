//! The result for a process that waited for another process's lock (promises 19-21).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, inspect_spawn_lock};
use spawn_gate::error::LaunchError;
use spawn_gate::{Acquired, GateError, How, Launched, SpawnLockError, acquire_spawn_lock};
use tokio::task::JoinHandle;

use super::{KEY, builder, finder, gate, lock_path, until_flight};
use crate::support::halt::Halt;
use crate::support::hooked_lock::At;
use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
use crate::support::step_clock::StepClock;
use crate::support::{fail_once, lead, until_waiting};

type Heard = Result<Launched<u32>, GateError>;

/// A launcher that finds what it has launched, and a halt in its launches.
fn launcher(fails: bool) -> (Script, Halt) {
    let (halt, up) = (Halt::new(), Arc::new(AtomicU32::new(0)));
    let launcher = Script::launching({
        let (halt, up) = (halt.clone(), Arc::clone(&up));
        move |launch| {
            let (halt, up) = (halt.clone(), Arc::clone(&up));
            async move {
                halt.halt().await;
                if fails {
                    return Err(format!("launch {launch} cannot\nfind its program").into());
                }
                up.store(1, Ordering::SeqCst);
                Ok(1)
            }
        }
    });
    let launcher = launcher.discovering(move |_| {
        let found = up.load(Ordering::SeqCst);
        async move { Ok((found != 0).then_some(found)) }
    });
    (launcher, halt)
}

/// One gate launches; when that is under way another one is asked, twice. The launch ends once these wait for the lock.
async fn launch_and_wait(directory: &Path, launcher: &Script, launching: &Halt) -> [Heard; 3] {
    let clock = StepClock::new();
    let (one, other) = (gate(directory, &clock), gate(directory, &clock));
    let ask = |gate: &super::Gate| {
        let (gate, launcher) = (gate.clone(), launcher.clone());
        tokio::spawn(async move { gate.launch(KEY, launcher).await })
    };
    let first = ask(&one);
    launching.reached().await;
    let (second, third) = (ask(&other), ask(&other));
    until_waiting(&other, KEY, 2).await;
    loop {
        let flight = other.snapshot(KEY).await.flight;
        if let Some(holder) = flight.and_then(|flight| flight.waiting_for) {
            assert_eq!(holder.pid, std::process::id());
            assert_eq!(holder.path, lock_path(directory));
            break;
        }
        tokio::task::yield_now().await;
    }
    // For a second launch too, so that one which must not be is seen and not waited for.
    launching.let_go();
    [
        first.await.unwrap(),
        second.await.unwrap(),
        third.await.unwrap(),
    ]
}

#[tokio::test]
async fn a_process_that_waited_joins_what_another_one_launched() {
    let directory = tempfile::tempdir().unwrap();
    let (launcher, launching) = launcher(false);
    let heard = launch_and_wait(directory.path(), &launcher, &launching).await;
    let how = heard.map(|heard| heard.unwrap().how);
    assert_eq!(how, [How::Led, How::Discovered, How::Joined]);
    assert_eq!(launcher.launches(), 1);
}

#[tokio::test]
async fn a_process_that_waited_shares_the_failure_with_its_message_and_makes_no_attempt_of_its_own()
{
    let directory = tempfile::tempdir().unwrap();
    let (launcher, launching) = launcher(true);
    let [one, others @ ..] = launch_and_wait(directory.path(), &launcher, &launching).await;
    assert!(matches!(
        one,
        Err(GateError::Launch(LaunchError::Failed { attempt: 1, .. }))
    ));
    for other in others {
        let Err(GateError::Launch(LaunchError::FailedElsewhere { message, .. })) = other else {
            panic!("not shared: {other:?}");
        };
        assert_eq!(&*message, r"launch 1 cannot\nfind its program");
    }
    assert_eq!(launcher.launches(), 1);
    let after = gate(directory.path(), &StepClock::new())
        .snapshot(KEY)
        .await;
    assert_eq!(after.budget.attempts_used, 1);
}

#[tokio::test]
async fn a_failure_from_before_the_wait_is_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock), KEY).await;
    // To the millisecond, as the ledger tells it.
    clock.advance(Duration::from_millis(1));
    // Holds the lock without launching, so that the next one has to wait.
    let holder = gate(directory.path(), &clock);
    let held = lead(&holder, KEY).await;
    let waiter = gate(directory.path(), &clock);
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire(KEY).await }
    });
    until_flight(&waiter, |flight| flight.waiting_for.is_some()).await;
    held.refund().await;
    let Acquired::Led(permit) = waiting.await.unwrap().unwrap() else {
        panic!("nobody launched");
    };
    assert_eq!(permit.attempt_number(), 2);
}

/// A ledger with a failure that is an hour old.
async fn old_failure() -> (tempfile::TempDir, StepClock) {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock), KEY).await;
    clock.advance(Duration::from_secs(3600));
    (directory, clock)
}

/// Finds none running, and launches one.
fn starter() -> Script {
    Script::launching(|_| async { Ok(9) })
}

/// Asks a gate with this lock, which another one holds, for a backend. Returns once the request waits.
async fn ask_and_wait(
    lock: ScriptedLock<&'static str>,
    waits: &Halt,
    clock: &StepClock,
) -> JoinHandle<Heard> {
    let gate = builder(lock, clock).build();
    let asking = tokio::spawn(async move { gate.launch(KEY, starter()).await });
    waits.reached().await;
    waits.let_go();
    asking
}

fn is_wait(at: At) -> bool {
    matches!(at, At::Wait(_))
}

#[tokio::test]
async fn an_old_failure_is_not_shared_after_a_wait_for_a_holder_without_a_record() {
    let (directory, clock) = old_failure().await;
    let held = acquire_spawn_lock(lock_path(directory.path())).unwrap();
    let (lock, waits) = ScriptedLock::halting(directory.path(), is_wait);
    let asking = ask_and_wait(lock, &waits, &clock).await;
    drop(held);
    assert_eq!(asking.await.unwrap().unwrap().how, How::Led);
}

#[tokio::test]
async fn an_old_failure_is_not_shared_among_processes_that_look_for_a_backend_at_once() {
    // Before the holder is written, and before it is written that there is none any more.
    for at in [At::Write(1), At::Write(2)] {
        let (directory, clock) = old_failure().await;
        let (lock, has_lock) = ScriptedLock::halting(directory.path(), move |it| it == at);
        let looker = builder(lock, &clock).build();
        let looking = tokio::spawn(async move { looker.launch(KEY, starter()).await });
        has_lock.reached().await;
        let (lock, waits) = ScriptedLock::halting(directory.path(), is_wait);
        let asking = ask_and_wait(lock, &waits, &clock).await;
        has_lock.let_go();
        for heard in [looking.await.unwrap(), asking.await.unwrap()] {
            assert_eq!(heard.unwrap().value, 9, "{at:?}");
        }
    }
}

#[tokio::test]
async fn an_old_failure_is_not_shared_when_the_ledger_did_not_answer() {
    let (directory, clock) = old_failure().await;
    let held = lead(&gate(directory.path(), &clock), KEY).await;
    let waits = Halt::new();
    let lock = ScriptedLock::hooked(directory.path(), {
        let waits = waits.clone();
        move |at| {
            let waits = waits.clone();
            async move {
                match at {
                    At::Look(_) => {
                        return Err(SpawnLockError::Unresponsive {
                            after: Duration::ZERO,
                        });
                    }
                    At::Wait(_) => waits.halt().await,
                    _ => {}
                }
                Ok(())
            }
        }
    });
    let asking = ask_and_wait(lock, &waits, &clock).await;
    held.refund().await;
    assert_eq!(asking.await.unwrap().unwrap().how, How::Led);
}

#[track_caller]
fn is_shared(heard: Heard) {
    assert!(
        matches!(
            heard,
            Err(GateError::Launch(LaunchError::FailedElsewhere { .. }))
        ),
        "{heard:?}"
    );
}

#[tokio::test]
async fn a_failure_that_ends_after_the_first_try_at_the_lock_is_shared() {
    let (directory, clock) = old_failure().await;
    let held = lead(&gate(directory.path(), &clock), KEY).await;
    let (lock, waits) = ScriptedLock::halting(directory.path(), is_wait);
    let waiter = builder(lock, &clock).build();
    // Without a launcher, nothing is read before the first try.
    let waiting = tokio::spawn(async move { waiter.acquire(KEY).await });
    waits.reached().await;
    held.fail("no such program").await;
    waits.let_go();
    let heard = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(
            heard,
            GateError::Launch(LaunchError::FailedElsewhere { .. })
        ),
        "{heard:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_also_if_yet_another_process_held_the_lock_after_it() {
    let (directory, clock) = old_failure().await;
    let first = lead(&gate(directory.path(), &clock), KEY).await;
    let (lock, waits) = ScriptedLock::halting(directory.path(), is_wait);
    let waiter = builder(lock, &clock).build();
    let waiting = tokio::spawn(async move { waiter.launch(KEY, starter()).await });
    waits.reached().await;
    first.fail("no such program").await;
    let second = lead(&gate(directory.path(), &clock), KEY).await;
    waits.let_go();
    second.refund().await;
    is_shared(waiting.await.unwrap());
}

#[tokio::test]
async fn a_holder_is_named_while_it_looks_for_a_backend_and_forgotten_by_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let path = lock_path(directory.path());
    let looks = Halt::new();
    let other = gate(directory.path(), &clock);
    let launcher = finder().discovering({
        let looks = looks.clone();
        move |call| {
            let (looks, other) = (looks.clone(), other.clone());
            async move {
                if call == 1 {
                    // Somebody has the lock between the look without it and the one with it.
                    lead(&other, KEY).await.refund().await;
                    return Ok(None);
                }
                looks.halt().await;
                Ok(Some(9))
            }
        }
    });
    let looker = gate(directory.path(), &clock);
    let looking = tokio::spawn(async move { looker.launch(KEY, launcher).await });
    looks.reached().await;
    let holder = inspect_spawn_lock(&path).unwrap().holder().unwrap();
    assert_eq!(holder.pid, std::process::id());
    looks.let_go();
    looking.await.unwrap().unwrap();

    // It stays written when a permit is dropped.
    let gate = gate(directory.path(), &clock);
    drop(lead(&gate, KEY).await);
    let is_written = || match inspect_spawn_lock(&path).unwrap().ledger {
        LedgerReading::Found(ledger) => ledger.holder().is_some(),
        other => panic!("{other:?}"),
    };
    assert!(is_written());
    gate.reset(KEY).await.unwrap();
    assert!(!is_written());
}
