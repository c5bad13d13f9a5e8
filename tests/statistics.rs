//! What a gate counts (promises 63 to 66), and who is told of a long wait (promise 69).

mod support;

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::admin::{DurationHistogram, Statistics, Waiting};
use spawn_gate::error::{NotStarted, Stage};
use spawn_gate::{
    FileSpawnLock, GateError, How, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate,
    SpawnGateBuilder, SpawnLockError,
};
use tokio::time::{advance, sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::script::Script;
use crate::support::scripted_lock::{ScriptedLock, lost};
use crate::support::{fail_once, lead, refusal, seconds, until_held, until_waiting};

type Gate = SpawnGate<&'static str, u32>;

const KEY: &str = "indexer";

fn builder() -> SpawnGateBuilder<&'static str, u32> {
    Gate::builder(InMemorySpawnLock::new())
}

fn launches() -> Script {
    Script::launching(|_| async { Ok(7) })
}

/// A launcher that takes this time.
fn takes(time: Duration) -> Script {
    Script::launching(move |_| async move {
        sleep(time).await;
        Ok(7)
    })
}

/// The outcomes of launches, with the number of each and the time that they took together.
fn outcomes(statistics: &Statistics) -> Vec<(&'static str, u64, Duration)> {
    let launches = statistics.launches.iter();
    launches
        .map(|(name, all)| (*name, all.count, all.sum))
        .collect()
}

fn waits(statistics: &Statistics) -> Vec<(&'static str, u64, Duration)> {
    let waits = statistics.lock_waits.iter();
    waits
        .map(|(name, all)| (*name, all.count, all.sum))
        .collect()
}

/// Promise 63.
#[tokio::test(start_paused = true)]
async fn each_request_that_returns_is_counted_once_by_how() {
    let gate = builder()
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .build();
    let slow = takes(seconds(2));
    let (one, other) = tokio::join!(gate.launch(KEY, slow.clone()), gate.launch(KEY, slow));
    assert_eq!(
        (one.unwrap().how, other.unwrap().how),
        (How::Led, How::Joined)
    );
    let found = launches().discovering(|_| async { Ok(Some(7)) });
    assert_eq!(gate.launch(KEY, found).await.unwrap().how, How::Discovered);
    lead(&gate, "permit").await.succeed(1).await.unwrap();

    let fails = Script::launching(|_| async { Err("no such program".into()) });
    gate.launch(KEY, fails).await.unwrap_err();
    for _ in 0..3 {
        refusal(gate.acquire(KEY).await);
    }
    gate.close().await.unwrap();
    assert!(gate.acquire(KEY).await.unwrap_err().is_closed());

    let counts = gate.statistics().await.requests;
    let expected = [
        ("led", 2),
        ("joined", 1),
        ("discovered", 1),
        ("refused", 3),
        ("failed", 2),
    ];
    assert_eq!(counts.by_how(), expected);
}

/// Promise 63.
#[tokio::test(start_paused = true)]
async fn a_request_that_its_caller_drops_is_not_counted_and_its_launch_is() {
    let gate = builder().build();
    let asked = gate.launch(KEY, takes(seconds(5)));
    timeout(seconds(1), asked).await.unwrap_err();
    let before = gate.statistics().await;
    assert_eq!((before.requests.led, before.active_flights.launch), (0, 1));
    assert!(gate.acquire(KEY).await.is_ok());
    let after = gate.statistics().await;
    assert_eq!((after.requests.led, after.requests.joined), (0, 1));
    assert_eq!(outcomes(&after), [("launched", 1, seconds(5))]);
}

