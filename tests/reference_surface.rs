//! The public surface of the reference system, running-process 4.4.0: code of its users compiles here and behaves as it did
//! there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spawn_gate::{
    BackendKey, BrokerInstanceKey, DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW,
    SpawnBeginError, SpawnBudgetConfig, SpawnBudgetSnapshot, SpawnCoordinator, SpawnLockError,
    SpawnLockFileIdentity, SpawnLockGuard, SpawnOutcome, SpawnPermit, acquire_spawn_lock,
};

const WINDOW: Duration = Duration::from_secs(10);

fn key(service: &str) -> BackendKey {
    BackendKey::new(BrokerInstanceKey::Shared, service, "1.0")
}

/// Three attempts in [`WINDOW`], and a moment to begin at.
fn three_attempts() -> (SpawnCoordinator, Instant) {
    let coordinator = SpawnCoordinator::with_config(SpawnBudgetConfig::new(3, WINDOW));
    (coordinator, Instant::now())
}

/// Makes an attempt that fails at once.
fn fail(coordinator: &mut SpawnCoordinator, service: &str, now: Instant) -> SpawnPermit {
    let permit = coordinator.try_begin(key(service), now).unwrap();
    coordinator.finish(&permit.key, SpawnOutcome::Failed, now);
    permit
}

// What compiles. None of these matches has a `..`, so a variant or field too many breaks them as it would break users.

