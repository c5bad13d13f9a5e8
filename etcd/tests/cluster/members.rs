//! Members that die or hang, one or so many that there is no quorum.

use std::time::Duration;

use rustix::process::Signal;
use spawn_gate::SpawnGate;
use spawn_gate_etcd::EtcdSpawnLock;
use tokio::time::timeout;

use crate::support::etcd::{Etcd, PATIENCE, builder};
use crate::support::{Gate, KEY, led, ledger};

fn gate(lock: &EtcdSpawnLock) -> Gate {
    SpawnGate::builder(lock.clone())
        .lock_timeout(PATIENCE)
        .build()
}

/// A lock that asks this member first.
async fn lock_at(etcd: &Etcd, first: usize) -> EtcdSpawnLock {
    let mut endpoints = etcd.endpoints();
    endpoints.rotate_left(first);
    let lock = builder(endpoints).build().unwrap();
    lock.check(PATIENCE).await.unwrap();
    lock
}

/// A host that waits at a member which this harms goes on when the holder settles.
async fn a_waiter_goes_on_after(harm: impl Fn(&mut Etcd)) {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    let of_holder = lock_at(&etcd, 1).await;
    let of_waiter = lock_at(&etcd, 0).await;
    let permit = led(&gate(&of_holder)).await;
    let waiting = tokio::spawn({
        let gate = gate(&of_waiter);
        async move { led(&gate).await }
    });
    // Its first try has found the lock held, which leaves a watch.
    while !waits(&etcd) {
        tokio::task::yield_now().await;
    }
    harm(&mut etcd);
    timeout(PATIENCE, permit.succeed(1)).await.unwrap().unwrap();
    let next = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    timeout(PATIENCE, next.succeed(2)).await.unwrap().unwrap();
}

/// The waiter has two leases for its next try besides the holder's two, and a line tells their number: so it watches.
fn waits(etcd: &Etcd) -> bool {
    etcd.ctl(1, &["lease", "list"]).lines().count() >= 5
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn a_waiter_goes_on_when_its_member_is_killed() {
    a_waiter_goes_on_after(|etcd| etcd.kill(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn a_waiter_goes_on_when_its_member_hangs() {
    a_waiter_goes_on_after(|etcd| etcd.signal(0, Signal::STOP)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn calls_are_answered_while_one_member_hangs() {
    let Some(etcd) = Etcd::start(3, &[]) else {
        return;
    };
    for number in 0..3 {
        let lock = lock_at(&etcd, number).await;
        etcd.signal(number, Signal::STOP);
        for _ in 0..3 {
            let permit = timeout(PATIENCE, led(&gate(&lock))).await.unwrap();
            timeout(PATIENCE, permit.succeed(1)).await.unwrap().unwrap();
        }
        etcd.signal(number, Signal::CONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn without_quorum_at_the_charge_nothing_is_charged_and_the_error_says_so() {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    let lock = lock_at(&etcd, 0).await;
    etcd.kill(1);
    etcd.kill(2);
    let limit = Duration::from_secs(3);
    let short: Gate = SpawnGate::builder(lock.clone()).lock_timeout(limit).build();
    let asked = timeout(PATIENCE, short.acquire(KEY)).await.unwrap();
    let error = asked.unwrap_err();
    assert_eq!(error.error_type(), "lock_failed", "{error:#}");
    assert!(format!("{error:#}").contains("has no quorum"), "{error:#}");
    etcd.start_member(1);
    etcd.start_member(2);
    lock.check(PATIENCE).await.unwrap();
    let permit = timeout(PATIENCE, led(&gate(&lock))).await.unwrap();
    assert_eq!(permit.attempt_number(), 1);
    permit.succeed(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn without_quorum_at_the_end_the_flight_ends_as_lock_lost_and_stays_charged() {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    // A leader would keep the write in its log and commit it once there is a majority again.
    let leader = etcd.leader();
    let (survivor, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let lock = lock_at(&etcd, survivor).await;
    let permit = led(&gate(&lock)).await;
    etcd.kill(leader);
    etcd.kill(other);
    let settled = timeout(PATIENCE, permit.succeed(1)).await.unwrap();
    assert_eq!(settled.unwrap_err().error_type(), "lock_lost");
    etcd.start_member(leader);
    etcd.start_member(other);
    lock.check(PATIENCE).await.unwrap();
    let permit = timeout(PATIENCE, led(&gate(&lock))).await.unwrap();
    assert_eq!(permit.attempt_number(), 2);
    permit.succeed(2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn an_election_during_a_launch_loses_no_lock_and_loosens_no_budget() {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    let lock = etcd
        .builder()
        .expires_in(Duration::from_secs(10))
        .build()
        .unwrap();
    lock.check(PATIENCE).await.unwrap();
    let permit = led(&gate(&lock)).await;
    let leader = etcd.leader();
    etcd.kill(leader);
    permit.succeed(1).await.unwrap();
    for attempt in 1..=3 {
        let permit = led(&gate(&lock)).await;
        assert_eq!(permit.attempt_number(), attempt);
        permit.fail("no such program").await;
    }
    etcd.start_member(leader);
    lock.check(PATIENCE).await.unwrap();
    etcd.kill(etcd.leader());
    // Another process, which knows the records by etcd alone.
    let other = etcd.builder().build().unwrap();
    other.check(PATIENCE).await.unwrap();
    let refused = gate(&other).acquire(KEY).await.unwrap_err();
    assert_eq!(refused.error_type(), "budget_exhausted", "{refused:#}");
    assert_eq!(ledger(&other).await.attempts_charged(), 3);
}
