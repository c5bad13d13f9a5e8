//! The ledger (promises 20-24) between gates that share nothing but a lock directory, with a clock that the test steps.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{
    Acquired, BackendLauncher, BootReading, ClockReading, FileSpawnLock, GateError, How,
    LaunchError, LaunchPermit, LedgerReading, LockError, SharedClock, SpawnBudgetConfig, SpawnGate,
    SpawnLockError, Stage, WindowKind, inspect_spawn_lock,
};
use tokio::sync::Semaphore;

type Gate = SpawnGate<&'static str, u32>;

const KEY: &str = "indexer";
const WINDOW: Duration = Duration::from_secs(30);

/// A clock that stands until it is stepped.
#[derive(Clone, Debug)]
struct StepClock(Arc<Mutex<ClockReading>>);

impl StepClock {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(ClockReading {
            unix: Duration::from_secs(1_800_000_000),
            boot: Some(BootReading {
                id: 7,
                elapsed: Duration::from_secs(5000),
            }),
        })))
    }

    fn set(&self, change: impl FnOnce(&mut ClockReading)) {
        change(&mut self.0.lock().unwrap());
    }

    fn advance(&self, by: Duration) {
        self.set(|now| {
            now.unix += by;
            if let Some(boot) = &mut now.boot {
                boot.elapsed += by;
            }
        });
    }
}

impl SharedClock for StepClock {
    fn now(&self) -> ClockReading {
        *self.0.lock().unwrap()
    }
}

/// A fresh gate on the directory, as another process, or the next one after a crash, would have it.
fn gate(directory: &Path, clock: &StepClock) -> Gate {
    Gate::builder(FileSpawnLock::new(directory).unwrap())
        .budget(SpawnBudgetConfig::new(3, WINDOW))
        .clock(clock.clone())
        .build()
}

fn lock_path(directory: &Path) -> std::path::PathBuf {
    FileSpawnLock::new(directory).unwrap().path_of(&KEY)
}

async fn permit(gate: &Gate) -> LaunchPermit<&'static str, u32> {
    match gate.acquire(KEY).await.unwrap() {
        Acquired::Led(permit) => permit,
        Acquired::Joined(_) => panic!("nobody else launches"),
    }
}

async fn fail_once(gate: &Gate) {
    permit(gate).await.fail("no such program").await;
}

async fn retry_after(gate: &Gate) -> Duration {
    match gate.acquire(KEY).await {
        Err(GateError::BudgetExhausted(refusal)) => refusal.retry_after,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn all_processes_together_get_max_attempts_in_a_window_and_a_restart_resets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    for _ in 0..3 {
        fail_once(&gate(directory.path(), &clock)).await;
        clock.advance(Duration::from_secs(1));
    }
    let next = gate(directory.path(), &clock);
    assert_eq!(retry_after(&next).await, Duration::from_secs(27));
    assert_eq!(next.snapshot(KEY).await.budget.attempts_used, 3);

    clock.advance(Duration::from_secs(27));
    let later = gate(directory.path(), &clock);
    assert_eq!(permit(&later).await.attempt_number(), 1);
}

#[tokio::test]
async fn a_sliding_window_holds_across_processes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = || {
        Gate::builder(FileSpawnLock::new(directory.path()).unwrap())
            .budget(SpawnBudgetConfig::new(2, WINDOW))
            .window_kind(WindowKind::Sliding)
            .clock(clock.clone())
            .build()
    };
    fail_once(&gate()).await;
    clock.advance(Duration::from_secs(29));
    fail_once(&gate()).await;
    clock.advance(Duration::from_secs(1));
    fail_once(&gate()).await;
    assert_eq!(retry_after(&gate()).await, Duration::from_secs(29));
}

#[tokio::test]
async fn success_in_one_process_resets_the_budget_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock)).await;
    fail_once(&gate(directory.path(), &clock)).await;
    let third = gate(directory.path(), &clock);
    permit(&third).await.succeed(1).await.unwrap();
    assert_eq!(
        permit(&gate(directory.path(), &clock))
            .await
            .attempt_number(),
        1
    );
}

#[tokio::test]
async fn what_never_reached_a_launch_is_taken_back_from_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let used = async || {
        gate(directory.path(), &clock)
            .snapshot(KEY)
            .await
            .budget
            .attempts_used
    };
    permit(&gate(directory.path(), &clock)).await.refund().await;
    assert_eq!(used().await, 0);
    permit(&gate(directory.path(), &clock))
        .await
        .discovered(1)
        .await;
    assert_eq!(used().await, 0);
    // What was dropped may have been started.
    drop(permit(&gate(directory.path(), &clock)).await);
    assert_eq!(used().await, 1);
}

