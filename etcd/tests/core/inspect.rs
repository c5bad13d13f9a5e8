//! What operators read.

use std::time::Instant;

use spawn_gate::SpawnGate;
use spawn_gate::admin::{BackendEnd, LedgerReading};
use spawn_gate::lock::SpawnLock;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{Gate, KEY, led, ledger};

#[tokio::test]
async fn an_inspection_shows_holder_budget_and_last_outcome() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    led(&gate).await.fail("no such program").await;
    let permit = led(&gate).await;

    let inspection = lock.inspect().await.unwrap();
    let [report] = &inspection.keys[..] else {
        panic!("{inspection:?}")
    };
    assert!(report.name.starts_with("indexer-"), "{}", report.name);
    assert_eq!(report.held_by, Some(permit.fencing_token()));
    assert_eq!(report.pid, Some(std::process::id()));
    let LedgerReading::Found(ledger) = &report.ledger else {
        panic!("{report:?}")
    };
    assert_eq!(ledger.attempts_charged(), 2);
    let holder = ledger.holder().unwrap();
    assert_eq!(holder.pid, std::process::id());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(host.starts_with(holder.host.as_ref().unwrap().name.trim_end_matches('…')));
    let failure = ledger.last_outcome().unwrap().failure.as_deref().unwrap();
    assert!(failure.contains("no such program"));

    permit.succeed(1).await.unwrap();
    let inspection = lock.inspect().await.unwrap();
    assert_eq!(
        (inspection.keys[0].held_by, inspection.keys[0].pid),
        (None, None)
    );
}

#[tokio::test]
async fn the_orderly_end_of_a_backend_that_another_host_launched_takes_its_charge_back() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let stable = std::time::Duration::from_secs(3600);
    let gate = || -> Gate {
        SpawnGate::builder(lock.clone())
            .stable_after(stable)
            .build()
    };
    let permit = led(&gate()).await;
    let launch = permit.fencing_token();
    permit.succeed(1).await.unwrap();
    assert_eq!(ledger(&lock).await.attempts_charged(), 1);
    gate()
        .backend_ended(KEY, BackendEnd::orderly(launch))
        .await
        .unwrap();
    assert_eq!(ledger(&lock).await.attempts_charged(), 0);
    assert_eq!(
        ledger(&lock).await.backend_end(),
        Some(&BackendEnd::orderly(launch))
    );
}

#[tokio::test]
async fn an_older_report_of_an_end_replaces_no_newer_one_and_leaves_no_lease() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let key = KEY.to_owned();
    for end in [2, 3, 1, 3].map(BackendEnd::orderly) {
        lock.report_backend_end(&key, &end).await.unwrap();
    }
    let keys = etcd.keys();
    let [ended] = &keys[..] else {
        panic!("{keys:?}")
    };
    let text = etcd.ctl(0, &["get", "--print-value-only", ended]);
    assert!(text.contains("3 orderly"), "{text}");
    let until = Instant::now() + PATIENCE;
    while etcd.leases() > 1 {
        assert!(Instant::now() < until, "left: {} leases", etcd.leases());
    }
}
