//! One budget for all hosts, whatever their clocks say.

use std::time::{Duration, Instant};

use spawn_gate::budget::{SpawnBudgetConfig, WindowKind};
use spawn_gate::{Acquired, GateError, SpawnGate};
use spawn_gate_etcd::EtcdSpawnLock;
use tokio::time::sleep;

use crate::support::etcd::Etcd;
use crate::support::skewed::Skewed;
use crate::support::{Gate, KEY, led};

const WINDOW: Duration = Duration::from_secs(4);

/// The gate of a host whose clock is set wrong, with connections and knowledge of its own.
fn host(etcd: &Etcd, number: u8, seconds: i64, kind: WindowKind) -> Gate {
    let lock: EtcdSpawnLock = etcd.builder().build().unwrap();
    let boot = u128::from(number) + 1;
    SpawnGate::builder(lock)
        .clock(Skewed { seconds, boot })
        .budget(SpawnBudgetConfig::new(2, WINDOW))
        .window_kind(kind)
        .build()
}

/// Three hosts, ten minutes apart, that ask in turn as often as they can. In no window are more charged than allowed, and the
/// window ends.
async fn never_more_than_allowed(kind: WindowKind) {
    let Some(etcd) = Etcd::one() else { return };
    etcd.lock().await;
    let skews = [(0, 0), (1, 600), (2, -600)];
    let hosts = skews.map(|(number, seconds)| host(&etcd, number, seconds, kind));
    let mut charged: Vec<Instant> = Vec::new();
    for gate in hosts.iter().cycle() {
        match gate.acquire(KEY).await {
            Ok(Acquired::Led(permit)) => {
                charged.push(Instant::now());
                permit.fail("no such program").await;
            }
            Ok(Acquired::Joined(_)) => panic!("joined"),
            Err(GateError::BudgetExhausted(refused)) => {
                assert!(refused.retry_after <= WINDOW, "{refused:?}");
                // Not for as long as it says, so that a window that ends too early is seen.
                sleep(refused.retry_after.min(Duration::from_millis(50))).await;
            }
            Err(error) => panic!("{error:#}"),
        }
        if charged.len() == 6 {
            break;
        }
    }
    // The first of each pair ends its window before the next pair is charged. The permit is seen a moment after its charge.
    let moment = Duration::from_millis(500);
    for next in 2..6 {
        let first = if kind == WindowKind::Fixed {
            next / 2 * 2 - 2
        } else {
            next - 2
        };
        let apart = charged[next] - charged[first];
        assert!(
            apart + moment >= WINDOW,
            "{first} and {next} are {apart:?} apart"
        );
    }
}

#[tokio::test]
async fn clocks_ten_minutes_apart_loosen_no_fixed_window() {
    never_more_than_allowed(WindowKind::Fixed).await;
}

#[tokio::test]
async fn clocks_ten_minutes_apart_loosen_no_sliding_window() {
    never_more_than_allowed(WindowKind::Sliding).await;
}

#[tokio::test]
async fn fencing_tokens_grow_from_host_to_host() {
    let Some(etcd) = Etcd::one() else { return };
    etcd.lock().await;
    let skews = [(0, 0), (1, 600), (2, -600)];
    let hosts = skews.map(|(number, seconds)| host(&etcd, number, seconds, WindowKind::Fixed));
    let mut last = 0;
    for gate in hosts.iter().cycle().take(30) {
        let permit = led(gate).await;
        assert!(permit.fencing_token() > last);
        last = permit.fencing_token();
        permit.succeed(1).await.unwrap();
    }
}