/// Promise 63.
#[tokio::test(start_paused = true)]
async fn a_permit_from_a_task_is_counted_when_its_caller_gets_it_or_the_abort() {
    let gate = Gate::builder(ScriptedLock::new(InMemorySpawnLock::new())).build();
    lead(&gate, KEY).await.refund().await;
    assert_eq!(gate.statistics().await.requests.led, 1);

    let mut asking = task::spawn(gate.acquire(KEY));
    assert_pending!(asking.poll());
    while !asking.is_woken() {
        tokio::task::yield_now().await;
    }
    // The caller meets the abort before the task does.
    let mut abort = task::spawn(gate.abort(KEY));
    assert_pending!(abort.poll());
    assert_eq!(asking.await.unwrap_err().error_type(), "aborted");
    assert!(abort.await);
    let statistics = gate.statistics().await;
    let counts = statistics.requests;
    assert_eq!((counts.led, counts.failed), (1, 1));
    assert_eq!(outcomes(&statistics), []);
}

/// Promise 63.
#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_too_long_is_counted_as_failed() {
    let gate = builder().follow_timeout(seconds(5)).build();
    let _permit = lead(&gate, KEY).await;
    let error = gate.acquire(KEY).await.unwrap_err();
    assert_eq!(error.error_type(), "follow_timeout");
    assert_eq!(gate.statistics().await.requests.failed, 1);
}

/// Promise 63.
#[test]
fn a_request_whose_runtime_is_shut_down_is_counted_as_failed() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| pending());
    let gate = Gate::builder(lock).build();
    let here = runtime();
    let _context = here.enter();
    let mut acquires = task::spawn(gate.acquire("acquire"));
    let mut launch = task::spawn(gate.launch("launch", launches()));
    {
        let there = runtime();
        let _context = there.enter();
        assert_pending!(acquires.poll());
        assert_pending!(launch.poll());
    }
    let error = assert_ready!(acquires.poll()).unwrap_err();
    assert_eq!(error.error_type(), "shut_down");
    let error = assert_ready!(launch.poll()).unwrap_err();
    assert_eq!(error.error_type(), "shut_down");
    assert_eq!(here.block_on(gate.statistics()).requests.failed, 2);
}

/// Promise 63.
#[tokio::test(start_paused = true)]
async fn a_launch_whose_lock_was_shut_down_is_counted_as_failed() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        Err(SpawnLockError::RuntimeShutDown {
            path: "key.lock".into(),
        })
    });
    let gate = Gate::builder(lock).build();
    let error = gate.launch(KEY, launches()).await.unwrap_err();
    assert_eq!(error.error_type(), "shut_down");
    assert_eq!(gate.statistics().await.requests.failed, 1);
}

/// Promise 63: also when requests follow, take over, are dropped and fail, in many tasks.
#[tokio::test(start_paused = true)]
async fn requests_that_return_and_requests_that_are_counted_are_as_many() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(2, seconds(3)))
        .build();
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..300_u64 {
        let gate = gate.clone();
        asking.spawn(async move {
            sleep(Duration::from_millis(37 * (number % 50))).await;
            let patience = Duration::from_millis(number * 7 % 400);
            let key = ["a", "b", "c"][number as usize % 3];
            if number % 2 == 0 {
                let launcher = Script::launching(move |_| async move {
                    sleep(Duration::from_millis(150)).await;
                    match number % 3 {
                        0 => Err("no".into()),
                        1 => panic!("a panic of a launcher"),
                        _ => Ok(1),
                    }
                });
                timeout(patience, gate.launch(key, launcher)).await.is_ok()
            } else {
                // A permit is dropped.
                timeout(patience, gate.acquire(key)).await.is_ok()
            }
        });
    }
    let returned = asking.join_all().await.into_iter().filter(|is| *is).count() as u64;
    let statistics = gate.statistics().await;
    let counted: u64 = statistics
        .requests
        .by_how()
        .iter()
        .map(|(_, count)| count)
        .sum();
    assert_eq!(counted, returned);
    gate.close().await.unwrap();
    let statistics = gate.statistics().await;
    assert_eq!(statistics.active_flights, Default::default());
    assert_eq!(statistics.active_followers, 0);
}

