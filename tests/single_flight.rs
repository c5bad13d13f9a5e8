//! Single flight (promises 1-7 and 11), and what becomes of a flight whose lock is lost (16): through the gate.

mod support;

use std::sync::Arc;
use std::time::Duration;

use spawn_gate::{
    Acquired, BackendLauncher, BoxError, FileSpawnLock, GateError, How, InMemorySpawnLock,
    LaunchError, LaunchPermit, Launched, SpawnBudgetConfig, SpawnGate, SpawnLockError, Stage,
};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::script::{LAUNCH_TIME, Script, slow};
use crate::support::scripted_lock::{ScriptedLock, lost};
use crate::support::{attempts_used, gate, lead, led, seconds, until_waiting};

type Gate = SpawnGate<&'static str, u32>;
type Permit = LaunchPermit<&'static str, u32>;

type Caller = JoinHandle<Result<Launched<u32>, GateError>>;

fn spawn_caller(gate: &Gate, key: &'static str, launcher: &Script) -> Caller {
    let (gate, launcher) = (gate.clone(), launcher.clone());
    tokio::spawn(async move { gate.launch(key, launcher).await })
}

/// Lets `count` callers ask for "key" while its flight is in progress. Returns what they hear, the leader's first.
async fn in_one_flight(
    gate: &Gate,
    launcher: &Script,
    count: usize,
) -> Vec<Result<Launched<u32>, GateError>> {
    let mut callers = Vec::new();
    for already in 0..count {
        callers.push(spawn_caller(gate, "key", launcher));
        until_waiting(gate, "key", already + 1).await;
    }
    let mut heard = Vec::new();
    for caller in callers {
        heard.push(caller.await.unwrap());
    }
    heard
}

fn joined(acquired: Result<Acquired<&'static str, u32>, GateError>) -> u32 {
    match acquired {
        Ok(Acquired::Joined(value)) => value,
        other => panic!("did not join: {other:?}"),
    }
}

fn panic_message(error: GateError) -> String {
    match error {
        GateError::Launch(LaunchError::Panicked { message, .. }) => message.to_string(),
        other => panic!("not a panic: {other:?}"),
    }
}

// One launch, and everybody shares it.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_make_one_launch_and_share_its_value() {
    let gate = gate::<&str>();
    let all_wait = Arc::new(Notify::new());
    let done = Arc::clone(&all_wait);
    let launcher = Script::launching(move |_| {
        let done = Arc::clone(&done);
        async move {
            done.notified().await;
            Ok(7)
        }
    });
    let callers: Vec<_> = (0..1000)
        .map(|_| spawn_caller(&gate, "key", &launcher))
        .collect();
    until_waiting(&gate, "key", 1000).await;
    all_wait.notify_one();
    let mut leaders = 0;
    for caller in callers {
        let launched = caller.await.unwrap().unwrap();
        assert_eq!(launched.value, 7);
        leaders += usize::from(launched.how == How::Led);
    }
    assert_eq!((leaders, launcher.launches()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_callers_race_give_up_and_drop_permits_no_two_launches_of_a_key_overlap() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(u32::MAX, seconds(3600)))
        .build();
    let launcher = Script::launching(|nth| async move {
        for _ in 0..nth % 4 {
            tokio::task::yield_now().await;
        }
        match nth % 3 {
            0 => Err("no such program".into()),
            1 => panic!("out of memory"),
            _ => Ok(7),
        }
    });
    let mut callers = JoinSet::new();
    for number in 0..1000 {
        let (gate, launcher) = (gate.clone(), launcher.clone());
        let caller = callers.spawn(async move {
            if number % 2 == 0 {
                let _ = gate.launch("key", launcher).await;
            } else if let Ok(Acquired::Led(permit)) = gate.acquire("key").await {
                match launcher.launch(&permit).await {
                    Ok(value) => drop(permit.succeed(value).await),
                    Err(error) => drop(permit.fail(error).await),
                }
            }
        });
        if number % 5 == 0 {
            caller.abort();
        }
    }
    while callers.join_next().await.is_some() {}
    assert!(launcher.launches() >= 1);
    gate.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn callers_of_acquire_and_of_launch_share_one_flight_whoever_leads() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7));
    let permit = lead(&gate, "key").await;
    let follower = spawn_caller(&gate, "key", &launcher);
    until_waiting(&gate, "key", 1).await;
    permit.succeed(6).await.unwrap();
    let launched = follower.await.unwrap().unwrap();
    assert_eq!((launched.value, launched.how), (6, How::Joined));

    let leader = spawn_caller(&gate, "key", &launcher);
    until_waiting(&gate, "key", 1).await;
    assert_eq!(joined(gate.acquire("key").await), 7);
    let launched = leader.await.unwrap().unwrap();
    assert_eq!((launched.value, launched.how), (7, How::Led));
    assert_eq!(launcher.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_do_not_disturb_each_other() {
    let gate = gate::<&str>();
    let good = slow(|| Ok(7));
    let bad = slow(|| Err("no such program".into()));
    let (one, other) = tokio::join!(gate.launch("one", good), gate.launch("other", bad));
    assert_eq!(one.unwrap().value, 7);
    other.unwrap_err();
    assert_eq!(gate.snapshot("one").await.budget.attempts_used, 0);
    assert_eq!(gate.snapshot("other").await.budget.attempts_used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_neither_charged_nor_refused_though_the_flight_used_up_the_budget() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(100)))
        .build();
    let launcher = slow(|| Err("no such program".into()));
    for heard in in_one_flight(&gate, &launcher, 10).await {
        assert!(matches!(heard, Err(GateError::Launch(_))), "{heard:?}");
    }
    assert_eq!(attempts_used(&gate, "key").await, 1);
    let refused = gate.launch("key", launcher).await.unwrap_err();
    assert!(matches!(refused, GateError::BudgetExhausted(_)));
}

