//! Holders that are killed, stopped, or gone.

use rustix::process::Signal;
use spawn_gate::SpawnGate;
use tempfile::TempDir;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::host::Host;
use crate::support::{Gate, led, ledger};

fn numbers(said: &str) -> (u32, u64) {
    let (attempt, token) = said.split_once(' ').unwrap();
    (attempt.parse().unwrap(), token.parse().unwrap())
}

#[tokio::test]
async fn after_a_holder_is_killed_the_next_attempt_takes_over_when_its_lease_expires() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let lock = etcd.lock().await;
    let mut holder = Host::start(&etcd, scene.path(), "holder");
    let (attempt, token) = numbers(&holder.says("permit"));
    assert_eq!(attempt, 1);
    holder.signal(Signal::KILL);

    let gate: Gate = SpawnGate::builder(lock.clone())
        .lock_timeout(PATIENCE)
        .build();
    let permit = led(&gate).await;
    assert_eq!(permit.attempt_number(), 2);
    assert!(permit.fencing_token() > token);
    permit.succeed(2).await.unwrap();
    assert_eq!(ledger(&lock).await.attempts_charged(), 0);
}

#[tokio::test]
async fn a_holder_that_is_stopped_past_its_lease_learns_of_the_loss_and_its_success_is_refused() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let lock = etcd.lock().await;
    let mut holder = Host::start(&etcd, scene.path(), "holder");
    let (_, token) = numbers(&holder.says("permit"));
    holder.signal(Signal::STOP);

    let gate: Gate = SpawnGate::builder(lock.clone())
        .lock_timeout(PATIENCE)
        .build();
    let permit = led(&gate).await;
    let next = permit.fencing_token();
    assert!(next > token);
    // Both are launching by their own account. The elder is told before it can settle.
    holder.signal(Signal::CONT);
    assert!(holder.says("lost").starts_with("true"));
    assert_eq!(holder.says("settled"), "as lock_lost");
    holder.ends();
    permit.succeed(2).await.unwrap();
    let ledger = ledger(&lock).await;
    assert_eq!(ledger.fencing_token(), next);
    assert_eq!(ledger.last_outcome().unwrap().launch, next);
}

#[tokio::test]
async fn a_tool_that_settles_and_exits_at_once_leaves_no_lock() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let lock = etcd.lock().await;
    Host::start(&etcd, scene.path(), "tool").ends();
    let locks: Vec<_> = etcd
        .keys()
        .into_iter()
        .filter(|key| key.ends_with("/lock"))
        .collect();
    assert_eq!(locks, [""; 0]);

    // So the next one needs not wait for the lease.
    let gate: Gate = SpawnGate::builder(lock).build();
    let permit = led(&gate).await;
    assert_eq!(permit.attempt_number(), 1);
}