/// Promise 64.
#[tokio::test(start_paused = true)]
async fn each_launch_is_counted_by_its_outcome_with_its_duration() {
    let gate = builder()
        .budget(SpawnBudgetConfig::new(100, seconds(1000)))
        .launch_timeout(seconds(20))
        .build();
    // The look is not part of the launch.
    let looks = takes(seconds(2)).discovering(|_| async {
        sleep(seconds(7)).await;
        Ok(None)
    });
    gate.launch(KEY, looks).await.unwrap();
    let fails = Script::launching(|_| async {
        sleep(seconds(3)).await;
        Err("no such program".into())
    });
    gate.launch(KEY, fails).await.unwrap_err();
    let starts_nothing =
        Script::launching(|_| async { Err(NotStarted::new("no more processes", true).into()) });
    gate.launch(KEY, starts_nothing).await.unwrap_err();
    let panics = Script::launching(|_| async { panic!("a panic of a launcher") });
    gate.launch(KEY, panics).await.unwrap_err();
    gate.launch(KEY, takes(seconds(1000))).await.unwrap_err();
    let asked = task::spawn(gate.launch(KEY, takes(seconds(1000))));
    let abort = async {
        until_waiting(&gate, KEY, 1).await;
        sleep(seconds(4)).await;
        gate.abort(KEY).await
    };
    assert!(tokio::join!(asked, abort).1);
    drop(lead(&gate, KEY).await);

    let expected = [
        ("abandoned", 1, seconds(0)),
        ("aborted", 1, seconds(4)),
        ("launch_failed", 1, seconds(3)),
        ("launch_timeout", 1, seconds(20)),
        ("launched", 1, seconds(2)),
        ("not_started", 1, seconds(0)),
        ("panicked", 1, seconds(0)),
    ];
    let statistics = gate.statistics().await;
    assert_eq!(outcomes(&statistics), expected);
    assert_eq!(statistics.locks_lost, 0);
    let bounds = DurationHistogram::BOUNDS;
    let bucket = bounds
        .iter()
        .position(|bound| *bound == Duration::from_millis(2500));
    assert_eq!(statistics.launches["launched"].buckets[bucket.unwrap()], 1);
}

/// Promise 64.
#[tokio::test(start_paused = true)]
async fn a_permit_that_launches_nothing_is_no_launch() {
    let gate = builder().build();
    lead(&gate, KEY).await.discovered(7).await;
    lead(&gate, KEY).await.refund().await;
    let found = launches().discovering(|_| async { Ok(Some(7)) });
    gate.launch(KEY, found).await.unwrap();
    let no_look = launches().discovering(|_| async { Err("cannot tell".into()) });
    gate.launch(KEY, no_look).await.unwrap_err();
    assert_eq!(outcomes(&gate.statistics().await), []);
}

/// Promise 64.
#[tokio::test(start_paused = true)]
async fn a_permit_that_is_aborted_before_anybody_collects_it_is_no_launch() {
    let gate = Gate::builder(ScriptedLock::new(InMemorySpawnLock::new())).build();
    let mut asking = task::spawn(gate.acquire(KEY));
    assert_pending!(asking.poll());
    while !asking.is_woken() {
        tokio::task::yield_now().await;
    }
    assert!(gate.abort(KEY).await);
    assert_eq!(outcomes(&gate.statistics().await), []);
}

/// Promise 64.
#[tokio::test(start_paused = true)]
async fn a_launch_that_an_operator_ends_counts_once_when_its_permit_is_settled() {
    let gate = builder().build();
    let permit = lead(&gate, KEY).await;
    assert!(gate.abort(KEY).await);
    assert_eq!(outcomes(&gate.statistics().await), []);
    advance(seconds(9)).await;
    permit.succeed(7).await.unwrap_err();
    let dropped = lead(&gate, KEY).await;
    assert!(gate.abort(KEY).await);
    drop(dropped);
    assert_eq!(
        outcomes(&gate.statistics().await),
        [("aborted", 2, seconds(9))]
    );

    let gate = builder().drain_timeout(seconds(1)).build();
    let permit = lead(&gate, KEY).await;
    gate.close().await.unwrap_err();
    permit.succeed(7).await.unwrap_err();
    assert_eq!(
        outcomes(&gate.statistics().await),
        [("closed", 1, seconds(1))]
    );
}