#[tokio::test]
async fn a_leader_cancelled_at_any_await_before_its_permit_leaves_no_charge_and_no_lock() {
    let clock = StepClock::new();
    let mut finished = false;
    for polls in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let cancelled = gate(directory.path(), &clock);
        let mut request = Box::pin(cancelled.acquire(KEY));
        let mut granted = None;
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            let mut cx = std::task::Context::from_waker(waker);
            if let std::task::Poll::Ready(result) = request.as_mut().poll(&mut cx) {
                granted = Some(result);
                break;
            }
            // A blocking call finishes between two polls.
            tokio::task::spawn_blocking(|| {}).await.unwrap();
        }
        drop(request);
        if granted.take().is_some() {
            finished = true;
            break;
        }
        // The next request gets the lock once the charge was given back.
        let next = gate(directory.path(), &clock);
        let permit = permit(&next).await;
        assert_eq!(permit.attempt_number(), 1, "cancelled after {polls} polls");
        permit.refund().await;
    }
    assert!(finished);
}

/// Launches as the test tells it to.
#[derive(Clone)]
struct Scripted {
    launches: Arc<AtomicU32>,
    go: Arc<Semaphore>,
    started: Arc<Semaphore>,
    found: Arc<AtomicU32>,
    fails: bool,
}

impl Scripted {
    fn new(fails: bool) -> Self {
        Self {
            launches: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
            started: Arc::new(Semaphore::new(0)),
            found: Arc::default(),
            fails,
        }
    }
}

#[async_trait]
impl BackendLauncher<&'static str, u32> for Scripted {
    async fn discover(
        &self,
        _: &&'static str,
    ) -> Result<Option<u32>, Box<dyn Error + Send + Sync>> {
        let found = self.found.load(Ordering::SeqCst);
        Ok((found != 0).then_some(found))
    }

    async fn launch(
        &self,
        _: &LaunchPermit<&'static str, u32>,
    ) -> Result<u32, Box<dyn Error + Send + Sync>> {
        let launch = self.launches.fetch_add(1, Ordering::SeqCst) + 1;
        self.started.add_permits(1);
        self.go.acquire().await?.forget();
        if self.fails {
            return Err(format!("launch {launch} cannot\nfind its program").into());
        }
        self.found.store(launch, Ordering::SeqCst);
        Ok(launch)
    }
}

/// One gate launches; when that is under way another one asks. The launch ends once the other one waits for the lock.
async fn launch_and_wait(
    directory: &Path,
    launcher: &Scripted,
) -> [Result<spawn_gate::Launched<u32>, GateError>; 2] {
    let clock = StepClock::new();
    let (one, other) = (gate(directory, &clock), gate(directory, &clock));
    let first = tokio::spawn({
        let launcher = launcher.clone();
        async move { one.launch(KEY, launcher).await }
    });
    launcher.started.acquire().await.unwrap().forget();
    let second = tokio::spawn({
        let (other, launcher) = (other.clone(), launcher.clone());
        async move { other.launch(KEY, launcher).await }
    });
    loop {
        let flight = other.snapshot(KEY).await.flight;
        if let Some(holder) = flight.and_then(|flight| flight.waiting_for) {
            assert_eq!(holder.pid, std::process::id());
            assert_eq!(holder.path, lock_path(directory));
            break;
        }
        tokio::task::yield_now().await;
    }
    // For a second launch too, so that one which must not be is seen and not waited for.
    launcher.go.add_permits(2);
    [first.await.unwrap(), second.await.unwrap()]
}

