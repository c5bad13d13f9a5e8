//! Spawn locks of a user's own and their faults (promises 11, 16, 28, 34, 35): budget and permit stay right.

mod support;

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::admin::{Ledger, LedgerReading};
use spawn_gate::lock::{LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{
    GateError, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate, SpawnLockError, async_trait,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::lead;
use crate::support::script::Script;
use crate::support::scripted_lock::{ScriptedLock, held, lost};

const KEY: &str = "indexer";

type Gate = SpawnGate<&'static str, u32>;

/// A lock service: always free, with a ledger that outlives a lost lease.
#[derive(Clone, Debug)]
struct Service {
    ledger: Arc<Mutex<Ledger>>,
    /// So many leases are lost from now on.
    losses: Arc<AtomicU32>,
    keeps_ledger: bool,
    /// A look into the ledger takes a while.
    is_slow: Arc<AtomicBool>,
}

impl Service {
    fn new() -> Self {
        Self {
            ledger: Arc::default(),
            losses: Arc::default(),
            keeps_ledger: true,
            is_slow: Arc::default(),
        }
    }

    fn losing(leases: u32) -> Self {
        let service = Self::new();
        service.losses.store(leases, Ordering::SeqCst);
        service
    }

    fn ledger(&self) -> Ledger {
        self.ledger.lock().unwrap().clone()
    }
}

#[async_trait]
impl SpawnLock<&'static str> for Service {
    async fn try_acquire(
        &self,
        _: &&'static str,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let token = self.ledger().fencing_token() + 1;
        let reading = match self.keeps_ledger {
            true => LedgerReading::Found(Box::new(self.ledger())),
            false => LedgerReading::NotKept,
        };
        if let Some(ledger) = request.update.apply(reading, token) {
            *self.ledger.lock().unwrap() = ledger;
        }
        Ok(TryAcquire::Acquired(Box::new(ServiceLease(
            self.clone(),
            token,
        ))))
    }

    fn keeps_ledger(&self) -> bool {
        self.keeps_ledger
    }

    async fn read_ledger(&self, _: &&'static str) -> Result<LedgerReading, SpawnLockError> {
        let ledger = self.ledger();
        if self.is_slow.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(500)).await;
        }
        Ok(LedgerReading::Found(Box::new(ledger)))
    }
}

#[derive(Debug)]
struct ServiceLease(Service, u64);

#[async_trait]
impl SpawnLease for ServiceLease {
    fn fencing_token(&self) -> u64 {
        self.1
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        pending().await
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        let losses = &self.0.losses;
        let is_lost = losses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        Some(match is_lost {
            Err(_) => Ok(()),
            Ok(_) => Err(lost()),
        })
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        *self.0.ledger.lock().unwrap() = ledger.clone();
        Ok(())
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        match ledger {
            Some(ledger) => self.write_ledger(ledger).await,
            None => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_before_the_launch_leaves_no_charge_in_a_ledger_that_survives_it() {
    let service = Service::losing(3);
    let gate = Gate::builder(service.clone()).build();
    let permit = lead(&gate, KEY).await;
    assert_eq!(permit.attempt_number(), 1);
    assert_eq!(service.ledger().attempts_charged(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_keeps_no_ledger_has_its_budget_counted_here_whatever_its_leases_say() {
    let mut service = Service::new();
    service.keeps_ledger = false;
    let gate = Gate::builder(service).build();
    for _ in 0..3 {
        lead(&gate, KEY).await.fail("no such program").await;
    }
    let refused = gate.acquire(KEY).await.unwrap_err();
    assert!(
        matches!(refused, GateError::BudgetExhausted(_)),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lock_may_keep_its_ledger_as_a_value() {
    let gate = Gate::builder(Service::new()).build();
    // What is written then has an attempt in flight that never ends.
    drop(lead(&gate, KEY).await);
    assert_eq!(lead(&gate, KEY).await.attempt_number(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_keeps_its_ledger_as_a_value_has_no_long_messages_to_keep() {
    let service = Service::new();
    let gate = Gate::builder(service.clone()).build();
    lead(&gate, KEY).await.fail("long ".repeat(10_000)).await;
    let ledger = service.ledger();
    let why = ledger.last_outcome().unwrap().failure.as_deref().unwrap();
    assert!(why.starts_with("long long"));
    assert!(why.len() < 520, "{} bytes", why.len());
}

#[tokio::test(start_paused = true)]
async fn a_permit_was_verified_also_if_its_lock_was_had_at_once() {
    let mut service = Service::losing(1000);
    service.keeps_ledger = false;
    let gate = Gate::builder(service).build();
    let heard = gate.acquire(KEY).await;
    assert!(matches!(heard, Err(GateError::Lock(_))), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_began_before_a_reset_refuses_nobody_after_it() {
    let service = Service::new();
    let gate = Gate::builder(service.clone())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(3600)))
        .build();
    lead(&gate, KEY).await.fail("no such program").await;
    // So that the next request looks into the ledger.
    sleep(Duration::from_secs(2)).await;
    service.is_slow.store(true, Ordering::SeqCst);
    let mut looking = tokio_test::task::spawn(gate.acquire(KEY));
    assert!(looking.poll().is_pending());
    sleep(Duration::from_millis(100)).await;
    gate.reset(KEY).await.unwrap();
    drop(looking.await);
    drop(lead(&gate, KEY).await);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_says_it_is_free_and_is_not_does_not_keep_a_waiter_busy() {
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .on_try(|call| {
            // Rather than go on for ever.
            assert!(call <= 100_000);
            async { Err(held()) }
        })
        // That ends the wait: the lock is free, it says.
        .on_wait(|_| async { Err(held()) });
    let gate = Gate::builder(lock.clone())
        .lock_timeout(Duration::from_secs(30))
        .build();
    let hour = Duration::from_secs(3600);
    let heard = timeout(hour, gate.acquire(KEY)).await.unwrap();
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    // One in 12.5 ms, once its pauses have grown.
    assert!(lock.tries.calls() < 30 * 80 + 20);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_and_has_to_be_taken_again_has_one_deadline() {
    let limit = Duration::from_secs(10);
    // Had at once the first time, lost, and held by somebody else from then on.
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .at_once(1)
        .on_verify(|_| async { Err(lost()) })
        .on_try(|_| async { Err(held()) });
    let gate = Gate::builder(lock).lock_timeout(limit).build();
    let began = Instant::now();
    let slow = Script::launching(|_| async { unreachable!("the lock is held by somebody else") })
        .discovering(move |_| async move {
            sleep(limit - Duration::from_secs(1)).await;
            Ok(None)
        });
    let heard = gate.launch(KEY, slow).await;
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(began.elapsed().as_secs(), limit.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_drop_panics_leaves_no_flight_behind() {
    // Had at once, but not vouched for at once.
    let lock = ScriptedLock::new(InMemorySpawnLock::new())
        .at_once(1)
        .on_try(|_| pending())
        .on_verify(|_| pending())
        .on_release(|| panic!("scripted"));
    let gate = Gate::builder(lock).build();
    let request = tokio::spawn({
        let gate = gate.clone();
        async move { drop(gate.acquire(KEY).await) }
    });
    assert!(request.await.unwrap_err().is_panic());
    assert!(gate.snapshot(KEY).await.flight.is_none());
}