#[tokio::test(start_paused = true)]
async fn a_launch_longer_than_several_windows_admits_no_second_one() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(10)))
        .build();
    let launcher = Script::launching(|_| async {
        sleep(seconds(95)).await;
        Ok(7)
    });
    let mut callers = Vec::new();
    for window in 1..=9 {
        callers.push(spawn_caller(&gate, "key", &launcher));
        until_waiting(&gate, "key", window).await;
        advance(seconds(10)).await;
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().value, 7);
    }
    assert_eq!(launcher.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permit_held_for_several_windows_admits_no_second_one() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(2, seconds(10)))
        .build();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    for _ in 0..9 {
        assert_pending!(follower.poll());
        advance(seconds(10)).await;
    }
    permit.succeed(7).await.unwrap();
    assert_eq!(joined(assert_ready!(follower.poll())), 7);
}

// Every ending is heard.

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_with_its_message_and_not_tried_again_by_each_follower() {
    let gate = gate::<&str>();
    let launcher = slow(|| Err("no such program".into()));
    for heard in in_one_flight(&gate, &launcher, 10).await {
        let Err(GateError::Launch(LaunchError::Failed {
            source, attempt, ..
        })) = heard
        else {
            panic!("did not fail: {heard:?}");
        };
        assert_eq!(
            (source.to_string().as_str(), attempt),
            ("no such program", 1)
        );
    }
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_shared_with_its_message_whatever_it_panicked_with() {
    type Panics = fn() -> Result<u32, BoxError>;
    let payloads: [(Panics, &str); 3] = [
        (|| panic!("out of memory"), "out of memory"),
        (|| panic!("out of {}", "memory"), "out of memory"),
        (|| std::panic::panic_any(12_u8), "no message"),
    ];
    for (panics, message) in payloads {
        let gate = gate::<&str>();
        let launcher = slow(panics);
        for heard in in_one_flight(&gate, &launcher, 3).await {
            assert_eq!(panic_message(heard.unwrap_err()), message);
        }
        assert_eq!(
            (launcher.launches(), attempts_used(&gate, "key").await),
            (1, 1)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_discover_is_shared_and_refunded() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7)).discovering(|_| async {
        sleep(LAUNCH_TIME).await;
        panic!("out of memory")
    });
    for heard in in_one_flight(&gate, &launcher, 3).await {
        assert_eq!(panic_message(heard.unwrap_err()), "out of memory");
    }
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_of_discover_is_shared_and_refunded_and_nothing_is_launched_on_a_guess() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7)).discovering(|_| async {
        sleep(LAUNCH_TIME).await;
        Err("connection refused".into())
    });
    for heard in in_one_flight(&gate, &launcher, 3).await {
        let Err(GateError::Launch(LaunchError::Discover { source, .. })) = heard else {
            panic!("discover did not fail: {heard:?}");
        };
        assert_eq!(source.to_string(), "connection refused");
    }
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
    assert_eq!(launcher.discover.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_discovered_backend_is_shared_and_nothing_is_charged_or_launched() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7)).discovering(|_| async {
        sleep(LAUNCH_TIME).await;
        Ok(Some(5))
    });
    let heard = in_one_flight(&gate, &launcher, 3).await;
    let heard: Vec<_> = heard.into_iter().map(Result::unwrap).collect();
    assert!(heard.iter().all(|launched| launched.value == 5));
    let how: Vec<_> = heard.iter().map(|launched| launched.how).collect();
    assert_eq!(how, [How::Discovered, How::Joined, How::Joined]);
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn every_way_to_settle_a_permit_is_heard_by_each_follower() {
    let gate = gate::<&str>();
    let followers = || [(); 3].map(|()| task::spawn(gate.acquire("key")));

    let (permit, mut waiting) = (lead(&gate, "key").await, followers());
    waiting
        .iter_mut()
        .for_each(|follower| assert_pending!(follower.poll()));
    permit.succeed(7).await.unwrap();
    for mut follower in waiting {
        assert_eq!(joined(assert_ready!(follower.poll())), 7);
    }

    let (permit, mut waiting) = (lead(&gate, "key").await, followers());
    waiting
        .iter_mut()
        .for_each(|follower| assert_pending!(follower.poll()));
    permit.discovered(5).await;
    for mut follower in waiting {
        assert_eq!(joined(assert_ready!(follower.poll())), 5);
    }

    let (permit, mut waiting) = (lead(&gate, "key").await, followers());
    waiting
        .iter_mut()
        .for_each(|follower| assert_pending!(follower.poll()));
    let told = permit.fail("no such program").await.to_string();
    for mut follower in waiting {
        let error = assert_ready!(follower.poll()).unwrap_err();
        assert_eq!(error.to_string(), told);
    }

    let (permit, mut waiting) = (lead(&gate, "key").await, followers());
    waiting
        .iter_mut()
        .for_each(|follower| assert_pending!(follower.poll()));
    permit.refund().await;
    let successor = led(assert_ready!(waiting[0].poll()));
    assert_pending!(waiting[1].poll());
    assert_pending!(waiting[2].poll());
    drop(successor);
}

