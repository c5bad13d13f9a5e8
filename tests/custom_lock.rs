//! Spawn locks of a user's own and their faults (promises 11, 16, 28, 34, 35): budget and permit stay right.

mod support;

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading};
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{
    Acquired, GateError, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate, SpawnLockError,
    async_trait,
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

#[tokio::test(start_paused = true)]
async fn a_lock_may_be_lost_five_times_before_a_launch_and_no_more() {
    for losses in [5, 6] {
        let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(move |call| async move {
            match call <= losses {
                true => Err(lost()),
                false => Ok(()),
            }
        });
        let gate = Gate::builder(lock.clone()).build();
        let heard = gate.acquire(KEY).await;
        match losses {
            5 => assert!(matches!(heard, Ok(Acquired::Led(_))), "{heard:?}"),
            _ => assert!(matches!(heard, Err(GateError::Lock(_))), "{heard:?}"),
        }
        assert_eq!(lock.tries.calls(), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_is_taken_again_at_once_and_after_a_pause_if_it_is_lost_again() {
    for losses in [1, 2] {
        let lock = ScriptedLock::new(InMemorySpawnLock::new()).on_try(move |call| async move {
            match call <= losses {
                true => Err(lost()),
                false => Ok(()),
            }
        });
        let began = Instant::now();
        let _permit = lead(&Gate::builder(lock).build(), KEY).await;
        assert_eq!(began.elapsed().is_zero(), losses == 1);
    }
}

/// Notes whether each try is by a caller that waits. The first try fails, and the fourth; the others find it held.
#[derive(Clone, Debug, Default)]
struct Noting(Arc<Mutex<Vec<bool>>>);

#[async_trait]
impl SpawnLock<&'static str> for Noting {
    async fn try_acquire(
        &self,
        key: &&'static str,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let mut tries = self.0.lock().unwrap();
        tries.push(request.is_waiting);
        match tries.len() {
            1 | 4 => Err(SpawnLockError::Unresponsive {
                after: Duration::ZERO,
            }),
            _ => Ok(TryAcquire::Held {
                lock: key.into(),
                ledger: LedgerReading::NotKept,
            }),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_is_by_a_waiting_caller_from_when_the_lock_was_first_found_held() {
    let lock = Noting::default();
    let gate = Gate::builder(lock.clone())
        .lock_timeout(Duration::from_secs(1))
        .build();
    assert!(gate.acquire(KEY).await.is_err());
    let tries = lock.0.lock().unwrap();
    assert_eq!(tries[..2], [false, false]);
    assert!(tries[2..].iter().all(|&is_waiting| is_waiting));
    assert!(tries.len() > 4);
}

/// Held, and answers each try by a ledger in which nothing has ended.
#[derive(Clone, Debug, Default)]
struct AnswersWithNothing(Arc<Mutex<u32>>);

#[async_trait]
impl SpawnLock<&'static str> for AnswersWithNothing {
    async fn try_acquire(
        &self,
        _: &&'static str,
        _: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        *self.0.lock().unwrap() += 1;
        Ok(TryAcquire::Answered(LedgerReading::Found(Box::default())))
    }

    fn keeps_ledger(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_news_counts_as_a_held_lock_so_the_gate_waits_before_it_tries_again() {
    let lock = AnswersWithNothing::default();
    let gate = Gate::builder(lock.clone())
        .lock_timeout(Duration::from_secs(1))
        .build();
    let error = gate.acquire(KEY).await.unwrap_err();
    assert_eq!(error.error_type(), "lock_timeout");
    // With the longest pauses there are 40 in that time.
    assert!((2..200).contains(&*lock.0.lock().unwrap()));
}

/// Keeps no ledger, and cannot take reports.
#[derive(Debug)]
struct TakesNoReports;

#[async_trait]
impl SpawnLock<&'static str> for TakesNoReports {
    async fn try_acquire(
        &self,
        _: &&'static str,
        _: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        pending().await
    }

    async fn report_backend_end(
        &self,
        _: &&'static str,
        _: &BackendEnd,
    ) -> Result<(), SpawnLockError> {
        panic!("there is no ledger")
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_keeps_no_ledger_gets_no_reports_of_backends() {
    let gate = Gate::builder(TakesNoReports).build();
    gate.backend_ended(KEY, BackendEnd::orderly(1))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_checks_a_refusal_leaves_the_lock_to_others() {
    let lock = InMemorySpawnLock::new();
    let gate = Gate::builder(lock.clone())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(30)))
        .build();
    lead(&gate, KEY).await.fail("no such program").await;
    let launcher = Script::launching(|_| async { unreachable!("no attempt is left") }).discovering(
        move |_| {
            let is_free = lock.try_acquire_now(&KEY).is_some();
            async move {
                assert!(is_free);
                Ok(None)
            }
        },
    );
    let heard = gate.launch(KEY, launcher.clone()).await;
    assert!(
        matches!(heard, Err(GateError::BudgetExhausted(_))),
        "{heard:?}"
    );
    assert_eq!(launcher.discover.calls(), 1);
}

/// Notes its calls, and does nothing.
#[derive(Debug, Default)]
struct Called(Mutex<Vec<&'static str>>);

impl Called {
    fn note(&self, call: &'static str) {
        self.0.lock().unwrap().push(call);
    }
}

#[async_trait]
impl SpawnLock<&'static str> for Called {
    async fn try_acquire(
        &self,
        key: &&'static str,
        _: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        self.note("try_acquire");
        Ok(TryAcquire::Held {
            lock: key.into(),
            ledger: LedgerReading::NotKept,
        })
    }

    fn try_acquire_now(&self, _: &&'static str) -> Option<Box<dyn SpawnLease>> {
        self.note("try_acquire_now");
        None
    }

    async fn released(&self, _: &&'static str, _: Duration) {
        self.note("released");
    }

    fn keeps_ledger(&self) -> bool {
        self.note("keeps_ledger");
        true
    }

    async fn read_ledger(&self, _: &&'static str) -> Result<LedgerReading, SpawnLockError> {
        self.note("read_ledger");
        Ok(LedgerReading::Unreadable)
    }

    async fn report_backend_end(
        &self,
        _: &&'static str,
        _: &BackendEnd,
    ) -> Result<(), SpawnLockError> {
        self.note("report_backend_end");
        Err(held())
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_behind_an_arc_does_what_the_lock_does() {
    let lock = Arc::new(Called::default());
    let request = LockRequest::new(LedgerUpdate::none(), Instant::now());
    let tried = SpawnLock::try_acquire(&lock, &KEY, request).await;
    assert!(matches!(tried, Ok(TryAcquire::Held { .. })));
    assert!(SpawnLock::try_acquire_now(&lock, &KEY).is_none());
    SpawnLock::released(&lock, &KEY, Duration::ZERO).await;
    assert!(SpawnLock::<&str>::keeps_ledger(&lock));
    let read = SpawnLock::read_ledger(&lock, &KEY).await.unwrap();
    assert_eq!(read, LedgerReading::Unreadable);
    let reported = SpawnLock::report_backend_end(&lock, &KEY, &BackendEnd::orderly(1)).await;
    assert!(reported.is_err());
    assert_eq!(
        *lock.0.lock().unwrap(),
        [
            "try_acquire",
            "try_acquire_now",
            "released",
            "keeps_ledger",
            "read_ledger",
            "report_backend_end"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_cannot_tell_of_a_release_is_waited_for_as_long_as_the_pause() {
    let began = Instant::now();
    let pause = Duration::from_secs(7);
    Noting::default().released(&KEY, pause).await;
    assert_eq!(began.elapsed(), pause);
}

/// A lease that does only what it must, and is lost if so told. Counts its checks and writes.
#[derive(Debug)]
struct Plain {
    is_lost: bool,
    checks: AtomicU32,
    writes: u32,
}

#[async_trait]
impl SpawnLease for Plain {
    fn fencing_token(&self) -> u64 {
        1
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.checks.fetch_add(1, Ordering::SeqCst);
        match self.is_lost {
            true => Err(lost()),
            false => Ok(()),
        }
    }

    async fn write_ledger(&mut self, _: &Ledger) -> Result<(), SpawnLockError> {
        self.writes += 1;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_settled_by_a_check_and_then_a_write_unless_it_knows_better() {
    for is_lost in [true, false] {
        let mut lease = Plain {
            is_lost,
            checks: AtomicU32::new(0),
            writes: 0,
        };
        assert!(lease.settle_now().is_none());
        let settled = lease.settle(Some(&Ledger::default())).await;
        assert_eq!(settled.is_err(), is_lost);
        assert_eq!(lease.checks.load(Ordering::SeqCst), 1);
        assert_eq!(lease.writes, u32::from(!is_lost));
    }
}
