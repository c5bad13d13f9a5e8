//! Acquires that are cancelled at any moment.

use std::time::{Duration, Instant};

use spawn_gate::admin::{Ledger, LedgerReading};
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLock, TryAcquire};
use tokio::time::{sleep, timeout};

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{KEY, ledger};

/// An update that writes a record.
fn request() -> LockRequest {
    let update = LedgerUpdate::new(|reading, token| {
        let LedgerReading::Found(_) = reading else {
            return None;
        };
        let ledger: Ledger = format!("launch {token}\ncharged {token}\n")
            .parse()
            .unwrap();
        Some(ledger)
    });
    LockRequest::new(update, tokio::time::Instant::now() + PATIENCE)
}

/// How long an acquire takes here, for the moments to cancel at.
async fn usual(lock: &impl SpawnLock<String>) -> Duration {
    let began = Instant::now();
    let tried = lock
        .try_acquire(&"other".to_owned(), request())
        .await
        .unwrap();
    assert!(matches!(tried, TryAcquire::Acquired(_)));
    began.elapsed()
}

#[tokio::test]
async fn acquires_that_are_cancelled_at_any_moment_leave_no_key() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let usual = usual(&lock).await;
    let mut cancelled = 0;
    for moment in 0..300 {
        let key = format!("key {moment}");
        let trying = lock.try_acquire(&key, request());
        if timeout(usual * moment / 200, trying).await.is_err() {
            cancelled += 1;
        }
    }
    assert!(cancelled >= 50, "only {cancelled} were cancelled in time");

    // The others have left a record, and one more is of the first. No lock is left, once all is taken back.
    let records = 300 - cancelled + 1;
    let until = Instant::now() + PATIENCE;
    loop {
        let keys = etcd.keys();
        let locks = keys.iter().filter(|key| key.ends_with("/lock")).count();
        if (locks, keys.len()) == (0, records) {
            break;
        }
        assert!(
            Instant::now() < until,
            "{cancelled} cancelled, left: {keys:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_cancelled_acquire_leaves_the_record_before_it() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let key = KEY.to_owned();
    let usual = usual(&lock).await;
    let mut cancelled = 0;
    for moment in 0..100 {
        let trying = lock.try_acquire(&key, request());
        let before = ledger(&lock).await.to_string();
        match timeout(usual * moment / 70, trying).await {
            Ok(Ok(TryAcquire::Acquired(lease))) => drop(lease),
            // The one before is yet to release.
            Ok(Ok(TryAcquire::Held { .. })) => {}
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => {
                cancelled += 1;
                let until = Instant::now() + PATIENCE;
                while ledger(&lock).await.to_string() != before || has_lock(&etcd) {
                    assert!(Instant::now() < until, "{before}");
                }
            }
        }
    }
    assert!(cancelled >= 20, "only {cancelled} were cancelled in time");
}

fn has_lock(etcd: &Etcd) -> bool {
    etcd.keys().iter().any(|key| key.ends_with("/lock"))
}
