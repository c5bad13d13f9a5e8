//! What a newcomer meets: launchers from functions, keys by `Into`, errors that say why and what is left (promises 9, 40, 41).

mod support;

use std::error::Error;
use std::time::Duration;

use spawn_gate::admin::FlightSnapshot;
use spawn_gate::budget::ExhaustionReason;
use spawn_gate::error::{LaunchError, NotStarted, SharedError, Stage};
use spawn_gate::lock::{LedgerUpdate, LockName, SpawnLock, SpawnLockError};
use spawn_gate::{
    BackendKey, BoxError, BrokerInstanceKey, FileSpawnLock, GateError, GateKey, How,
    InMemorySpawnLock, Launch, SpawnBudgetConfig, SpawnGate, launcher_fn,
};
use tokio::time::{advance, sleep};

use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
use crate::support::{fail_once, lead, refusal, seconds};

type Gate = SpawnGate<String, u32>;

fn gate_with(attempts: u32) -> Gate {
    Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(attempts, seconds(30)))
        .build()
}

#[tokio::test(start_paused = true)]
async fn a_launcher_is_made_of_a_look_and_a_launch() {
    let gate = gate_with(3);
    let starts = launcher_fn(
        |key: String| async move { Ok((key == "running").then_some(5)) },
        |launch: Launch<String>| async move {
            assert_eq!((&*launch.key, launch.attempt_number), ("indexer", 1));
            assert!(launch.fencing_token > 0);
            Ok(7)
        },
    );
    let led = gate.launch("indexer", starts).await.unwrap();
    assert_eq!((led.value, led.how), (7, How::Led));
    let found = gate.launch("running", starts).await.unwrap();
    assert_eq!((found.value, found.how), (5, How::Discovered));

    let fails = launcher_fn(
        |_: String| async { Ok(None) },
        |_: Launch<String>| async { Err::<u32, BoxError>("no such program".into()) },
    );
    let error = gate.launch("other", fails).await.unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "attempt 1 to launch other failed: no such program"
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_may_be_anything_that_becomes_one() {
    let gate = gate_with(3);
    fail_once(&gate, "indexer".to_owned()).await;
    assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 1);
    drop(gate.acquire("indexer").await.unwrap());
    gate.reset("indexer").await.unwrap();
    assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 0);

    let numbered: SpawnGate<u64, u32> = SpawnGate::builder(InMemorySpawnLock::new()).build();
    lead(&numbered, 7).await.succeed(1).await.unwrap();
    drop(numbered.acquire(7_u32).await.unwrap());
    assert!(LockName::new(&-7_i32).as_str().starts_with("_7-"));
    let fields = |key: u64| {
        let mut fields = Vec::new();
        key.fields(&mut |field| fields.push(field.to_vec()));
        fields
    };
    assert_eq!(fields(7201), [b"7201"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_names_its_key_and_prints_all_its_sources_once() {
    let gate = gate_with(1);
    let launch = Script::launching(|_| async {
        let refused = std::io::Error::other("connection refused");
        Err(Box::new(NotReady(refused)) as BoxError)
    });
    let failed = gate.launch("indexer", launch).await.unwrap_err();
    let refused = gate.acquire("indexer").await.unwrap_err();
    let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        Err(SpawnLockError::Lock {
            path: "indexer.lock".into(),
            source: std::io::Error::other("input/output error"),
        })
    });
    let broken = Gate::builder(lock).build();
    let no_lock = broken.acquire("indexer").await.unwrap_err();
    let expected = [
        (
            &failed,
            "attempt 1 to launch indexer failed: the backend did not become ready: connection refused",
        ),
        (
            &refused,
            "the spawn budget of indexer is used up (the last launch failed: the backend did not become ready: \
             connection refused); retry after 30s",
        ),
        (
            &no_lock,
            "cannot take the spawn lock of indexer: cannot lock the spawn lock indexer.lock: input/output error",
        ),
    ];
    for (error, text) in expected {
        assert_eq!(error.key(), Some("indexer"));
        assert!(!error.is_closed());
        assert_eq!(format!("{error:#}"), text);
        // The plain form leaves the sources to whoever walks them.
        let source = error.source().map(ToString::to_string);
        assert!(source.is_none_or(|source| !error.to_string().contains(&source)));
    }
    gate.close().await.unwrap();
    let closed = gate.acquire("indexer").await.unwrap_err();
    assert!(closed.is_closed());
    assert_eq!(closed.key(), None);
}

