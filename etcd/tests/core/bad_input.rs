//! What is wrong is told in typed errors, and nothing is left behind.

use std::error::Error;
use std::time::Duration;

use spawn_gate::lock::{LockName, SpawnLock, SpawnLockError};
use spawn_gate::{GateError, SpawnGate};
use spawn_gate_etcd::{EtcdError, EtcdSpawnLock, Tls};

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{Gate, KEY, led};

/// The error of etcd in an error of a gate.
fn etcd_error(error: &GateError) -> &EtcdError {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return found;
        }
        next = error.source();
    }
    panic!("{error:#}");
}

async fn refused(lock: &EtcdSpawnLock) -> GateError {
    let limit = Duration::from_secs(2);
    let gate: Gate = SpawnGate::builder(lock.clone()).lock_timeout(limit).build();
    gate.acquire(KEY).await.unwrap_err()
}

fn entry(entry: &str) -> String {
    let name = LockName::new(&KEY);
    format!(
        "spawn-gate/{}/{entry}",
        name.as_str().trim_end_matches(".lock")
    )
}

#[test]
fn endpoints_that_are_no_urls_are_refused_when_the_lock_is_built() {
    for endpoint in [
        "",
        "localhost",
        "localhost:2379",
        "http://",
        "http://localhost",
        "http://:2379",
        "ftp://localhost:21",
        "http://a b:2379",
        "http://localhost:2379/v3",
        "http://localhost:99999",
    ] {
        let error = EtcdSpawnLock::builder(["http://localhost:2379", endpoint])
            .build()
            .unwrap_err();
        assert!(
            matches!(&error, EtcdError::InvalidEndpoint { endpoint: told, .. } if told == endpoint),
            "{error}"
        );
        assert!(!error.retry_helps());
    }
    for endpoint in [
        "http://root:secret@localhost:2379",
        "root:sec//ret@localhost",
        "a:secret@://h",
    ] {
        let builder = EtcdSpawnLock::builder([endpoint]);
        let told = format!(
            "{builder:?} {0} {0:?}",
            builder.clone().build().unwrap_err()
        );
        assert!(told.contains("…@") && !told.contains("sec"), "{told}");
    }
    let none = EtcdSpawnLock::builder([""; 0]).build().unwrap_err();
    assert!(matches!(none, EtcdError::NoEndpoint));
    let mixed = EtcdSpawnLock::builder(["http://localhost:2379"])
        .tls(Tls::new())
        .build()
        .unwrap_err();
    assert!(
        matches!(mixed, EtcdError::InvalidEndpoint { .. }),
        "{mixed}"
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused_when_the_lock_is_built() {
    let builder = || EtcdSpawnLock::builder(["http://localhost:2379"]);
    let millis = Duration::from_millis;
    for (builder, setting) in [
        (builder().prefix(""), "prefix"),
        (builder().prefix("a/"), "prefix"),
        (builder().expires_in(millis(1500)), "expires_in"),
        (builder().expires_in(Duration::ZERO), "expires_in"),
        (builder().expires_in(Duration::MAX), "expires_in"),
        (builder().kept_for(millis(9000)), "kept_for"),
        (builder().kept_for(Duration::MAX), "kept_for"),
        (builder().call_timeout(Duration::ZERO), "call_timeout"),
        (builder().call_timeout(millis(10_001)), "call_timeout"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(
            matches!(&error, EtcdError::InvalidSetting { setting: told, .. } if *told == setting),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_limit_without_end_is_one() {
    let Some(etcd) = Etcd::one() else { return };
    etcd.lock().await.check(Duration::MAX).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_cluster_is_told_by_its_endpoint_and_a_retry_helps() {
    // Nobody listens on this port.
    let lock = EtcdSpawnLock::builder(["http://127.0.0.1:1"])
        .build()
        .unwrap();
    let error = lock.check(Duration::from_millis(300)).await.unwrap_err();
    assert!(
        matches!(&error, EtcdError::Unreachable { endpoint, .. } if endpoint == "http://127.0.0.1:1"),
        "{error}"
    );
    assert!(error.retry_helps());
    let error = refused(&lock).await;
    assert!(
        matches!(etcd_error(&error), EtcdError::Unreachable { .. }),
        "{error:#}"
    );
}

#[tokio::test]
async fn keys_of_any_bytes_are_launched_once_each() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    let keys = [
        "",
        "/",
        "//",
        "../lock",
        "a\0b",
        "ü\n\u{202e}",
        "lock",
        &"x".repeat(100_000),
    ];
    let mut permits = Vec::new();
    for key in keys {
        match gate.acquire(key).await.unwrap() {
            spawn_gate::Acquired::Led(permit) => permits.push(permit),
            spawn_gate::Acquired::Joined(_) => panic!("{key:?}"),
        }
    }
    assert_eq!(lock.inspect().await.unwrap().keys.len(), keys.len());
    for permit in permits {
        permit.succeed(1).await.unwrap();
    }
}

#[tokio::test]
async fn what_other_programs_wrote_is_left_alone() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    for foreign in ["record", "lock"].map(entry) {
        etcd.ctl(0, &["put", &foreign, "hello"]);
        let error = refused(&lock).await;
        assert!(
            matches!(etcd_error(&error), EtcdError::Foreign { key } if *key == foreign),
            "{error:#}"
        );
        assert!(matches!(&error, GateError::Lock(_)));
        while etcd.keys().len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            etcd.ctl(0, &["get", &foreign, "--print-value-only"]),
            "hello\n"
        );
        etcd.ctl(0, &["del", &foreign]);
    }
    // Beside the keys of the gate they disturb nobody.
    for other in [
        "spawn-gate/config",
        "spawn-gate/a/b/c",
        "spawn-gate",
        "spawn-gates/x",
    ] {
        etcd.ctl(0, &["put", other, "hello"]);
    }
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    led(&gate).await.succeed(1).await.unwrap();
    let inspection = lock.inspect().await.unwrap();
    assert_eq!(
        inspection.foreign,
        ["spawn-gate/a/b/c", "spawn-gate/config"]
    );
    assert_eq!(inspection.keys.len(), 1);
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_left_alone_and_a_broken_one_counts_as_used_up() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    etcd.ctl(0, &["put", &entry("record"), "spawn-gate-etcd 7\n"]);
    let error = refused(&lock).await;
    assert!(
        matches!(
            etcd_error(&error),
            EtcdError::Version {
                found: 7,
                supported: 1,
                ..
            }
        ),
        "{error:#}"
    );
    etcd.ctl(
        0,
        &[
            "put",
            &entry("record"),
            "spawn-gate-etcd 1\nposition 5\nlaunch many\n",
        ],
    );
    let error = refused(&lock).await;
    assert_eq!(error.error_type(), "budget_exhausted", "{error:#}");
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_told_apart() {
    let (Some(one), Some(mut other)) = (Etcd::one(), Etcd::one()) else {
        return;
    };
    other.lock().await;
    let endpoints = [one.endpoints(), other.endpoints()].concat();
    let lock = EtcdSpawnLock::builder(endpoints).build().unwrap();
    lock.check(PATIENCE).await.unwrap();
    other.kill(0);
    let mut one = one;
    one.kill(0);
    other.start_member(0);
    let error = lock.check(Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(error, EtcdError::WrongCluster { .. }), "{error}");
    assert!(!error.retry_helps());
}

#[tokio::test]
async fn a_full_database_is_told_at_once() {
    let Some(etcd) = Etcd::start(1, &["--quota-backend-bytes=200000"]) else {
        return;
    };
    let lock = etcd.lock().await;
    let filler = "x".repeat(100_000);
    // Until etcd raises its alarm.
    while !etcd.ctl(0, &["alarm", "list"]).contains("NOSPACE") {
        let _ = etcd.try_ctl(0, &["put", "filler", &filler]);
    }
    let gate: Gate = SpawnGate::builder(lock.clone())
        .lock_timeout(PATIENCE)
        .build();
    let error = gate.acquire(KEY).await.unwrap_err();
    assert!(
        matches!(etcd_error(&error), EtcdError::QuotaExceeded { .. }),
        "{error:#}"
    );
    let lock: &dyn SpawnLock<String> = &lock;
    let request = spawn_gate::lock::LockRequest::new(
        spawn_gate::lock::LedgerUpdate::none(),
        tokio::time::Instant::now() + PATIENCE,
    );
    let error = lock
        .try_acquire(&KEY.to_owned(), request)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            SpawnLockError::Service {
                retry_helps: false,
                ..
            }
        ),
        "{error}"
    );
}
