//! Writes of the ledger that fail, are cut off or come too late (promises 11, 16, 31): charges, launches and resets stay right.

use std::fs;
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, inspect_spawn_lock};
use spawn_gate::error::{LaunchError, LockError};
use spawn_gate::{
    FileSpawnLock, GateError, How, SpawnBudgetConfig, SpawnLockError, acquire_spawn_lock,
};

use tokio::time::Instant;

use super::{Gate, KEY, WINDOW, builder, finder, gate, lock_path};
use crate::support::hooked_lock::At;
use crate::support::lock_file::read_held;
use crate::support::script::Script;
use crate::support::scripted_lock::{Scripted, ScriptedLock, lost};
use crate::support::step_clock::StepClock;
use crate::support::{lead, led};

#[tokio::test]
async fn a_request_that_is_dropped_while_its_charge_is_written_leaves_no_charge_and_no_lock() {
    for at in [At::Write(1), At::Written(1)] {
        let directory = tempfile::tempdir().unwrap();
        let path = lock_path(directory.path());
        let (lock, writing) = ScriptedLock::halting(directory.path(), move |it| it == at);
        let gate = builder(lock, &StepClock::new()).build();
        let request = tokio::spawn(async move { gate.acquire(KEY).await });
        writing.reached().await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        writing.let_go();
        while acquire_spawn_lock(&path).is_err() {
            tokio::task::yield_now().await;
        }
        let LedgerReading::Found(ledger) = inspect_spawn_lock(&path).unwrap().ledger else {
            panic!("{at:?}: nothing was written");
        };
        assert_eq!(ledger.attempts_charged(), 0, "{at:?}");
        assert_eq!(ledger.holder(), None, "{at:?}");
    }
}

#[tokio::test]
async fn a_lock_that_is_lost_while_the_charge_is_written_is_taken_anew_before_the_launch() {
    for lost_at in [At::Write(1), At::Written(1)] {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (lock_path(directory.path()), directory.path().join("moved"));
        let lock = ScriptedLock::hooked(directory.path(), move |at| {
            if at == lost_at {
                fs::rename(&path, &moved).unwrap();
            }
            async { Ok(()) }
        });
        let launcher = Script::launching(|_| async { Ok(7) });
        let gate = builder(lock, &StepClock::new()).build();
        let launched = gate.launch(KEY, launcher.clone()).await.unwrap();
        assert_eq!(launched.how, How::Led, "{lost_at:?}");
        assert_eq!(launcher.launches(), 1, "{lost_at:?}");
        assert_eq!(launcher.discover.calls(), 2, "{lost_at:?}");
    }
}

#[tokio::test]
async fn a_lock_that_is_lost_while_launching_is_written_to_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (lock_path(directory.path()), directory.path().join("moved"));
    let clock = StepClock::new();
    let loser = lead(&gate(directory.path(), &clock), KEY).await;
    fs::rename(&path, &moved).unwrap();
    let _winner = lead(&gate(directory.path(), &clock), KEY).await;
    let read = || [&path, &moved].map(|file| read_held(file));
    let before = read();
    let lost = loser.succeed(1).await.unwrap_err();
    assert!(
        matches!(lost, GateError::Launch(LaunchError::LockLost { .. })),
        "{lost:?}"
    );
    assert!(read() == before);
}

/// What a write to a full disk returns.
fn disk_is_full(path: &Path) -> Scripted {
    Err(SpawnLockError::Ledger {
        path: path.to_path_buf(),
        source: io::ErrorKind::StorageFull.into(),
    })
}

/// A gate on a disk with no room for any record.
fn gate_on_full_disk(directory: &Path) -> Gate {
    let path = Arc::new(lock_path(directory));
    let lock = ScriptedLock::hooked(directory, move |at| {
        let path = Arc::clone(&path);
        async move {
            match at {
                At::Write(_) => disk_is_full(&path),
                _ => Ok(()),
            }
        }
    });
    builder(lock, &StepClock::new()).build()
}