#[test]
fn signatures_are_those_of_the_reference() {
    let _: fn() -> SpawnCoordinator = SpawnCoordinator::new;
    let _: fn() -> SpawnCoordinator = SpawnCoordinator::default;
    let _: fn(SpawnBudgetConfig) -> SpawnCoordinator = SpawnCoordinator::with_config;
    let _: fn(&mut SpawnCoordinator, BackendKey, Instant) -> Result<SpawnPermit, SpawnBeginError> =
        SpawnCoordinator::try_begin;
    let _: fn(&mut SpawnCoordinator, &BackendKey, SpawnOutcome, Instant) = SpawnCoordinator::finish;
    let _: fn(u32, Duration) -> SpawnBudgetConfig = SpawnBudgetConfig::new;
    let _: fn(BrokerInstanceKey, String, String) -> BackendKey = BackendKey::new;
    let _: fn(BrokerInstanceKey, &'static str, &'static str) -> BackendKey = BackendKey::new;
    let _: fn(&BrokerInstanceKey) -> String = BrokerInstanceKey::id;
    let _: fn(&'static Path) -> Result<SpawnLockGuard, SpawnLockError> = acquire_spawn_lock;
    let _: fn(PathBuf) -> Result<SpawnLockGuard, SpawnLockError> = acquire_spawn_lock;
    let _: fn(&SpawnLockGuard) -> &Path = SpawnLockGuard::path;
    let _: fn(&SpawnLockGuard) -> Option<SpawnLockFileIdentity> = SpawnLockGuard::file_identity;
}

#[test]
fn traits_are_those_of_the_reference() {
    fn copy<T: Copy>() {}
    fn clone_and_compare<T: Clone + PartialEq + std::fmt::Debug>() {}
    fn debug<T: std::fmt::Debug>() {}
    fn map_key<T: Clone + Eq + std::hash::Hash>() {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    fn default<T: Default>() {}

    copy::<SpawnOutcome>();
    copy::<SpawnLockFileIdentity>();
    copy::<SpawnBudgetConfig>();
    clone_and_compare::<SpawnOutcome>();
    clone_and_compare::<SpawnLockFileIdentity>();
    clone_and_compare::<SpawnBudgetConfig>();
    clone_and_compare::<SpawnPermit>();
    clone_and_compare::<SpawnBeginError>();
    clone_and_compare::<SpawnBudgetSnapshot>();
    debug::<SpawnCoordinator>();
    debug::<SpawnLockGuard>();
    map_key::<BackendKey>();
    map_key::<BrokerInstanceKey>();
    error::<SpawnBeginError>();
    error::<SpawnLockError>();
    default::<SpawnCoordinator>();
    default::<SpawnBudgetConfig>();
}

#[test]
fn the_coordinator_needs_no_type_argument_in_a_users_struct_or_variable() {
    #[derive(Debug, Default)]
    struct Broker {
        spawns: SpawnCoordinator,
    }
    let mut broker = Broker::default();
    let mut alone = SpawnCoordinator::new();
    let now = Instant::now();
    let same = broker.spawns.try_begin(key("a"), now) == alone.try_begin(key("a"), now);
    assert!(same);
}

#[test]
fn structs_are_built_and_taken_apart_by_their_fields() {
    let SpawnBudgetConfig {
        max_attempts,
        window,
    } = SpawnBudgetConfig {
        max_attempts: 2,
        window: WINDOW,
    };
    assert_eq!((max_attempts, window), (2, WINDOW));

    let SpawnPermit {
        key: permitted,
        attempt_number,
        remaining_after_begin,
    } = SpawnPermit {
        key: key("a"),
        attempt_number: 1,
        remaining_after_begin: 2,
    };
    assert_eq!(
        (permitted, attempt_number, remaining_after_begin),
        (key("a"), 1, 2)
    );

    let SpawnBudgetSnapshot {
        key: shown,
        attempts_used,
        remaining,
        in_flight,
        retry_after,
    } = SpawnBudgetSnapshot {
        key: key("a"),
        attempts_used: 1_u32,
        remaining: 2_u32,
        in_flight: true,
        retry_after: None::<Duration>,
    };
    assert_eq!(
        (shown, attempts_used, remaining, in_flight, retry_after),
        (key("a"), 1, 2, true, None)
    );

    let BackendKey {
        instance,
        service_name,
        service_version,
    } = BackendKey {
        instance: BrokerInstanceKey::Shared,
        service_name: "a".to_owned(),
        service_version: "1.0".to_owned(),
    };
    assert_eq!(
        BackendKey::new(instance, service_name, service_version),
        key("a")
    );

    let SpawnLockFileIdentity { device, file } = SpawnLockFileIdentity {
        device: 1_u64,
        file: 2_u64,
    };
    assert_eq!((device, file), (1, 2));
}

#[test]
fn closed_enums_are_matched_without_a_wildcard() {
    let outcome = |outcome| match outcome {
        SpawnOutcome::Success => "success",
        SpawnOutcome::Failed => "failed",
    };
    assert_eq!(outcome(SpawnOutcome::Success), "success");
    assert_eq!(outcome(SpawnOutcome::Failed), "failed");

    let refusal = |error| match error {
        SpawnBeginError::AlreadyInProgress => None,
        SpawnBeginError::BudgetExhausted {
            retry_after,
            remaining,
        } => Some((retry_after, remaining)),
    };
    assert_eq!(refusal(SpawnBeginError::AlreadyInProgress), None);
    let exhausted = SpawnBeginError::BudgetExhausted {
        retry_after: WINDOW,
        remaining: 0,
    };
    assert_eq!(refusal(exhausted), Some((WINDOW, 0)));

    let instance = |instance| match instance {
        BrokerInstanceKey::Shared => String::new(),
        BrokerInstanceKey::Private { service_name } => service_name,
        BrokerInstanceKey::Explicit { name } => name,
    };
    let service_name = "a".to_owned();
    assert_eq!(instance(BrokerInstanceKey::Shared), "");
    assert_eq!(instance(BrokerInstanceKey::Private { service_name }), "a");
    let name = "b".to_owned();
    assert_eq!(instance(BrokerInstanceKey::Explicit { name }), "b");
}

#[test]
fn lock_errors_are_built_and_matched_by_their_fields_and_name_their_path() {
    let path = PathBuf::from("/locks/a");
    let source = || io::Error::other("says the system");
    let identity = Some(SpawnLockFileIdentity { device: 1, file: 2 });
    let errors = [
        SpawnLockError::Open {
            path: path.clone(),
            source: source(),
        },
        SpawnLockError::AlreadyLocked { path: path.clone() },
        SpawnLockError::Lock {
            path: path.clone(),
            source: source(),
        },
        SpawnLockError::DeletedOrRecreated {
            path: path.clone(),
            opened_identity: identity,
            current_identity: None,
        },
        SpawnLockError::Identity {
            path: path.clone(),
            source: source(),
        },
    ];
    for error in errors {
        assert!(error.to_string().contains("/locks/a"), "{error}");
        let named = match error {
            SpawnLockError::Open { path, source }
            | SpawnLockError::Lock { path, source }
            | SpawnLockError::Identity { path, source } => {
                assert_eq!(source.to_string(), "says the system");
                path
            }
            SpawnLockError::AlreadyLocked { path } => path,
            SpawnLockError::DeletedOrRecreated {
                path,
                opened_identity,
                current_identity,
            } => {
                assert_eq!((opened_identity, current_identity), (identity, None));
                path
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(named, path);
    }
}

// What is said.

#[test]
fn the_default_budget_is_three_attempts_in_thirty_seconds() {
    assert_eq!(DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, 3_u32);
    assert_eq!(DEFAULT_SPAWN_BUDGET_WINDOW, Duration::from_secs(30));
    assert_eq!(
        SpawnBudgetConfig::default(),
        SpawnBudgetConfig::new(3, Duration::from_secs(30))
    );

    let mut coordinator = SpawnCoordinator::new();
    let now = Instant::now();
    for _ in 0..3 {
        fail(&mut coordinator, "a", now);
    }
    assert_eq!(
        coordinator.try_begin(key("a"), now),
        Err(SpawnBeginError::BudgetExhausted {
            retry_after: Duration::from_secs(30),
            remaining: 0
        })
    );
}

#[test]
fn a_budget_of_nothing_becomes_the_least_there_is() {
    let least = SpawnBudgetConfig::new(0, Duration::ZERO);
    assert_eq!(
        (least.max_attempts, least.window),
        (1, Duration::from_millis(1))
    );
}

#[test]
fn instance_ids_are_those_of_the_reference() {
    let service_name = "a".to_owned();
    let name = "b".to_owned();
    assert_eq!(BrokerInstanceKey::Shared.id(), "shared");
    assert_eq!(
        BrokerInstanceKey::Private { service_name }.id(),
        "private:a"
    );
    assert_eq!(BrokerInstanceKey::Explicit { name }.id(), "explicit:b");
}

// What is done.

#[test]
fn attempts_are_numbered_and_counted_down_for_each_key_by_itself() {
    let (mut coordinator, now) = three_attempts();
    let mut attempt = |service| {
        let permit = fail(&mut coordinator, service, now);
        (permit.attempt_number, permit.remaining_after_begin)
    };
    assert_eq!(attempt("a"), (1, 2));
    assert_eq!(attempt("a"), (2, 1));
    assert_eq!(attempt("b"), (1, 2));
    assert_eq!(attempt("a"), (3, 0));
    coordinator.try_begin(key("a"), now).unwrap_err();
    coordinator.try_begin(key("b"), now).unwrap();
}

#[test]
fn each_part_of_a_key_tells_backends_apart() {
    let (mut coordinator, now) = three_attempts();
    let private = BrokerInstanceKey::Private {
        service_name: "a".to_owned(),
    };
    for key in [
        key("a"),
        BackendKey::new(private, "a", "1.0"),
        BackendKey::new(BrokerInstanceKey::Shared, "b", "1.0"),
        BackendKey::new(BrokerInstanceKey::Shared, "a", "2.0"),
    ] {
        assert_eq!(coordinator.try_begin(key, now).unwrap().attempt_number, 1);
    }
}

#[test]
fn a_key_in_flight_admits_no_second_attempt_and_others_do_not_care() {
    let (mut coordinator, now) = three_attempts();
    coordinator.try_begin(key("a"), now).unwrap();
    assert_eq!(
        coordinator.try_begin(key("a"), now),
        Err(SpawnBeginError::AlreadyInProgress)
    );
    assert_eq!(coordinator.snapshot(key("a"), now).attempts_used, 1);
    coordinator.try_begin(key("b"), now).unwrap();
    coordinator.finish(&key("a"), SpawnOutcome::Failed, now);
    coordinator.try_begin(key("a"), now).unwrap();
}

#[test]
fn an_exhausted_key_is_told_the_rest_of_its_window() {
    let (mut coordinator, now) = three_attempts();
    for second in 0..3 {
        fail(&mut coordinator, "a", now + Duration::from_secs(second));
    }
    for second in [3, 9] {
        let now = now + Duration::from_secs(second);
        let retry_after = WINDOW - Duration::from_secs(second);
        assert_eq!(
            coordinator.try_begin(key("a"), now),
            Err(SpawnBeginError::BudgetExhausted {
                retry_after,
                remaining: 0
            })
        );
        let snapshot = coordinator.snapshot(key("a"), now);
        assert_eq!(
            snapshot,
            SpawnBudgetSnapshot {
                key: key("a"),
                attempts_used: 3,
                remaining: 0,
                in_flight: false,
                retry_after: Some(retry_after),
            }
        );
    }
}

#[test]
fn the_end_of_the_window_gives_all_attempts_back() {
    let (mut coordinator, now) = three_attempts();
    for _ in 0..3 {
        fail(&mut coordinator, "a", now);
    }
    let last = now + WINDOW - Duration::from_nanos(1);
    coordinator.try_begin(key("a"), last).unwrap_err();
    let permit = fail(&mut coordinator, "a", now + WINDOW);
    assert_eq!(
        (permit.attempt_number, permit.remaining_after_begin),
        (1, 2)
    );
}

#[test]
fn a_success_gives_all_attempts_back() {
    let (mut coordinator, now) = three_attempts();
    fail(&mut coordinator, "a", now);
    fail(&mut coordinator, "a", now);
    coordinator.try_begin(key("a"), now).unwrap();
    coordinator.finish(&key("a"), SpawnOutcome::Success, now);
    assert_eq!(coordinator.snapshot(key("a"), now).attempts_used, 0);
    let permit = coordinator.try_begin(key("a"), now).unwrap();
    assert_eq!(
        (permit.attempt_number, permit.remaining_after_begin),
        (1, 2)
    );
}

#[test]
fn a_snapshot_tells_what_is_used_and_whether_an_attempt_is_in_flight() {
    let (mut coordinator, now) = three_attempts();
    let fresh = SpawnBudgetSnapshot {
        key: key("a"),
        attempts_used: 0,
        remaining: 3,
        in_flight: false,
        retry_after: None,
    };
    assert_eq!(coordinator.snapshot(key("a"), now), fresh);
    coordinator.try_begin(key("a"), now).unwrap();
    let in_flight = SpawnBudgetSnapshot {
        attempts_used: 1,
        remaining: 2,
        in_flight: true,
        ..fresh.clone()
    };
    assert_eq!(coordinator.snapshot(key("a"), now), in_flight);
    coordinator.finish(&key("a"), SpawnOutcome::Success, now);
    assert_eq!(coordinator.snapshot(key("a"), now), fresh);
}

#[test]
fn a_finish_with_nothing_in_flight_changes_nothing() {
    let (mut coordinator, now) = three_attempts();
    coordinator.finish(&key("a"), SpawnOutcome::Failed, now);
    assert_eq!(coordinator.snapshot(key("a"), now).attempts_used, 0);
    fail(&mut coordinator, "a", now);
    for outcome in [SpawnOutcome::Failed, SpawnOutcome::Success] {
        coordinator.finish(&key("a"), outcome, now);
        assert_eq!(coordinator.snapshot(key("a"), now).attempts_used, 1);
    }
}

// Where this system does better for callers who know no more than `finish(&key, ..)`, and what it adds for the others.

#[test]
fn a_launch_longer_than_its_window_keeps_others_out_until_its_finish() {
    let (mut coordinator, now) = three_attempts();
    fail(&mut coordinator, "a", now);
    coordinator.try_begin(key("a"), now).unwrap();
    let later = now + 5 * WINDOW;
    assert_eq!(
        coordinator.try_begin(key("a"), later),
        Err(SpawnBeginError::AlreadyInProgress)
    );
    assert!(coordinator.snapshot(key("a"), later).in_flight);
    coordinator.finish(&key("a"), SpawnOutcome::Failed, later);
    let permit = coordinator.try_begin(key("a"), later).unwrap();
    assert_eq!(
        (permit.attempt_number, permit.remaining_after_begin),
        (1, 2)
    );
}

#[test]
fn a_finish_of_an_attempt_that_is_over_changes_nothing() {
    let (mut coordinator, now) = three_attempts();
    coordinator.try_begin(key("a"), now).unwrap();
    let elder = coordinator.attempt_in_flight(&key("a")).unwrap();
    coordinator.finish(&key("a"), SpawnOutcome::Failed, now);
    coordinator.try_begin(key("a"), now).unwrap();
    let younger = coordinator.attempt_in_flight(&key("a")).unwrap();
    assert_ne!(elder, younger);

    let before = coordinator.snapshot(key("a"), now);
    for outcome in [SpawnOutcome::Success, SpawnOutcome::Failed] {
        assert!(!coordinator.finish_attempt(&key("a"), elder, outcome, now));
    }
    assert!(!coordinator.refund(&key("a"), elder, now));
    assert!(!coordinator.refund(&key("b"), younger, now));
    assert_eq!(coordinator.snapshot(key("a"), now), before);

    assert!(coordinator.finish_attempt(&key("a"), younger, SpawnOutcome::Success, now));
    assert_eq!(coordinator.attempt_in_flight(&key("a")), None);
    assert_eq!(coordinator.snapshot(key("a"), now).attempts_used, 0);
}

#[test]
fn a_refund_takes_back_the_one_attempt_that_is_in_flight() {
    let (mut coordinator, now) = three_attempts();
    fail(&mut coordinator, "a", now);
    coordinator.try_begin(key("a"), now).unwrap();
    let attempt = coordinator.attempt_in_flight(&key("a")).unwrap();
    assert!(coordinator.refund(&key("a"), attempt, now));
    assert!(!coordinator.refund(&key("a"), attempt, now));
    let snapshot = coordinator.snapshot(key("a"), now);
    assert_eq!((snapshot.attempts_used, snapshot.in_flight), (1, false));
    let permit = coordinator.try_begin(key("a"), now).unwrap();
    assert_eq!(
        (permit.attempt_number, permit.remaining_after_begin),
        (2, 1)
    );
}

#[test]
fn a_reset_forgets_one_key_and_leaves_what_is_in_flight() {
    let (mut coordinator, now) = three_attempts();
    for service in ["a", "b"] {
        for _ in 0..3 {
            fail(&mut coordinator, service, now);
        }
    }
    coordinator.reset(&key("a"));
    coordinator.try_begin(key("b"), now).unwrap_err();
    coordinator.try_begin(key("a"), now).unwrap();
    coordinator.reset(&key("a"));
    assert_eq!(
        coordinator.try_begin(key("a"), now),
        Err(SpawnBeginError::AlreadyInProgress)
    );
}

#[test]
fn all_keys_that_matter_are_listed_and_no_others() {
    let (mut coordinator, now) = three_attempts();
    fail(&mut coordinator, "a", now);
    coordinator.try_begin(key("b"), now).unwrap();
    coordinator.try_begin(key("c"), now).unwrap();
    coordinator.finish(&key("c"), SpawnOutcome::Success, now);
    let listed = |coordinator: &SpawnCoordinator, now| {
        let mut names: Vec<_> = coordinator
            .snapshots(now)
            .into_iter()
            .map(|snapshot| (snapshot.key.service_name, snapshot.in_flight))
            .collect();
        names.sort();
        names
    };
    let (a, b) = (("a".to_owned(), false), ("b".to_owned(), true));
    assert_eq!(listed(&coordinator, now), [a, b.clone()]);
    assert_eq!(listed(&coordinator, now + WINDOW), [b]);
}

#[test]
fn a_spawn_lock_is_taken_once_named_and_released_with_its_guard() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.lock");
    let guard = acquire_spawn_lock(&path).unwrap();
    assert_eq!(guard.path(), path);
    assert!(guard.file_identity().is_some());
    match acquire_spawn_lock(&path) {
        Err(SpawnLockError::AlreadyLocked { path: named }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    drop(guard);
    assert!(acquire_spawn_lock(&path).is_ok());
}
