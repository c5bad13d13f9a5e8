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

/// Moments to cancel at: each a little later than the one before, and from the begin again once an acquire is done by then.
struct Moments(Duration);

impl Moments {
    fn next(&mut self) -> Duration {
        self.0 += Duration::from_micros(60);
        self.0
    }

    fn again(&mut self) {
        self.0 = Duration::ZERO;
    }
}

/// Acquires that are cancelled in each test.
const CANCELLED: usize = 100;

#[tokio::test]
async fn acquires_that_are_cancelled_at_any_moment_leave_no_key() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let (mut cancelled, mut records) = (0, 0);
    let mut moments = Moments(Duration::ZERO);
    while cancelled < CANCELLED {
        let key = format!("key {cancelled} {records}");
        let trying = lock.try_acquire(&key, request());
        if timeout(moments.next(), trying).await.is_err() {
            cancelled += 1;
        } else {
            records += 1;
            moments.again();
        }
    }

    // The others have left a record with its lease. No lock and no other lease is left, once all is taken back.
    let until = Instant::now() + PATIENCE;
    loop {
        let keys = etcd.keys();
        let locks = keys.iter().filter(|key| key.ends_with("/lock")).count();
        let leases = etcd.leases();
        if (locks, keys.len(), leases) == (0, records, records) {
            break;
        }
        assert!(
            Instant::now() < until,
            "{cancelled} cancelled, left: {leases} leases, {keys:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_cancelled_acquire_leaves_the_record_before_it() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let key = KEY.to_owned();
    let mut cancelled = 0;
    let mut moments = Moments(Duration::ZERO);
    while cancelled < CANCELLED {
        let trying = lock.try_acquire(&key, request());
        let before = ledger(&lock).await.to_string();
        match timeout(moments.next(), trying).await {
            Ok(Ok(TryAcquire::Acquired(lease))) => {
                drop(lease);
                moments.again();
            }
            // The one before is yet to release.
            Ok(Ok(TryAcquire::Held { .. } | TryAcquire::Answered(_))) => {}
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
    let until = Instant::now() + PATIENCE;
    while etcd.leases() > 1 {
        assert!(Instant::now() < until, "left: {} leases", etcd.leases());
    }
}

fn has_lock(etcd: &Etcd) -> bool {
    etcd.keys().iter().any(|key| key.ends_with("/lock"))
}