#[tokio::test]
async fn a_running_backend_is_found_although_the_disk_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let gate = gate_on_full_disk(directory.path());
    let found = gate.launch(KEY, finder()).await.unwrap();
    assert_eq!((found.value, found.how), (9, How::Discovered));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_launched_that_a_full_disk_has_no_room_to_charge_and_its_path_is_named_at_once()
{
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    let gate = gate_on_full_disk(directory.path());
    let launcher = Script::launching(|_| async { Ok(7) });
    let began = Instant::now();
    let error = gate.launch(KEY, launcher.clone()).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waited for room");
    let GateError::Lock(LockError { source, .. }) = error else {
        panic!("{error:?}");
    };
    let message = source.to_string();
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    assert_eq!(launcher.launches(), 0);
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
    drop(acquire_spawn_lock(&path).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_not_undone_by_the_flight_that_it_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (lock, waits) = ScriptedLock::halting(directory.path(), |at| matches!(at, At::Wait(_)));
    waits.let_go();
    let gate = builder(lock, &StepClock::new())
        .budget(SpawnBudgetConfig::new(1, WINDOW))
        .build();
    let launching = lead(&gate, KEY).await;
    let resetting = tokio::spawn({
        let gate = gate.clone();
        async move { gate.reset(KEY).await }
    });
    waits.reached().await;
    launching.fail("no such program").await;
    resetting.await.unwrap().unwrap();
    // At once: a refusal by the ledger is believed for a second.
    assert_eq!(lead(&gate, KEY).await.attempt_number(), 1);
}

#[tokio::test]
async fn a_permit_that_is_given_back_is_taken_from_the_ledger_although_its_lock_cannot_be_verified()
{
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let lock = ScriptedLock::new(lock).on_verify({
        let path = path.clone();
        move |call| {
            let no_memory = SpawnLockError::Identity {
                path: path.clone(),
                source: io::ErrorKind::OutOfMemory.into(),
            };
            // The first is the one before the permit is given out.
            async move { if call == 1 { Ok(()) } else { Err(no_memory) } }
        }
    });
    let permit = lead(&builder(lock, &StepClock::new()).build(), KEY).await;
    permit.refund().await;
    let LedgerReading::Found(ledger) = inspect_spawn_lock(&path).unwrap().ledger else {
        panic!("nothing was written");
    };
    assert_eq!((ledger.attempts_charged(), ledger.holder()), (0, None));
}

/// Nor is one asked again that does not answer.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_before_the_launch_is_written_to_no_more() {
    for is_lost in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let is_gone = Arc::new(AtomicBool::new(false));
        let lock = FileSpawnLock::new(directory.path()).unwrap();
        let lock = ScriptedLock::new(lock)
            .on_try({
                let is_gone = Arc::clone(&is_gone);
                move |_| {
                    is_gone.store(false, Ordering::SeqCst);
                    async { Ok(()) }
                }
            })
            .on_verify({
                let is_gone = Arc::clone(&is_gone);
                move |call| {
                    is_gone.store(call == 1, Ordering::SeqCst);
                    async move {
                        match (call, is_lost) {
                            (1, true) => Err(lost()),
                            (1, false) => pending().await,
                            _ => Ok(()),
                        }
                    }
                }
            })
            .on_write(move |_| {
                assert!(!is_gone.load(Ordering::SeqCst), "it is written to");
                async { Ok(()) }
            });
        let permit = lead(&builder(lock, &StepClock::new()).build(), KEY).await;
        assert_eq!(permit.attempt_number(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shortage_after_the_charge_and_before_the_launch_leaves_no_charge() {
    for fails in [1, usize::MAX] {
        let directory = tempfile::tempdir().unwrap();
        let path = lock_path(directory.path());
        let lock = FileSpawnLock::new(directory.path()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let other = gate(directory.path(), &StepClock::new());
        let between = move |call| {
            let other = other.clone();
            async move {
                // Another process has the lock before it is tried again.
                if call == 2 {
                    let permit = lead(&other, KEY).await;
                    assert_eq!(permit.attempt_number(), 1);
                    permit.refund().await;
                }
                Ok(())
            }
        };
        let lock = ScriptedLock::new(lock).on_try(between).on_verify({
            let (path, seen) = (path.clone(), Arc::clone(&seen));
            move |call| {
                let no_memory = SpawnLockError::Identity {
                    path: path.clone(),
                    source: io::ErrorKind::OutOfMemory.into(),
                };
                let charged = || match inspect_spawn_lock(&path).unwrap().ledger {
                    LedgerReading::Found(ledger) => ledger.attempts_charged(),
                    other => panic!("{other:?}"),
                };
                seen.lock().unwrap().push(charged());
                async move {
                    if call <= fails {
                        Err(no_memory)
                    } else {
                        Ok(())
                    }
                }
            }
        });
        let gate = builder(lock, &StepClock::new())
            .lock_timeout(Duration::from_secs(1))
            .build();
        let acquired = gate.acquire(KEY).await;
        // Charged once, whatever number of tries.
        assert!(seen.lock().unwrap().iter().all(|&charged| charged <= 1));
        match acquired {
            Ok(acquired) => {
                let permit = led(Ok(acquired));
                assert_eq!((fails, permit.attempt_number()), (1, 1));
                permit.refund().await;
            }
            Err(error) => assert!(fails > 1 && error.retry_helps(), "{error:?}"),
        }
        assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0, "{fails}");
    }
}