#[tokio::test(start_paused = true)]
async fn followers_hear_at_once_that_a_permit_was_dropped() {
    let gate = gate::<&str>();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    drop(permit);
    assert!(follower.is_woken());
    let error = assert_ready!(follower.poll()).unwrap_err();
    assert!(matches!(
        error,
        GateError::Launch(LaunchError::Abandoned { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn followers_hear_that_the_task_which_held_the_permit_panicked() {
    let gate = gate::<&str>();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    let holder = tokio::spawn(async move {
        let _permit = permit;
        panic!("out of memory");
    });
    assert!(holder.await.unwrap_err().is_panic());
    panic_message(assert_ready!(follower.poll()).unwrap_err());
    assert_eq!(attempts_used(&gate, "key").await, 1);
}

#[tokio::test(start_paused = true)]
async fn an_ended_flight_counts_as_none_so_the_next_caller_leads_at_once() {
    let gate = gate::<&str>();
    drop(lead(&gate, "key").await);
    let permit = led(assert_ready!(task::spawn(gate.acquire("key")).poll()));
    assert_eq!(permit.attempt_number(), 2);
    drop(permit);
    let launched = gate.launch("key", slow(|| Ok(7))).await.unwrap();
    assert_eq!(launched.how, How::Led);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_kept_and_never_settled_holds_no_follower_beyond_its_deadline() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(seconds(20))
        .build();
    let permit = lead(&gate, "key").await;
    let error = gate.acquire("key").await.unwrap_err();
    let GateError::Timeout(timeout) = error else {
        panic!("not a timeout: {error:?}");
    };
    assert_eq!((timeout.stage, timeout.after), (Stage::Follow, seconds(20)));
    assert_eq!(timeout.key.as_deref(), Some("key"));
    // The flight goes on: the permit is as good as before.
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    permit.succeed(7).await.unwrap();
    assert_eq!(joined(assert_ready!(follower.poll())), 7);
}

// The leader's seat.

/// Holds the spawn lock of "key" as another process would.
async fn hold_elsewhere(lock: &InMemorySpawnLock<&'static str>) -> Permit {
    lead(&Gate::builder(lock.clone()).build(), "key").await
}

/// Lets the tasks of this runtime, which has one thread, run until they wait again.
async fn tasks_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn when_a_leader_is_dropped_before_its_permit_one_follower_takes_over_and_the_others_follow_it()
 {
    let lock = InMemorySpawnLock::new();
    let gate = Gate::builder(lock.clone()).build();
    let elsewhere = hold_elsewhere(&lock).await;
    let mut leader = task::spawn(gate.acquire("key"));
    assert_pending!(leader.poll());
    let mut followers = [(); 4].map(|()| task::spawn(gate.acquire("key")));
    for follower in &mut followers {
        assert_pending!(follower.poll());
    }

    drop(leader);
    advance(Duration::ZERO).await;
    for follower in &mut followers {
        assert!(follower.is_woken());
        assert_pending!(follower.poll());
    }
    elsewhere.refund().await;
    advance(seconds(1)).await;
    tasks_run().await;
    let woken = followers.iter().map(task::Spawn::is_woken);
    assert_eq!(woken.collect::<Vec<_>>(), [true, false, false, false]);

    let permit = led(assert_ready!(followers[0].poll()));
    assert_eq!(
        permit.attempt_number(),
        1,
        "the dropped leader's is refunded"
    );
    permit.succeed(7).await.unwrap();
    for follower in &mut followers[1..] {
        assert_eq!(joined(assert_ready!(follower.poll())), 7);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_come_for_its_permit_loses_it_to_a_follower() {
    let lock = InMemorySpawnLock::new();
    let gate = Gate::builder(lock.clone())
        .lock_timeout(LOCK_TIMEOUT)
        .build();
    let elsewhere = hold_elsewhere(&lock).await;
    let mut leader = task::spawn(gate.acquire("key"));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    elsewhere.refund().await;

    advance(seconds(1)).await;
    tasks_run().await;
    assert!(!follower.is_woken(), "the leader has its time to come");
    advance(seconds(3)).await;
    tasks_run().await;
    assert!(follower.is_woken());
    let permit = led(assert_ready!(follower.poll()));
    assert_eq!(permit.attempt_number(), 1, "the old leader's is refunded");

    // The old leader comes back to life: it gets no second permit, and takes nothing from the first.
    let second = leader.poll().map(|acquired| acquired.is_ok());
    assert_ne!(second, std::task::Poll::Ready(true));
    drop(leader);
    let mut third = task::spawn(gate.acquire("key"));
    assert_pending!(third.poll());
    permit.succeed(7).await.unwrap();
    assert_eq!(joined(assert_ready!(third.poll())), 7);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_polled_keeps_its_seat_to_the_end_of_its_time_and_all_hear_how_it_ended() {
    let lock = InMemorySpawnLock::new();
    let gate = Gate::builder(lock.clone())
        .lock_timeout(LOCK_TIMEOUT)
        .build();
    let _elsewhere = hold_elsewhere(&lock).await;
    let (leader, follower) = tokio::join!(gate.acquire("key"), gate.acquire("key"));
    for heard in [leader, follower] {
        let Err(GateError::Timeout(timeout)) = heard else {
            panic!("not a timeout: {heard:?}");
        };
        assert_eq!(timeout.stage, Stage::Lock);
    }
}

#[tokio::test(start_paused = true)]
async fn a_launch_needs_no_caller_that_polls_it() {
    let gate = gate::<&str>();
    let launcher = slow(|| Ok(7));
    let mut leader = task::spawn(gate.launch("key", launcher.clone()));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(gate.launch("key", launcher.clone()));
    assert_pending!(follower.poll());
    sleep(2 * LAUNCH_TIME).await;
    assert!(gate.snapshot("key").await.flight.is_none());
    let launched = assert_ready!(follower.poll()).unwrap();
    assert_eq!((launched.value, launched.how), (7, How::Joined));
    assert_eq!(assert_ready!(leader.poll()).unwrap().how, How::Led);
    assert_eq!(launcher.launches(), 1);
}

// What is refunded, and what is not.

#[tokio::test(start_paused = true)]
async fn an_attempt_that_never_reached_a_launch_is_refunded() {
    let lock = InMemorySpawnLock::new();
    let gate = Gate::builder(lock.clone())
        .budget(SpawnBudgetConfig::new(1, seconds(1000)))
        .build();
    let elsewhere = hold_elsewhere(&lock).await;

    // Cancelled while it waits.
    let mut leader = task::spawn(gate.acquire("key"));
    assert_pending!(leader.poll());
    assert_eq!(attempts_used(&gate, "key").await, 0);
    drop(leader);
    advance(Duration::ZERO).await;
    assert_eq!(attempts_used(&gate, "key").await, 0);
    // The lock not had in time.
    gate.acquire("key").await.unwrap_err();
    assert_eq!(attempts_used(&gate, "key").await, 0);
    gate.launch("key", slow(|| Ok(7))).await.unwrap_err();
    assert_eq!(attempts_used(&gate, "key").await, 0);
    elsewhere.refund().await;
    // Running already.
    lead(&gate, "key").await.discovered(7).await;
    assert_eq!(attempts_used(&gate, "key").await, 0);
    // Given back.
    lead(&gate, "key").await.refund().await;
    assert_eq!(attempts_used(&gate, "key").await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_lock_failed_is_refunded() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        Err(SpawnLockError::RuntimeShutDown {
            path: "key.lock".into(),
        })
    });
    let gate = Gate::builder(lock.clone()).build();
    let error = gate.acquire("key").await.unwrap_err();
    assert!(matches!(error, GateError::ShutDown), "{error:?}");
    let launcher = slow(|| Ok(7));
    let error = gate.launch("key", launcher.clone()).await.unwrap_err();
    assert!(matches!(error, GateError::ShutDown), "{error:?}");
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
    assert_eq!(lock.tries.calls(), 2, "only a held lock is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_failed_is_not_tried_again_by_each_follower() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        sleep(LAUNCH_TIME).await;
        let source = std::io::Error::other("input/output error");
        let path = "key.lock".into();
        Err(SpawnLockError::Lock { path, source })
    });
    let gate = Gate::builder(lock.clone()).build();
    let request = || gate.acquire("key");
    let (one, two, three) = tokio::join!(request(), request(), request());
    for heard in [one, two, three] {
        let error = heard.unwrap_err();
        assert!(matches!(error, GateError::Lock(_)), "{error:?}");
    }
    assert_eq!(lock.tries.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_dropped_or_failed_stays_charged_since_something_may_have_been_started() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(2, seconds(100)))
        .build();
    let permit = lead(&gate, "key").await;
    assert_eq!(
        (permit.attempt_number(), permit.remaining_after_begin()),
        (1, 1)
    );
    drop(permit);
    assert_eq!(attempts_used(&gate, "key").await, 1);
    lead(&gate, "key").await.fail("no such program").await;
    assert_eq!(attempts_used(&gate, "key").await, 2);
    let error = gate.acquire("key").await.unwrap_err();
    assert!(matches!(error, GateError::BudgetExhausted(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn success_resets_the_budget() {
    let gate = gate::<&str>();
    lead(&gate, "key").await.fail("no such program").await;
    lead(&gate, "key").await.succeed(7).await.unwrap();
    assert_eq!(attempts_used(&gate, "key").await, 0);
    gate.launch("key", slow(|| Err("no such program".into())))
        .await
        .unwrap_err();
    gate.launch("key", slow(|| Ok(7))).await.unwrap();
    assert_eq!(attempts_used(&gate, "key").await, 0);
}

// A lock that is lost.

/// A bound on the tries at a lock that is lost each time.
const FEW: std::ops::RangeInclusive<usize> = 2..=20;

fn is_lost_lock(error: &GateError) -> bool {
    matches!(error, GateError::Lock(error)
        if matches!(*error.source, SpawnLockError::DeletedOrRecreated { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_before_the_launch_is_taken_anew_and_the_backend_looked_for_again() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .on_verify(|call| async move { if call <= 2 { Err(lost()) } else { Ok(()) } });
    let gate = Gate::builder(lock.clone()).build();
    let launcher = slow(|| Ok(7)).discovering(|_| async { Ok(None) });
    let launched = gate.launch("key", launcher.clone()).await.unwrap();
    assert_eq!((launched.value, launched.how), (7, How::Led));
    // Once without the lock, and after each try.
    assert_eq!((lock.tries.calls(), launcher.discover.calls()), (3, 4));
    assert_eq!(launcher.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_each_time_before_the_launch_ends_the_flight_refunded_after_a_few_tries() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_verify(|_| async { Err(lost()) });
    let gate = Gate::builder(lock.clone()).build();
    let launcher = slow(|| Ok(7));
    let error = gate.launch("key", launcher.clone()).await.unwrap_err();
    assert!(is_lost_lock(&error), "{error:?}");
    assert!(error.retry_helps());
    assert!(FEW.contains(&lock.tries.calls()), "{}", lock.tries.calls());
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_cannot_be_verified_before_the_launch_ends_the_flight_refunded() {
    for (retry_helps, ends_after) in [(false, 0), (true, 10)] {
        let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_verify(move |_| async move {
            Err(SpawnLockError::Service {
                lock: "key".into(),
                source: "no answer".into(),
                retry_helps,
            })
        });
        let gate = Gate::builder(lock.clone())
            .lock_timeout(seconds(10))
            .build();
        let launcher = slow(|| Ok(7));
        let began = Instant::now();
        let error = gate.launch("key", launcher.clone()).await.unwrap_err();
        assert!(matches!(error, GateError::Lock(_)), "{error:?}");
        assert_eq!(began.elapsed().as_secs(), ends_after);
        assert_eq!(
            (launcher.launches(), attempts_used(&gate, "key").await),
            (0, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_file_swapped_while_it_is_taken_is_opened_anew_a_few_times() {
    let once = ScriptedLock::new(InMemorySpawnLock::new())
        .on_try(|call| async move { if call == 1 { Err(lost()) } else { Ok(()) } });
    let gate = Gate::builder(once).build();
    lead(&gate, "key").await.succeed(7).await.unwrap();

    let always = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async { Err(lost()) });
    let gate = Gate::builder(always.clone()).build();
    let error = gate.acquire("key").await.unwrap_err();
    assert!(is_lost_lock(&error), "{error:?}");
    assert!(FEW.contains(&always.tries.calls()));
    assert_eq!(attempts_used(&gate, "key").await, 0);
}

/// A lock that is lost once a launch has begun.
fn lost_while_launching() -> ScriptedLock<&'static str> {
    ScriptedLock::new(InMemorySpawnLock::new())
        .on_verify(|call| async move { if call == 1 { Ok(()) } else { Err(lost()) } })
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_while_launching_is_named_to_the_leader_and_the_followers_and_charged() {
    let gate = Gate::builder(lost_while_launching()).build();
    let launcher = slow(|| Ok(7));
    for heard in in_one_flight(&gate, &launcher, 3).await {
        let Err(GateError::Launch(LaunchError::LockLost { source, .. })) = heard else {
            panic!("the lock was not lost: {heard:?}");
        };
        assert!(matches!(*source, SpawnLockError::DeletedOrRecreated { .. }));
    }
    assert_eq!(
        (launcher.launches(), attempts_used(&gate, "key").await),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_dropped_while_it_waits_for_a_lost_lock_again_is_followed_at_once() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .on_try(|call| async move {
            if call == 2 {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .on_verify(|call| async move { if call == 1 { Err(lost()) } else { Ok(()) } });
    let gate = Gate::builder(lock.clone()).build();
    let mut leader = Box::pin(gate.acquire("key"));
    while lock.tries.calls() < 2 {
        assert_pending!(task::spawn(&mut leader).poll());
        tokio::task::yield_now().await;
    }
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    let dropped_at = Instant::now();
    drop(leader);
    assert!(matches!(follower.await, Ok(Acquired::Led(_))));
    assert_eq!(dropped_at.elapsed(), Duration::ZERO);
}

/// Launches, and notes what it is told to discard.
struct Discards(tokio::sync::mpsc::UnboundedSender<(&'static str, u32)>);

#[spawn_gate::async_trait]
impl BackendLauncher<&'static str, u32> for Discards {
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _: &Permit) -> Result<u32, BoxError> {
        Ok(7)
    }

    async fn discard(&self, key: &&'static str, value: u32) {
        let _ = self.0.send((key, value));
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_whose_lock_was_lost_is_discarded_once_and_one_that_is_shared_is_not() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .on_verify(|call| async move { if call == 2 { Err(lost()) } else { Ok(()) } });
    let gate = Gate::builder(lock).build();
    let (discarded, mut was_discarded) = tokio::sync::mpsc::unbounded_channel();
    // Behind an `Arc`, which has to pass it on.
    let launcher = Arc::new(Discards(discarded));
    gate.launch("key", Arc::clone(&launcher)).await.unwrap_err();
    let mut next = async || timeout(seconds(3600), was_discarded.recv()).await;
    assert_eq!(next().await, Ok(Some(("key", 7))));
    gate.launch("key", launcher).await.unwrap();
    assert_eq!(next().await, Ok(None));
}

/// An error that panics when it is displayed, and is its own source.
#[derive(Debug)]
struct Unspeakable(&'static str);

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        assert!(!self.0.is_empty(), "scripted");
        f.write_str(self.0)
    }
}

impl std::error::Error for Unspeakable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self)
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_put_in_words_is_shared_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file_lock = FileSpawnLock::new(directory.path()).unwrap();
    let in_memory = Gate::builder(InMemorySpawnLock::new()).build();
    for gate in [in_memory, Gate::builder(file_lock).build()] {
        for words in ["no end", "no end", ""] {
            let failing = Script::launching(move |_| async move {
                sleep(LAUNCH_TIME).await;
                Err(Unspeakable(words).into())
            });
            let request = || gate.launch("key", failing.clone());
            let (leader, follower) = tokio::join!(request(), request());
            for heard in [leader, follower] {
                let Err(GateError::Launch(LaunchError::Failed { source, .. })) = heard else {
                    panic!("not shared: {heard:?}");
                };
                assert!(source.downcast_ref::<Unspeakable>().is_some());
            }
        }
        let refused = gate.acquire("key").await.unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("an error whose message panicked")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_lost_for_a_reason_without_words_is_heard_of_all_the_same() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_verify(|call| async move {
        match call {
            1 => Ok(()),
            _ => Err(SpawnLockError::Service {
                lock: "key".into(),
                source: Unspeakable("").into(),
                retry_helps: false,
            }),
        }
    });
    let gate = Gate::builder(lock).build();
    let request = || gate.launch("key", slow(|| Ok(7)));
    let (leader, follower) = tokio::join!(request(), request());
    for heard in [leader, follower] {
        let lost = matches!(heard, Err(GateError::Launch(LaunchError::LockLost { .. })));
        assert!(lost);
    }
}

/// Launches, and panics when it is dropped.
struct Fragile;

impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("scripted");
    }
}

#[spawn_gate::async_trait]
impl BackendLauncher<&'static str, u32> for Fragile {
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _: &Permit) -> Result<u32, BoxError> {
        Ok(7)
    }
}

#[tokio::test(start_paused = true)]
async fn a_launcher_that_panics_when_it_is_dropped_changes_nobodys_outcome() {
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    let launched = gate.launch("key", Fragile).await.unwrap();
    assert_eq!((launched.value, launched.how), (7, How::Led));
}

#[tokio::test(start_paused = true)]
async fn a_permit_tells_that_its_lock_is_lost_and_cannot_succeed_any_more() {
    let gate = Gate::builder(lost_while_launching()).build();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    let error = permit.verify().await.unwrap_err();
    assert!(matches!(error, SpawnLockError::DeletedOrRecreated { .. }));

    let error = permit.succeed(7).await.unwrap_err();
    assert!(matches!(
        error,
        GateError::Launch(LaunchError::LockLost { .. })
    ));
    let heard = assert_ready!(follower.poll()).unwrap_err();
    assert!(matches!(
        heard,
        GateError::Launch(LaunchError::LockLost { .. })
    ));
    assert_eq!(attempts_used(&gate, "key").await, 1);
}
