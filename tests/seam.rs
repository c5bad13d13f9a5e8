//! The lock seam with a lock service (promises 23, 35-39): lost leases, errors that pass, calls that take long, ledgers with an
//! age.

mod support;

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::admin::{Ledger, LedgerReading};
use spawn_gate::error::{LaunchError, Stage};
use spawn_gate::lock::{LeaseLost, LockRequest, SpawnLease, SpawnLock, SpawnLockError, TryAcquire};
use spawn_gate::{
    BackendLauncher, BoxError, GateError, LaunchPermit, SpawnBudgetConfig, SpawnGate,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::support::step_clock::StepClock;
use crate::support::{lead, refusal, seconds};

type Gate = SpawnGate<&'static str, u32>;
type Permit = LaunchPermit<&'static str, u32>;

const KEY: &str = "indexer";

/// A lock service for one key, which a test makes lose leases and fail calls.
#[derive(Clone)]
struct Service(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The token of the newest lease that was lost.
    lost: watch::Sender<u64>,
    released: Notify,
    /// Errors of the next tries.
    try_errors: Mutex<Vec<SpawnLockError>>,
    tries: AtomicU32,
    deadlines: Mutex<Vec<Instant>>,
    /// What settling does instead of settling.
    settles: Mutex<Settles>,
    expires_in: Option<Duration>,
}

#[derive(Default)]
struct State {
    holder: Option<u64>,
    last_token: u64,
    ledger: Ledger,
    /// By the service's clock.
    written: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settles {
    Well,
    Never,
    Failing,
    /// A release takes a while.
    Slowly,
}

fn lease_lost() -> SpawnLockError {
    SpawnLockError::LeaseLost {
        lock: KEY.into(),
        source: None,
    }
}

fn no_quorum() -> SpawnLockError {
    SpawnLockError::Service {
        lock: KEY.into(),
        source: "no quorum".into(),
        retry_helps: true,
    }
}

impl Service {
    fn new() -> Self {
        Self::with(Settles::Well, None)
    }

    fn with(settles: Settles, expires_in: Option<Duration>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            lost: watch::Sender::new(0),
            released: Notify::new(),
            try_errors: Mutex::default(),
            tries: AtomicU32::new(0),
            deadlines: Mutex::default(),
            settles: Mutex::new(settles),
            expires_in,
        }))
    }

    fn gate(&self) -> Gate {
        Gate::builder(self.clone()).build()
    }

    /// Takes the lock from its holder.
    fn revoke(&self) {
        let token = self.0.state.lock().unwrap().holder.take().unwrap();
        self.0.lost.send_replace(token);
        self.0.released.notify_waiters();
    }

    fn is_free(&self) -> bool {
        self.0.state.lock().unwrap().holder.is_none()
    }

    fn attempts_charged(&self) -> u32 {
        self.0.state.lock().unwrap().ledger.attempts_charged()
    }
}

impl Inner {
    /// What is written there, by the reader's clock.
    fn ledger(state: &State) -> Ledger {
        let age = state.written.map_or(Duration::ZERO, |at| at.elapsed());
        state.ledger.clone().with_age(age)
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

#[async_trait]
impl SpawnLock<&'static str> for Service {
    async fn try_acquire(
        &self,
        _: &&'static str,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        self.0.tries.fetch_add(1, Ordering::SeqCst);
        self.0.deadlines.lock().unwrap().push(request.deadline);
        let error = self.0.try_errors.lock().unwrap().pop();
        error.map_or(Ok(()), Err)?;
        let mut state = self.0.state.lock().unwrap();
        let reading = LedgerReading::Found(Box::new(Inner::ledger(&state)));
        if state.holder.is_some() {
            return Ok(TryAcquire::Held {
                lock: KEY.into(),
                ledger: reading,
            });
        }
        state.last_token += 1;
        let token = state.last_token;
        state.holder = Some(token);
        if let Some(ledger) = request.update.apply(reading, token) {
            state.ledger = ledger;
            state.written = Some(Instant::now());
        }
        let service = self.clone();
        Ok(TryAcquire::Acquired(Box::new(Lease { service, token })))
    }

    async fn released(&self, _: &&'static str, _pause: Duration) {
        self.0.released.notified().await;
    }

    fn keeps_ledger(&self) -> bool {
        true
    }

    async fn read_ledger(&self, _: &&'static str) -> Result<LedgerReading, SpawnLockError> {
        let ledger = Inner::ledger(&self.0.state.lock().unwrap());
        Ok(LedgerReading::Found(Box::new(ledger)))
    }
}

#[derive(Debug)]
struct Lease {
    service: Service,
    token: u64,
}

impl Lease {
    fn check(&self, state: &State) -> Result<(), SpawnLockError> {
        match state.holder == Some(self.token) {
            true => Ok(()),
            false => Err(lease_lost()),
        }
    }
}

#[async_trait]
impl SpawnLease for Lease {
    fn fencing_token(&self) -> u64 {
        self.token
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        self.check(&self.service.0.state.lock().unwrap())
    }