#[tokio::test]
async fn a_process_that_waited_joins_what_another_one_launched() {
    let directory = tempfile::tempdir().unwrap();
    let launcher = Scripted::new(false);
    let [one, other] = launch_and_wait(directory.path(), &launcher).await;
    assert_eq!(one.unwrap().how, How::Led);
    assert_eq!(other.unwrap().how, How::Discovered);
    assert_eq!(launcher.launches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_process_that_waited_shares_the_failure_with_its_message_and_makes_no_attempt_of_its_own()
{
    let directory = tempfile::tempdir().unwrap();
    let launcher = Scripted::new(true);
    let [one, other] = launch_and_wait(directory.path(), &launcher).await;
    assert!(matches!(
        one,
        Err(GateError::Launch(LaunchError::Failed { attempt: 1, .. }))
    ));
    let Err(GateError::Launch(LaunchError::FailedElsewhere { message, .. })) = other else {
        panic!("not shared: {other:?}");
    };
    assert_eq!(&*message, r"launch 1 cannot\nfind its program");
    assert_eq!(launcher.launches.load(Ordering::SeqCst), 1);
    let after = gate(directory.path(), &StepClock::new())
        .snapshot(KEY)
        .await;
    assert_eq!(after.budget.attempts_used, 1);
}

#[tokio::test]
async fn a_failure_from_before_the_wait_is_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock)).await;
    // To the millisecond, as the ledger tells it.
    clock.advance(Duration::from_millis(1));
    // Holds the lock without launching, so that the next one has to wait.
    let holder = gate(directory.path(), &clock);
    let held = permit(&holder).await;
    let waiter = gate(directory.path(), &clock);
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire(KEY).await }
    });
    while waiter
        .snapshot(KEY)
        .await
        .flight
        .is_none_or(|flight| flight.waiting_for.is_none())
    {
        tokio::task::yield_now().await;
    }
    held.refund().await;
    let Acquired::Led(permit) = waiting.await.unwrap().unwrap() else {
        panic!("nobody launched");
    };
    assert_eq!(permit.attempt_number(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_operators_reset_reaches_processes_that_are_refusing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let broker = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&broker).await;
    }
    assert_eq!(retry_after(&broker).await, WINDOW);
    gate(directory.path(), &clock).reset(&KEY).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(permit(&broker).await.attempt_number(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_refused_requests_looks_into_the_ledger_once_a_second_and_tells_once() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    for _ in 0..3 {
        fail_once(&gate).await;
    }
    let mut told = 0;
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(50)).await;
        match gate.acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => told += u32::from(refusal.first),
            other => panic!("not refused: {other:?}"),
        }
    }
    assert_eq!(told, 1);
    // Nothing of this was charged, and what the ledger says is as before.
    assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 3);
}

#[tokio::test]
async fn a_reset_waits_for_the_launch_in_progress_and_names_its_holder_when_it_gives_up() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let held = permit(&gate(directory.path(), &clock)).await;
    let operator = Gate::builder(FileSpawnLock::new(directory.path()).unwrap())
        .lock_timeout(Duration::ZERO)
        .build();
    let Err(GateError::Timeout(timeout)) = operator.reset(&KEY).await else {
        panic!("it did not wait");
    };
    assert_eq!(timeout.stage, Stage::Lock);
    assert_eq!(timeout.waiting_for.unwrap().pid, std::process::id());
    drop(held);
    operator.reset(&KEY).await.unwrap();
    assert_eq!(operator.snapshot(KEY).await.budget.attempts_used, 0);
}