/// Promise 65.
#[tokio::test(start_paused = true)]
async fn each_wait_for_the_lock_is_counted_by_its_outcome_with_its_duration() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = Gate::builder(lock.clone()).build();
    let gate = Gate::builder(lock).lock_timeout(seconds(20)).build();
    // Taken without waiting.
    lead(&gate, KEY).await.succeed(1).await.unwrap();

    let holder = lead(&elsewhere, KEY).await;
    let error = gate.acquire(KEY).await.unwrap_err();
    assert_eq!(error.error_type(), "lock_timeout");
    timeout(seconds(5), gate.acquire(KEY)).await.unwrap_err();
    let mut waiting = task::spawn(gate.acquire(KEY));
    assert_pending!(waiting.poll());
    while gate.statistics().await.lock_waits.len() < 2 {
        tokio::task::yield_now().await;
    }
    drop(waiting);
    let released = async {
        sleep(seconds(3)).await;
        holder.succeed(1).await.unwrap();
    };
    let (permit, ()) = tokio::join!(lead(&gate, KEY), released);
    permit.succeed(1).await.unwrap();

    let statistics = gate.statistics().await;
    let counted: Vec<_> = waits(&statistics)
        .iter()
        .map(|wait| (wait.0, wait.1))
        .collect();
    assert_eq!(
        counted,
        [("acquired", 1), ("leader_gone", 1), ("lock_timeout", 1)]
    );
    assert_eq!(statistics.lock_waits["lock_timeout"].sum, seconds(20));
    assert!(statistics.lock_waits["acquired"].sum >= seconds(3));
    assert!(statistics.lock_waits["leader_gone"].sum >= seconds(5));
}

/// Promise 65.
#[tokio::test(start_paused = true)]
async fn a_wait_for_the_lock_begins_after_the_look() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = Gate::builder(lock.clone()).build();
    let gate = Gate::builder(lock).build();
    let holder = lead(&elsewhere, KEY).await;
    let looks = launches().discovering(|look| async move {
        if look == 1 {
            sleep(seconds(4)).await;
        }
        Ok(None)
    });
    let released = async {
        sleep(seconds(7)).await;
        holder.refund().await;
    };
    let (launched, ()) = tokio::join!(gate.launch(KEY, looks), released);
    launched.unwrap();
    let wait = gate.statistics().await.lock_waits["acquired"].sum;
    assert!(wait >= seconds(3) && wait < seconds(4), "{wait:?}");
}

/// Promise 65.
#[tokio::test]
async fn a_wait_that_another_process_ends_is_counted_by_what_came_of_its_launch() {
    for (succeeds, outcome) in [(true, "discovered"), (false, "launch_failed_elsewhere")] {
        let directory = tempfile::tempdir().unwrap();
        let process = || Gate::builder(FileSpawnLock::new(directory.path()).unwrap()).build();
        let (elsewhere, gate) = (process(), process());
        let holder = lead(&elsewhere, KEY).await;
        let finds = launches().discovering(|look| async move { Ok((look > 1).then_some(7)) });
        let settled = async {
            until_held(&gate, KEY).await;
            match succeeds {
                true => holder.succeed(7).await.unwrap(),
                false => _ = holder.fail("no such program").await,
            }
        };
        let (launched, ()) = tokio::join!(gate.launch(KEY, finds), settled);
        assert_eq!(launched.is_ok(), succeeds);
        let statistics = gate.statistics().await;
        let waits: Vec<_> = statistics.lock_waits.into_iter().collect();
        assert_eq!((waits.len(), waits[0].0, waits[0].1.count), (1, outcome, 1));
    }
}