#[derive(Debug, thiserror::Error)]
#[error("the backend did not become ready")]
struct NotReady(#[source] std::io::Error);

#[tokio::test(start_paused = true)]
async fn a_failure_says_what_is_left_and_the_last_one_when_to_retry() {
    let gate = gate_with(2);
    let fails = || Script::launching(|_| async { Err("no such program".into()) });
    let first = gate.launch("indexer", fails()).await.unwrap_err();
    advance(seconds(10)).await;
    let last = gate.launch("indexer", fails()).await.unwrap_err();
    let left = |error: &GateError| match error {
        GateError::Launch(error) => error.attempts_left().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((left(&first).remaining(), first.retry_after()), (1, None));
    assert_eq!(left(&last).remaining(), 0);
    // As the refusal after it says.
    let refused = refusal(gate.launch("indexer", fails()).await);
    assert_eq!(last.retry_after(), Some(seconds(20)));
    assert_eq!(refused.retry_after, seconds(20));
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_panicked_or_took_too_long_says_what_is_left_too() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .launch_timeout(seconds(5))
        .build();
    let panics = Script::launching(|_| async { panic!("scripted") });
    let error = gate.launch("panics", panics).await.unwrap_err();
    assert!(matches!(
        error,
        GateError::Launch(LaunchError::Panicked { .. })
    ));
    assert_eq!(error.retry_after(), Some(seconds(30)));
    let hangs = Script::launching(|_| std::future::pending());
    let error = gate.launch("hangs", hangs).await.unwrap_err();
    assert!(matches!(error, GateError::Timeout(_)), "{error:?}");
    assert_eq!(error.retry_after(), Some(seconds(25)));
}

#[tokio::test(start_paused = true)]
async fn a_permit_says_how_many_attempts_are_left_after_it() {
    let gate = gate_with(3);
    for left in [2, 1, 0] {
        let permit = lead(&gate, "indexer".to_owned()).await;
        assert_eq!(permit.remaining_after_begin(), left);
        permit.fail("no such program").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_why_whatever_used_the_budget_up() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .stable_after(seconds(20))
        .build();
    fail_once(&gate, "fails".to_owned()).await;
    lead(&gate, "starts well".to_owned())
        .await
        .succeed(7)
        .await
        .unwrap();
    drop(lead(&gate, "is dropped".to_owned()).await);
    sleep(Duration::from_millis(1500)).await;

    let reason = async |key: &str| {
        let refusal = refusal(gate.acquire(key).await);
        assert!(
            refusal.to_string().contains(&refusal.reason.to_string()),
            "{refusal}"
        );
        (*refusal.reason).clone()
    };
    let failed = reason("fails").await;
    assert_eq!(
        failed.to_string(),
        "the last launch failed: no such program"
    );
    let not_stable = reason("starts well").await;
    assert!(matches!(not_stable, ExhaustionReason::NotStable { .. }));
    assert_eq!(
        not_stable.to_string(),
        "the last launch succeeded, but the backend did not stay up for 20s"
    );
    let ExhaustionReason::CutShort { launch, at } = reason("is dropped").await else {
        panic!("another reason");
    };
    assert!(launch > 0 && at.is_some());
}

#[tokio::test(start_paused = true)]
async fn snapshots_read_well() {
    let gate = gate_with(3);
    fail_once(&gate, "indexer".to_owned()).await;
    assert_eq!(
        gate.snapshot("indexer").await.to_string(),
        "indexer: 1 of 3 attempts used"
    );
    let _permit = lead(&gate, "indexer".to_owned()).await;
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(
        gate.snapshot("indexer").await.to_string(),
        "indexer: 2 of 3 attempts used; launching for 1.2s, attempt 2, callers waiting: 0"
    );
    let key = BackendKey::new(BrokerInstanceKey::Shared, "cache", "1.0");
    let doing = |mut flight: FlightSnapshot, stage| {
        flight.stage = stage;
        flight.to_string()
    };
    let flight = gate.snapshot("indexer").await.flight.unwrap();
    assert_eq!(
        doing(flight.clone(), Stage::Lock),
        "waiting for the spawn lock for 1.2s, attempt 2, callers waiting: 0"
    );
    assert_eq!(
        doing(flight, Stage::Discover),
        "looking for a running backend for 1.2s, attempt 2, callers waiting: 0"
    );
    let gate: SpawnGate<BackendKey, u32> = SpawnGate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .build();
    fail_once(&gate, key.clone()).await;
    assert_eq!(
        gate.snapshot(key.clone()).await.to_string(),
        "shared/cache/1.0: 1 of 1 attempts used, retry after 30s"
    );
    // Rounded up to milliseconds, which people can read.
    tokio::time::advance(Duration::from_nanos(100_001)).await;
    assert_eq!(
        gate.snapshot(key).await.to_string(),
        "shared/cache/1.0: 1 of 1 attempts used, retry after 30s"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_printed_for_debugging_says_what_it_is() {
    let lock = InMemorySpawnLock::new();
    let builder = Gate::builder(lock.clone());
    let printed = format!("{builder:?}");
    assert!(
        printed.starts_with("SpawnGateBuilder { lock: InMemorySpawnLock { .. }, policy: "),
        "{printed}"
    );
    let gate = builder.build();
    assert_eq!(
        format!("{gate:?}"),
        "SpawnGate { lock: InMemorySpawnLock { .. }, .. }"
    );
    let permit = lead(&gate, "indexer".to_owned()).await;
    assert_eq!(
        format!("{permit:?}"),
        format!(
            "LaunchPermit {{ key: \"indexer\", attempt_number: 1, fencing_token: {}, .. }}",
            permit.fencing_token()
        )
    );
    permit.refund().await;
    let lease = lock.try_acquire_now(&"indexer".to_owned()).unwrap();
    assert_eq!(
        format!("{lease:?}"),
        format!("Lease {{ token: {} }}", lease.fencing_token())
    );
    assert_eq!(format!("{:?}", LedgerUpdate::none()), "LedgerUpdate { .. }");
    let shared = SharedError::new("no such program");
    assert_eq!(format!("{shared:?}"), "\"no such program\"");
    let launcher = launcher_fn(
        |_: String| async { Ok(None) },
        |_: Launch<String>| async { Ok(7) },
    );
    assert_eq!(format!("{launcher:?}"), "LauncherFn { .. }");
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn snapshots_and_reports_can_be_serialized_and_keys_read_back() {
    use spawn_gate::FileSpawnLock;
    use spawn_gate::admin::inspect_spawn_lock;

    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let key = BackendKey::new(BrokerInstanceKey::Shared, "cache", "1.0");
    let path = lock.path_of(&key);
    let gate: SpawnGate<BackendKey, u32> = SpawnGate::builder(lock).build();
    let _permit = lead(&gate, key.clone()).await;
    let snapshot = serde_json::to_value(gate.snapshot(key.clone()).await).unwrap();
    assert_eq!(snapshot["budget"]["attempts_used"], 1);
    assert_eq!(snapshot["flight"]["stage"], "launch");
    assert_eq!(snapshot["budget"]["key"]["service_name"], "cache");
    let read: BackendKey = serde_json::from_value(snapshot["budget"]["key"].clone()).unwrap();
    assert_eq!(read, key);

    let report = serde_json::to_value(inspect_spawn_lock(path).unwrap()).unwrap();
    assert_eq!(report["is_held"], true);
    let holder = &report["ledger"]["Found"]["holder"];
    assert_eq!(holder["pid"], std::process::id());
}

/// A gate whose budget is one attempt, over this kind of lock.
fn gate_with_one_attempt<L: SpawnLock<String>>(lock: L) -> Gate {
    Gate::builder(lock)
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .build()
}

#[tokio::test]
async fn a_launch_that_started_nothing_is_shared_and_not_charged() {
    let directory = tempfile::tempdir().unwrap();
    let in_ledger = gate_with_one_attempt(FileSpawnLock::new(directory.path()).unwrap());
    for gate in [gate_with_one_attempt(InMemorySpawnLock::new()), in_ledger] {
        for retry_helps in [true, false] {
            let short = launcher_fn(
                |_| async { Ok(None) },
                move |_| async move {
                    tokio::task::yield_now().await;
                    Err::<u32, BoxError>(NotStarted::new("no more processes", retry_helps).into())
                },
            );
            let (led, followed) =
                tokio::join!(gate.launch("indexer", short), gate.launch("indexer", short));
            for error in [led.unwrap_err(), followed.unwrap_err()] {
                assert!(matches!(
                    error,
                    GateError::Launch(LaunchError::NotStarted { .. })
                ));
                assert_eq!(error.retry_helps(), retry_helps);
                assert_eq!(error.retry_after(), None);
                assert_eq!(
                    format!("{error:#}"),
                    "the launch of indexer did not start: no more processes"
                );
            }
        }
        let permit = lead(&gate, "indexer".to_owned()).await;
        let error = permit.fail(NotStarted::new("no space", true)).await;
        assert!(matches!(
            error,
            GateError::Launch(LaunchError::NotStarted { .. })
        ));
        assert_eq!(gate.snapshot("indexer").await.budget.attempts_used, 0);
        // The lock is free, and the only attempt, too.
        lead(&gate, "indexer".to_owned()).await.refund().await;
    }
}