    fn lost(&self) -> Option<LeaseLost<'_>> {
        let mut lost = self.service.0.lost.subscribe();
        Some(Box::pin(async move {
            // The service outlives its leases.
            let _ = lost.wait_for(|&lost| lost >= self.token).await;
            lease_lost()
        }))
    }

    fn expires_in(&self) -> Option<Duration> {
        self.service.0.expires_in
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let mut state = self.service.0.state.lock().unwrap();
        self.check(&state)?;
        state.ledger = ledger.clone();
        state.written = Some(Instant::now());
        Ok(())
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        let settles = *self.service.0.settles.lock().unwrap();
        match settles {
            Settles::Well => {}
            Settles::Never => pending().await,
            Settles::Failing => return Err(no_quorum()),
            Settles::Slowly => sleep(seconds(1)).await,
        }
        self.write_ledger(ledger.unwrap()).await?;
        self.service.0.state.lock().unwrap().holder = None;
        self.service.0.released.notify_waiters();
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.service.0.state.lock().unwrap();
        if state.holder == Some(self.token) {
            state.holder = None;
            self.service.0.released.notify_waiters();
        }
    }
}

/// Launches by a function of the service, and counts what it is told to discard.
struct Launcher<F> {
    service: Service,
    launch: F,
    discarded: Arc<AtomicU32>,
}

#[async_trait]
impl<F> BackendLauncher<&'static str, u32> for Launcher<F>
where
    F: AsyncStep,
{
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _: &Permit) -> Result<u32, BoxError> {
        self.launch.run(&self.service).await;
        Ok(7)
    }

    async fn discard(&self, _: &&'static str, value: u32) {
        self.discarded.fetch_add(value, Ordering::SeqCst);
    }
}

#[async_trait]
trait AsyncStep: Send + Sync + 'static {
    async fn run(&self, service: &Service);
}

/// Loses its lock right before it returns.
struct LosesItsLock;

#[async_trait]
impl AsyncStep for LosesItsLock {
    async fn run(&self, service: &Service) {
        service.revoke();
    }
}

/// Loses its lock, and never returns.
struct GoesOn;

#[async_trait]
impl AsyncStep for GoesOn {
    async fn run(&self, service: &Service) {
        sleep(seconds(3)).await;
        service.revoke();
        pending().await
    }
}

/// Returns at once.
struct Returns;

#[async_trait]
impl AsyncStep for Returns {
    async fn run(&self, _: &Service) {}
}

fn launcher<F: AsyncStep>(service: &Service, launch: F) -> (Launcher<F>, Arc<AtomicU32>) {
    let discarded = Arc::new(AtomicU32::new(0));
    let launcher = Launcher {
        service: service.clone(),
        launch,
        discarded: Arc::clone(&discarded),
    };
    (launcher, discarded)
}