/// Promise 65.
#[tokio::test(start_paused = true)]
async fn each_loss_before_a_launch_is_counted_and_so_is_each_wait_that_follows() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_verify(|check| async move {
        match check {
            1 | 2 => Err(lost()),
            3 => Err(SpawnLockError::Service {
                lock: "key".into(),
                source: "no answer".into(),
                retry_helps: true,
            }),
            _ => Ok(()),
        }
    });
    let gate = Gate::builder(lock).build();
    gate.launch(KEY, launches()).await.unwrap();
    let statistics = gate.statistics().await;
    assert_eq!(statistics.locks_lost, 2);
    assert_eq!(statistics.lock_waits["acquired"].count, 4);
}

/// Promise 65.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_while_launching_is_counted_whatever_the_launch_came_to() {
    // What cannot be verified is treated as lost.
    let unknown = || SpawnLockError::Unresponsive { after: seconds(5) };
    let cases: [(_, _, fn() -> SpawnLockError); 2] = [
        (launches(), "lock_lost", unknown),
        (
            Script::launching(|_| async { Err("no such program".into()) }),
            "launch_failed",
            lost,
        ),
    ];
    for (launcher, outcome, error) in cases {
        let lock = ScriptedLock::new(InMemorySpawnLock::new())
            .on_verify(move |check| async move { if check == 1 { Ok(()) } else { Err(error()) } });
        let gate = Gate::builder(lock).build();
        gate.launch(KEY, launcher).await.unwrap_err();
        let statistics = gate.statistics().await;
        assert_eq!(outcomes(&statistics), [(outcome, 1, seconds(0))]);
        assert_eq!(statistics.locks_lost, 1);
    }
}

/// Promise 65.
#[cfg(unix)]
#[tokio::test]
async fn a_lock_that_is_lost_is_counted_once() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let path = lock.path_of(&KEY);
    let gate: Gate = SpawnGate::builder(lock).build();
    let permit = lead(&gate, KEY).await;
    std::fs::remove_file(path).unwrap();
    let lost = permit.succeed(7).await.unwrap_err();
    assert_eq!(lost.error_type(), "lock_lost");
    let statistics = gate.statistics().await;
    assert_eq!(statistics.locks_lost, 1);
    assert_eq!(statistics.launches["lock_lost"].count, 1);
    assert_eq!(statistics.lock_waits["acquired"].count, 1);
}

/// Promise 66.
#[tokio::test(start_paused = true)]
async fn flights_and_followers_are_counted_while_they_are_there() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = Gate::builder(lock.clone()).build();
    let _holder = lead(&elsewhere, "lock").await;
    let _another = lead(&elsewhere, "lock, too").await;
    let gate = Gate::builder(lock).build();
    let looks = launches().discovering(|_| pending());
    let mut asked = [
        task::spawn(gate.launch("discover", looks.clone())),
        task::spawn(gate.launch("launch", Script::launching(|_| pending()))),
        task::spawn(gate.launch("lock", launches())),
        task::spawn(gate.launch("lock, too", launches())),
        task::spawn(gate.launch("discover, too", looks.clone())),
        task::spawn(gate.launch("discover, three", looks.clone())),
        task::spawn(gate.launch("discover", looks.clone())),
        task::spawn(gate.launch("discover", looks)),
        task::spawn(gate.launch("lock", launches())),
    ];
    for asked in &mut asked {
        assert_pending!(asked.poll());
    }
    sleep(seconds(1)).await;
    let statistics = gate.statistics().await;
    assert_eq!(
        statistics.active_flights.by_stage(),
        [("discover", 3), ("lock", 2), ("launch", 1)]
    );
    assert_eq!(statistics.active_followers, 3);
    drop(asked);
    for snapshot in gate.snapshots().await {
        assert!(gate.abort(snapshot.budget.key).await);
    }
    let statistics = gate.statistics().await;
    assert_eq!(statistics.active_flights, Default::default());
    assert_eq!(statistics.active_followers, 0);
}

#[cfg(feature = "serde")]
#[tokio::test]
async fn statistics_are_serialized_by_the_same_names() {
    let gate = builder().build();
    fail_once(&gate, KEY).await;
    let page = serde_json::to_value(gate.statistics().await).unwrap();
    assert_eq!(page["requests"]["led"], 1);
    assert_eq!(page["launches"]["launch_failed"]["count"], 1);
}