#[tokio::test]
async fn no_step_of_a_clock_and_no_reboot_locks_a_key_out_for_longer_than_one_window() {
    let hour = Duration::from_secs(3600);
    type Step = fn(&mut ClockReading, Duration);
    let steps: [(&str, Step); 6] = [
        ("wall back", |now, by| now.unix -= by),
        ("wall forward", |now, by| now.unix += by),
        ("reboot", |now, _| {
            now.boot = Some(BootReading {
                id: 8,
                elapsed: Duration::ZERO,
            });
        }),
        ("reboot with the wall set back", |now, by| {
            now.unix -= by;
            now.boot = Some(BootReading {
                id: 8,
                elapsed: Duration::ZERO,
            });
        }),
        ("another time namespace", |now, by| {
            now.boot.as_mut().unwrap().elapsed += by;
        }),
        ("no boot clock any more", |now, _| now.boot = None),
    ];
    for (name, step) in steps {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        for _ in 0..3 {
            fail_once(&gate(directory.path(), &clock)).await;
        }
        clock.advance(Duration::from_secs(10));
        clock.set(|now| step(now, hour));
        match gate(directory.path(), &clock).acquire(KEY).await {
            Err(GateError::BudgetExhausted(refusal)) => {
                assert!(refusal.retry_after <= WINDOW, "{name}: {refusal:?}");
                clock.advance(refusal.retry_after);
                let later = gate(directory.path(), &clock);
                assert_eq!(permit(&later).await.attempt_number(), 1, "{name}");
            }
            // At worst the step cost this window.
            Ok(Acquired::Led(permit)) => assert_eq!(permit.attempt_number(), 1, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn two_time_namespaces_that_take_turns_share_one_budget() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let shifted = StepClock::new();
    shifted.set(|now| {
        let boot = now.boot.as_mut().unwrap();
        boot.elapsed += Duration::from_secs(100_000);
        boot.id += 1;
    });
    fail_once(&gate(directory.path(), &clock)).await;
    fail_once(&gate(directory.path(), &shifted)).await;
    fail_once(&gate(directory.path(), &clock)).await;
    for clock in [&clock, &shifted] {
        assert!(retry_after(&gate(directory.path(), clock)).await <= WINDOW);
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_counts_as_a_budget_just_used_up_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let path = lock_path(directory.path());
    for junk in [
        "x",
        "4711\n",
        &"\0".repeat(4000),
        &"record 1 version 1 checksum 0\nend\n".repeat(200),
    ] {
        let contents = format!("{:128}{junk}", "");
        drop(fs::remove_file(&path));
        drop(spawn_gate::acquire_spawn_lock(&path).unwrap());
        fs::write(&path, contents).unwrap();
        let refused = gate(directory.path(), &clock);
        assert_eq!(retry_after(&refused).await, WINDOW);
        assert!(matches!(
            inspect_spawn_lock(&path).unwrap().ledger,
            LedgerReading::Found(_)
        ));
        clock.advance(WINDOW);
        let healed = gate(directory.path(), &clock);
        assert_eq!(permit(&healed).await.attempt_number(), 1);
    }
}

#[tokio::test]
async fn a_ledger_of_a_newer_version_is_an_error_and_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    drop(spawn_gate::acquire_spawn_lock(&path).unwrap());
    // SHA-256 of the version (4 bytes), the number (8 bytes), both little endian, and the lines after the first.
    let mut hash = hmac_sha256::Hash::new();
    hash.update(2_u32.to_le_bytes());
    hash.update(5_u64.to_le_bytes());
    hash.update(b"as they write it then\nend\n");
    let sum: String = hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let record = format!("record 5 version 2 checksum {sum}\nas they write it then\nend\n");
    let contents = format!("{:128}{record:\0<3840}", "");
    fs::write(&path, &contents).unwrap();

    let error = gate(directory.path(), &StepClock::new())
        .acquire(KEY)
        .await
        .unwrap_err();
    let GateError::Lock(LockError { source, .. }) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(
        &**source,
        SpawnLockError::LedgerVersion { path: named, found: 2, supported: 1 } if *named == path
    ));
    assert!(!error.retry_helps());
    assert_eq!(fs::read_to_string(&path).unwrap(), contents);
}

#[tokio::test]
async fn without_a_ledger_each_process_counts_for_itself_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let gate = || {
        Gate::builder(
            FileSpawnLock::new(directory.path())
                .unwrap()
                .without_ledger(),
        )
        .budget(SpawnBudgetConfig::new(1, WINDOW))
        .build()
    };
    let one = gate();
    fail_once(&one).await;
    assert!(one.acquire(KEY).await.is_err());
    let first = permit(&gate()).await;
    assert_eq!(first.attempt_number(), 1);
    let token = first.fencing_token();
    first.fail("again").await;
    assert!(permit(&gate()).await.fencing_token() > token);
    assert_eq!(fs::metadata(lock_path(directory.path())).unwrap().len(), 0);
}

#[tokio::test]
async fn the_lock_file_never_grows_and_no_other_file_appears() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    let mut sizes = Vec::new();
    for _ in 0..50 {
        permit(&gate).await.fail("m".repeat(100_000)).await;
        gate.reset(&KEY).await.unwrap();
        sizes.push(fs::metadata(lock_path(directory.path())).unwrap().len());
    }
    sizes.dedup();
    assert_eq!(sizes.len(), 1);
    assert!(sizes[0] <= 4096);
    // The lock file and the one by which the directory was tried.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn the_launch_number_grows_from_process_to_process_also_when_the_file_was_deleted_or_the_clock_set_back()
 {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let mut last = 0;
    for round in 0..20 {
        let gate = gate(directory.path(), &clock);
        let permit = permit(&gate).await;
        assert!(permit.fencing_token() > last, "round {round}");
        last = permit.fencing_token();
        permit.succeed(1).await.unwrap();
        if round % 5 == 4 {
            fs::remove_file(lock_path(directory.path())).unwrap();
        }
        clock.set(|now| now.unix -= Duration::from_secs(60));
    }
}

#[tokio::test]
async fn a_person_can_read_the_lock_file() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    fail_once(&gate).await;
    let held = permit(&gate).await;
    let text = fs::read_to_string(lock_path(directory.path())).unwrap();
    let pid = std::process::id();
    let token = held.fencing_token();
    for line in [
        "window 1800000000.000/5000.000 2".to_owned(),
        format!("holder {pid} 1800000000.000/5000.000"),
        format!("launch {token}"),
        "failed 1800000000.000/5000.000 no such program".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let report = inspect_spawn_lock(lock_path(directory.path())).unwrap();
    assert!(report.is_held);
    assert_eq!(report.holder().unwrap().pid, pid);
}
