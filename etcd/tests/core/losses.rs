//! When a lock is lost, and when it is not.

use rustix::process::Signal;
use spawn_gate::SpawnGate;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::host::Host;
use crate::support::{Gate, led, ledger};

#[tokio::test]
async fn a_success_whose_lock_was_deleted_meanwhile_is_not_reported() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate = || -> Gate { SpawnGate::builder(lock.clone()).build() };
    let elder = led(&gate()).await;
    let keys = etcd.keys();
    let key = keys.iter().find(|key| key.ends_with("/lock")).unwrap();
    etcd.ctl(0, &["del", key]);
    let next = led(&gate()).await;
    let error = elder.succeed(1).await.unwrap_err();
    assert_eq!(error.error_type(), "lock_lost");
    next.succeed(2).await.unwrap();
}

#[tokio::test]
async fn a_holder_whose_lock_is_deleted_learns_of_it_with_the_next_renewal() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock).build();
    let permit = led(&gate).await;
    let keys = etcd.keys();
    let key = keys.iter().find(|key| key.ends_with("/lock")).unwrap();
    etcd.ctl(0, &["del", key]);
    let lost = timeout(PATIENCE, permit.lost()).await.unwrap();
    assert!(lost.is_lost(), "{lost}");
}

#[tokio::test]
async fn a_write_for_another_record_than_the_one_that_is_there_changes_nothing() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    let permit = led(&gate).await;
    let keys = etcd.keys();
    let key = keys.iter().find(|key| key.ends_with("/record")).unwrap();
    let charged = etcd.ctl(0, &["get", "--print-value-only", key]);
    // The write that follows is then one that was sent before this one and arrives after it.
    let newer = format!(
        "{}count-lost\n",
        charged.trim_end_matches('\n').to_owned() + "\n"
    );
    etcd.ctl(0, &["put", key, &newer]);
    // The launch has succeeded, since the lock is still held. It is only not in the record.
    permit.succeed(1).await.unwrap();
    let left = etcd.ctl(0, &["get", "--print-value-only", key]);
    assert_eq!(left.trim_end(), newer.trim_end());
}

/// Current-thread on purpose: while this waits for the other host, nothing of this runtime runs.
#[tokio::test(flavor = "current_thread")]
async fn a_holder_whose_runtime_is_blocked_for_longer_than_its_lease_keeps_the_lock() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    let permit = led(&gate).await;
    // It asks for three times as long as the lease holds.
    let mut other = Host::start(&etcd, scene.path(), "asker 9");
    assert_eq!(other.says("asked"), "lock_timeout");
    permit.succeed(1).await.unwrap();
    assert!(
        ledger(&lock)
            .await
            .last_outcome()
            .unwrap()
            .failure
            .is_none()
    );
}

#[tokio::test]
async fn when_etcd_hangs_the_holder_learns_of_the_loss_and_no_call_hangs() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    let permit = led(&gate).await;
    etcd.signal(0, Signal::STOP);
    let lost = timeout(PATIENCE, permit.lost()).await.unwrap();
    assert!(lost.is_lost(), "{lost}");
    let settled = timeout(PATIENCE, permit.succeed(1)).await.unwrap();
    assert_eq!(settled.unwrap_err().error_type(), "lock_lost");

    let limit = std::time::Duration::from_secs(2);
    let other: Gate = SpawnGate::builder(lock).lock_timeout(limit).build();
    let asked = timeout(PATIENCE, other.acquire("other")).await.unwrap();
    let error = format!("{:#}", asked.unwrap_err());
    assert!(error.contains("did not answer"), "{error}");
    etcd.signal(0, Signal::CONT);
}