#[cfg(not(feature = "serde"))]
#[tokio::test]
async fn a_failure_has_the_name_of_its_error() {
    let gate = builder().build();
    fail_once(&gate, KEY).await;
    assert_eq!(gate.statistics().await.launches["launch_failed"].count, 1);
}

type Told = Arc<Mutex<Vec<Waiting>>>;

fn telling(lock: InMemorySpawnLock<&'static str>) -> (SpawnGateBuilder<&'static str, u32>, Told) {
    let told = Told::default();
    let hook = Arc::clone(&told);
    let builder =
        Gate::builder(lock).on_wait(move |waiting| hook.lock().unwrap().push(waiting.clone()));
    (builder, told)
}

/// Promise 69.
#[tokio::test(start_paused = true)]
async fn a_wait_longer_than_a_second_is_told_once_for_each_stage() {
    let lock = InMemorySpawnLock::new();
    let elsewhere = Gate::builder(lock.clone()).build();
    let holder = lead(&elsewhere, KEY).await;
    let (builder, told) = telling(lock);
    let gate = builder
        .discover_timeout(seconds(10))
        .launch_timeout(seconds(20))
        .lock_timeout(seconds(40))
        .build();
    let slow = takes(seconds(5)).discovering(|_| async {
        sleep(seconds(4)).await;
        Ok(None)
    });
    let released = async {
        sleep(seconds(8)).await;
        holder.refund().await;
    };
    let (launched, ()) = tokio::join!(gate.launch(KEY, slow), released);
    launched.unwrap();
    let told = told.lock().unwrap();
    let stages: Vec<_> = told.iter().map(|waiting| waiting.stage).collect();
    assert_eq!(stages, [Stage::Discover, Stage::Lock, Stage::Launch]);
    assert!(told.iter().all(|waiting| &*waiting.key == KEY));
    assert_eq!((told[0].waited, told[0].left), (seconds(1), seconds(9)));
    assert_eq!((told[2].waited, told[2].left), (seconds(1), seconds(19)));
    assert!(told[1].waited >= seconds(1) && told[1].waited < seconds(2));
    assert_eq!(
        told[0].to_string(),
        "looking for a running indexer for 1.0s, for at most 9.0s more"
    );
}

/// Promise 69.
#[tokio::test(start_paused = true)]
async fn short_waits_are_not_told() {
    let (builder, told) = telling(InMemorySpawnLock::new());
    let gate = builder.build();
    let quick = takes(Duration::from_millis(900)).discovering(|_| async {
        sleep(Duration::from_millis(900)).await;
        Ok(None)
    });
    gate.launch(KEY, quick).await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 0);
}

/// Promise 69.
#[tokio::test(start_paused = true)]
async fn a_wait_for_another_process_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let lock = || FileSpawnLock::new(directory.path()).unwrap();
    let elsewhere = Gate::builder(lock()).build();
    let holder = lead(&elsewhere, KEY).await;
    let told = Told::default();
    let hook = Arc::clone(&told);
    let gate = Gate::builder(lock())
        .lock_timeout(seconds(10))
        .on_wait(move |waiting| hook.lock().unwrap().push(waiting.clone()))
        .build();
    let waited: GateError = gate.acquire(KEY).await.unwrap_err();
    assert_eq!(waited.error_type(), "lock_timeout");
    holder.refund().await;
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1);
    let named = told[0].holder.as_ref().unwrap();
    assert_eq!(named.pid, std::process::id());
    let line = told[0].to_string();
    assert!(
        line.starts_with("waiting for the spawn lock of indexer for 1."),
        "{line}"
    );
    assert!(line.contains("; process "), "{line}");
}

/// Promise 69.
#[tokio::test(start_paused = true)]
async fn a_panic_of_the_hook_ends_nothing() {
    let gate = builder().on_wait(|_| panic!("a panic of the hook")).build();
    let launched = gate.launch(KEY, takes(seconds(5))).await;
    assert_eq!(launched.unwrap().value, 7);
}
