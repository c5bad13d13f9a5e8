//! Spawn locks that panic or hang, and runtimes that shut down (promises 3, 28, 38): every caller gets one error, and nothing
//! spins or hangs.

mod support;

use std::future::pending;
use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::{Acquired, GateError, How, InMemorySpawnLock, SpawnGate, SpawnLockError};

use crate::support::hooked_lock::At;
use crate::support::script::Script;
use crate::support::scripted_lock::{ScriptedLock, held};

type Gate = SpawnGate<&'static str, u32>;

/// A lock in memory, which has yet to be told what goes wrong with it.
fn lock() -> ScriptedLock<&'static str> {
    ScriptedLock::new(InMemorySpawnLock::new())
}

fn launcher() -> Script {
    Script::launching(|_| async { Ok(7) })
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_permit_is_heard_by_all_and_run_into_once() {
    let lock = lock().on_try(|_| async { panic!("scripted") });
    let gate = Gate::builder(lock.clone()).build();
    let ask = || gate.launch("key", launcher());
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    for heard in [one, two, three] {
        let heard = heard.unwrap_err();
        assert!(
            matches!(heard, GateError::Launch(LaunchError::Panicked { .. })),
            "{heard:?}"
        );
    }
    assert_eq!(lock.tries.calls(), 1);
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_does_not_answer_ends_the_flight_as_lost() {
    // It answers the first time, before the permit, and then no more.
    let lock = lock().on_verify(|call| async move {
        match call {
            1 => Ok(()),
            _ => pending().await,
        }
    });
    let gate = Gate::builder(lock).build();
    let Ok(Acquired::Led(permit)) = gate.acquire("key").await else {
        panic!("nobody else launches");
    };
    let hour = Duration::from_secs(3600);
    let settled = tokio::time::timeout(hour, permit.succeed(7)).await;
    let error = settled.expect("it hangs").unwrap_err();
    let GateError::Launch(LaunchError::LockLost { source, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(*source, SpawnLockError::Unresponsive { .. }));
    assert!(gate.snapshot("key").await.flight.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_does_not_tell_of_its_release_is_tried_again_after_a_second() {
    let lock = lock()
        .on_try(|call| async move { if call == 1 { Err(held()) } else { Ok(()) } })
        .on_wait(|_| pending());
    let gate = Gate::builder(lock.clone()).build();
    let asked = tokio::time::Instant::now();
    let acquired = gate.acquire("key").await;
    assert!(matches!(acquired, Ok(Acquired::Led(_))), "{acquired:?}");
    assert_eq!(lock.tries.calls(), 2);
    assert_eq!(asked.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_panics_when_a_success_is_written_does_not_take_the_launch_with_it() {
    let directory = tempfile::tempdir().unwrap();
    // The third write is that of a launch's outcome.
    let lock = ScriptedLock::hooked(directory.path(), |at| async move {
        assert_ne!(at, At::Write(3), "scripted");
        Ok(())
    });
    let gate = Gate::builder(lock).build();
    let ask = || gate.launch("key", launcher());
    let (one, other) = tokio::join!(ask(), ask());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.value, one.how), (7, How::Led));
    assert_eq!((other.value, other.how), (7, How::Joined));
}

#[test]
fn a_request_for_a_permit_on_a_runtime_that_was_shut_down_is_refused_and_does_not_spin() {
    // Its tries are not answered at once.
    let gate = Gate::builder(lock().on_try(|_| pending())).build();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, other) = (runtime(), runtime());
    let mut request = tokio_test::task::spawn(gate.acquire("key"));
    {
        let _context = first.enter();
        assert!(request.poll().is_pending());
    }
    drop(first);
    assert!(request.is_woken());
    let _context = other.enter();
    let heard = tokio_test::assert_ready!(request.poll()).unwrap_err();
    assert!(matches!(heard, GateError::ShutDown), "{heard:?}");
}

#[test]
fn a_launch_on_a_runtime_that_was_shut_down_is_refused_and_does_not_spin() {
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    runtime.shutdown_timeout(Duration::from_secs(60));
    let _context = handle.enter();
    let mut request = tokio_test::task::spawn(gate.launch("key", launcher()));
    let heard = tokio_test::assert_ready!(request.poll()).unwrap_err();
    assert!(matches!(heard, GateError::ShutDown), "{heard:?}");
}

#[test]
fn a_reset_on_a_runtime_that_was_shut_down_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (lock, _trying) = ScriptedLock::halting(directory.path(), |_| false);
    let gate = Gate::builder(lock.on_try(|_| pending())).build();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, other) = (runtime(), runtime());
    let mut reset = tokio_test::task::spawn(gate.reset("key"));
    {
        let _context = first.enter();
        assert!(reset.poll().is_pending());
    }
    drop(first);
    let heard = other.block_on(reset).unwrap_err();
    assert!(matches!(heard, GateError::ShutDown), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_lock_during_a_reset_reaches_its_caller() {
    let directory = tempfile::tempdir().unwrap();
    let (lock, _trying) = ScriptedLock::halting(directory.path(), |_| false);
    let gate = Gate::builder(lock.on_try(|_| async { panic!("scripted") })).build();
    let reset = tokio::spawn(async move { gate.reset("key").await });
    assert!(reset.await.unwrap_err().is_panic());
}
