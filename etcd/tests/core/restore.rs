//! A cluster that goes back to an earlier state.

use spawn_gate::SpawnGate;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{Gate, KEY, led};

#[tokio::test]
async fn a_process_launches_nothing_on_a_cluster_whose_revision_went_back() {
    let Some(mut etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    for _ in 0..5 {
        led(&gate).await.succeed(1).await.unwrap();
    }
    // The same cluster by name, with older data: none.
    etcd.kill(0);
    etcd.forget(0);
    etcd.start_member(0);
    lock.check(PATIENCE).await.unwrap();
    let error = format!("{:#}", gate.acquire(KEY).await.unwrap_err());
    assert!(error.contains("restored from a backup"), "{error}");
}