#[track_caller]
fn is_lost(error: &GateError) {
    assert!(
        matches!(error, GateError::Launch(LaunchError::LockLost { source, .. }) if source.is_lost()),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_success_whose_lease_was_lost_meanwhile_is_told_to_nobody() {
    let service = Service::new();
    let gate = service.gate();
    let (launcher, discarded) = launcher(&service, LosesItsLock);
    let (leader, follower) = tokio::join!(gate.launch(KEY, launcher), gate.acquire(KEY));
    is_lost(&leader.unwrap_err());
    is_lost(&follower.unwrap_err());
    while discarded.load(Ordering::SeqCst) != 7 {
        tokio::task::yield_now().await;
    }
    // What is written under a lost lease would undo what a later holder wrote.
    assert_eq!(service.attempts_charged(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_success_that_cannot_be_settled_is_told_only_if_the_lock_is_still_held() {
    let service = Service::with(Settles::Failing, None);
    let gate = service.gate();
    let (held, _) = launcher(&service, Returns);
    assert_eq!(gate.launch(KEY, held).await.unwrap().value, 7);
    assert!(service.is_free());

    let permit = lead(&gate, KEY).await;
    service.revoke();
    is_lost(&permit.succeed(7).await.unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_says_what_is_left_without_the_success_that_was_none() {
    let service = Service::new();
    let gate = Gate::builder(service.clone())
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .build();
    let permit = lead(&gate, KEY).await;
    service.revoke();
    let error = permit.succeed(7).await.unwrap_err();
    is_lost(&error);
    assert!(error.retry_after().unwrap() > seconds(29));
    refusal(gate.acquire(KEY).await);
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_lock_is_lost_is_not_waited_for() {
    let service = Service::new();
    let gate = service.gate();
    let began = Instant::now();
    let (launcher, _) = launcher(&service, GoesOn);
    is_lost(&gate.launch(KEY, launcher).await.unwrap_err());
    assert_eq!(began.elapsed(), seconds(3));
}

#[tokio::test(start_paused = true)]
async fn a_permit_tells_that_its_lock_is_lost() {
    let service = Service::new();
    let permit = lead(&service.gate(), KEY).await;
    let mut lost = tokio_test::task::spawn(permit.lost());
    tokio_test::assert_pending!(lost.poll());
    service.revoke();
    assert!(lost.is_woken());
    assert!(tokio_test::assert_ready!(lost.poll()).is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_at_the_charge_is_taken_anew_and_charged_once() {
    let service = Service::new();
    service
        .0
        .try_errors
        .lock()
        .unwrap()
        .extend([lease_lost(), lease_lost()]);
    let permit = lead(&service.gate(), KEY).await;
    assert_eq!(
        (permit.attempt_number(), service.attempts_charged()),
        (1, 1)
    );
    assert_eq!(service.0.tries.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_passes_is_waited_out_and_one_that_stays_is_named_at_the_deadline() {
    let service = Service::new();
    let gate = Gate::builder(service.clone())
        .lock_timeout(seconds(5))
        .build();
    let errors = |count| (0..count).map(|_| no_quorum());
    service.0.try_errors.lock().unwrap().extend(errors(10));
    lead(&gate, KEY).await.refund().await;

    service.0.try_errors.lock().unwrap().extend(errors(100_000));
    let began = Instant::now();
    let error = gate.acquire(KEY).await.unwrap_err();
    assert_eq!(began.elapsed(), seconds(5));
    assert!(error.retry_helps());
    assert_eq!(
        format!("{error:#}"),
        "cannot take the spawn lock of indexer: the spawn lock service failed for indexer: no quorum"
    );
    // With pauses between the tries, and each was told when the wait is over.
    assert!(service.0.tries.load(Ordering::SeqCst) < 1000);
    let deadlines = service.0.deadlines.lock().unwrap();
    assert_eq!(*deadlines.last().unwrap(), began + seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_lease_may_take_as_long_as_the_lease_holds() {
    for (expires_in, limit) in [
        (None, seconds(5)),
        (Some(seconds(2)), seconds(2)),
        (Some(seconds(60)), seconds(60)),
    ] {
        let service = Service::with(Settles::Never, expires_in);
        let permit = lead(&service.gate(), KEY).await;
        let began = Instant::now();
        // The lock is held still, so the success counts.
        permit.succeed(7).await.unwrap();
        assert_eq!(began.elapsed(), limit);
        assert!(service.is_free());
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_takes_a_while_is_over_before_anybody_hears_of_the_outcome() {
    let service = Service::with(Settles::Slowly, None);
    let gate = service.gate();
    let permit = lead(&gate, KEY).await;
    let follower = tokio::spawn({
        let (gate, service) = (gate.clone(), service.clone());
        async move {
            drop(gate.acquire(KEY).await.unwrap());
            assert!(service.is_free());
        }
    });
    tokio::task::yield_now().await;
    permit.succeed(7).await.unwrap();
    assert!(service.is_free());
    follower.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_budget_holds_between_hosts_whatever_their_clocks_say() {
    for skew in [Duration::from_millis(200), seconds(600)] {
        let service = Service::new();
        let window = seconds(30);
        let here = StepClock::new();
        let ahead = StepClock::new();
        ahead.advance(skew);
        let hosts = [&here, &ahead, &here, &ahead].map(|clock| {
            Gate::builder(service.clone())
                .budget(SpawnBudgetConfig::new(3, window))
                .clock(clock.clone())
                .build()
        });
        for round in 0..3 {
            let mut launches = 0;
            for gate in hosts.iter().cycle().take(12) {
                match gate.acquire(KEY).await {
                    Ok(acquired) => {
                        launches += 1;
                        support::led(Ok(acquired)).fail("no such program").await;
                    }
                    refused => drop(refusal(refused)),
                }
                // So that each looks into the ledger.
                for clock in [&here, &ahead] {
                    clock.advance(seconds(1));
                }
                tokio::time::advance(seconds(1)).await;
            }
            assert_eq!(launches, 3, "skew {skew:?}, round {round}");
            for clock in [&here, &ahead] {
                clock.advance(window);
            }
            tokio::time::advance(window).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_not_free_in_time_names_the_stage() {
    let service = Service::new();
    let _held = lead(&service.gate(), KEY).await;
    let gate = Gate::builder(service).lock_timeout(seconds(2)).build();
    let error = gate.acquire(KEY).await.unwrap_err();
    let GateError::Timeout(timeout) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(timeout.stage, Stage::Lock);
    let holder = timeout.waiting_for.as_deref().unwrap();
    assert_eq!(holder.pid, std::process::id());
    let text = format!("{error}");
    assert!(
        text.contains(&format!("indexer, which process {} took", holder.pid)),
        "{text}"
    );
}
