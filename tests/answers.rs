//! Callers that wait for a spawn lock and are answered by its ledger (promises 16, 21 and 34): nobody misses an answer, and an answer
//! keeps nobody from the lock, nor past the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spawn_gate::admin::LedgerReading;
use spawn_gate::error::BoxError;
use spawn_gate::lock::{LockRequest, SpawnLock, TryAcquire};
use spawn_gate::{
    Acquired, BackendLauncher, FileSpawnLock, How, SpawnGate, SpawnLockError, acquire_spawn_lock,
    async_trait, launcher_fn,
};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

const KEY: &str = "indexer";

type Gate = SpawnGate<&'static str, u32>;

/// A lock that somebody else holds whenever it is tried.
#[derive(Clone, Debug)]
struct Held {
    /// The ledger has this text with the number of the try in place of `N`.
    text: &'static str,
    /// Whether it answers callers that wait; otherwise it leaves them to find out.
    answers: bool,
    tries: Arc<AtomicU64>,
}

impl Held {
    fn with(text: &'static str, answers: bool) -> Self {
        let tries = Arc::default();
        Self {
            text,
            answers,
            tries,
        }
    }

    fn tries(&self) -> u64 {
        self.tries.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl SpawnLock<&'static str> for Held {
    async fn try_acquire(
        &self,
        key: &&'static str,
        request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        let number = 1 + self.tries.fetch_add(1, Ordering::SeqCst);
        assert!(number < 10_000, "it spins");
        let text = self.text.replace('N', &number.to_string());
        let ledger = LedgerReading::Found(Box::new(text.parse().unwrap()));
        let lock = key.into();
        Ok(match self.answers && request.is_answered_by(&ledger) {
            true => TryAcquire::Answered(ledger),
            false => TryAcquire::Held { lock, ledger },
        })
    }

    fn keeps_ledger(&self) -> bool {
        true
    }
}

/// Finds nothing, and takes that long for it.
fn finds_nothing(look: Duration) -> impl BackendLauncher<&'static str, u32> {
    launcher_fn(
        move |_| async move {
            sleep(look).await;
            Ok::<_, BoxError>(None)
        },
        |_| async { Ok(7) },
    )
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_told_of_a_new_launch_by_each_try_ends_at_the_lock_deadline() {
    const LIMIT: Duration = Duration::from_secs(1);
    for answers in [true, false] {
        for look in [Duration::ZERO, Duration::from_millis(50)] {
            let lock = Held::with("launch N\noutcome N launched 1.000\n", answers);
            let gate = Gate::builder(lock.clone()).lock_timeout(LIMIT).build();
            let began = Instant::now();
            let error = gate.launch(KEY, finds_nothing(look)).await.unwrap_err();
            assert_eq!(error.error_type(), "lock_timeout");
            // The time is counted from the end of the first look, and a look can be in progress when it is over.
            let took = began.elapsed() - look;
            assert!((LIMIT..=LIMIT + look).contains(&took), "{took:?}");
            assert!((2..200).contains(&lock.tries()), "{}", lock.tries());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_ends_by_the_lock_deadline_is_joined() {
    /// The lock tells of no release, so this try is the one at the deadline.
    #[derive(Debug)]
    struct Silent(Held);

    #[async_trait]
    impl SpawnLock<&'static str> for Silent {
        async fn try_acquire(
            &self,
            key: &&'static str,
            request: LockRequest,
        ) -> Result<TryAcquire, SpawnLockError> {
            self.0.try_acquire(key, request).await
        }

        async fn released(&self, _: &&'static str, _: Duration) {
            std::future::pending().await
        }

        fn keeps_ledger(&self) -> bool {
            true
        }
    }

    for answers in [true, false] {
        let lock = Held::with("launch N\noutcome N launched 1.000\n", answers);
        // A wait takes a second at most.
        let limit = Duration::from_millis(900);
        let gate = Gate::builder(Silent(lock.clone()))
            .lock_timeout(limit)
            .build();
        let tries = move || lock.tries();
        let launcher = launcher_fn(
            move |_| {
                let found = (tries() == 2).then_some(9);
                async move { Ok::<_, BoxError>(found) }
            },
            |_| async { Ok(7) },
        );
        let began = Instant::now();
        let joined = gate.launch(KEY, launcher).await.unwrap();
        assert_eq!((joined.how, began.elapsed()), (How::Discovered, limit));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_last_is_known_of_the_budget_after_a_wait_in_vain() {
    let lock = Held::with("launch 1\nwindow 9000000000.000 N\n", true);
    let gate = Gate::builder(lock.clone())
        .lock_timeout(Duration::from_secs(1))
        .build();
    assert!(gate.acquire(KEY).await.is_err());
    let used = gate.snapshot(KEY).await.budget.attempts_used;
    assert_eq!(u64::from(used), lock.tries());
}

/// A lock file that tells of a release when the test says so.
#[derive(Clone, Debug)]
struct Told {
    file: FileSpawnLock,
    /// Otherwise each try is like a first one.
    answers: bool,
    may_go_on: Arc<Semaphore>,
    waits: Arc<AtomicU64>,
}

impl Told {
    fn new(file: FileSpawnLock, answers: bool) -> Self {
        Self {
            file,
            answers,
            may_go_on: Arc::new(Semaphore::new(0)),
            waits: Arc::default(),
        }
    }

    /// Returns once a caller has begun so many waits.
    async fn has_waited(&self, times: u64) {
        while self.waits.load(Ordering::SeqCst) < times {
            yield_now().await;
        }
    }
}

#[async_trait]
impl SpawnLock<&'static str> for Told {
    async fn try_acquire(
        &self,
        key: &&'static str,
        mut request: LockRequest,
    ) -> Result<TryAcquire, SpawnLockError> {
        request.is_waiting &= self.answers;
        self.file.try_acquire(key, request).await
    }

    fn keeps_ledger(&self) -> bool {
        true
    }

    async fn read_ledger(&self, key: &&'static str) -> Result<LedgerReading, SpawnLockError> {
        self.file.read_ledger(key).await
    }

    async fn released(&self, _: &&'static str, _: Duration) {
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.may_go_on.acquire().await.unwrap().forget();
    }
}

/// Finds a backend once there is one.
fn finds(is_up: &Arc<AtomicBool>) -> impl BackendLauncher<&'static str, u32> {
    let is_up = Arc::clone(is_up);
    launcher_fn(
        move |_| {
            let found = is_up.load(Ordering::SeqCst).then_some(9);
            async move { Ok::<_, BoxError>(found) }
        },
        |_| async { Ok(7) },
    )
}

#[tokio::test]
async fn a_caller_that_is_answered_and_finds_nothing_takes_the_free_lock_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = FileSpawnLock::new(directory.path()).unwrap();
    let other = Gate::builder(file.clone()).build();
    let Acquired::Led(permit) = other.acquire(KEY).await.unwrap() else {
        panic!("nobody else launches");
    };
    let lock = Told::new(file, true);
    let gate = Gate::builder(lock.clone()).build();
    let launcher = finds_nothing(Duration::ZERO);
    let waiting = tokio::spawn(async move { gate.launch(KEY, launcher).await });
    lock.has_waited(1).await;
    // The backend is gone when the waiter looks.
    permit.succeed(1).await.unwrap();
    lock.may_go_on.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap().how, How::Led);
    assert_eq!(lock.waits.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_look_while_somebody_without_a_ledger_had_the_lock_does_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let file = FileSpawnLock::new(directory.path()).unwrap();
    let other = Gate::builder(file.clone()).build();
    let Acquired::Led(permit) = other.acquire(KEY).await.unwrap() else {
        panic!("nobody else launches");
    };
    let lock = Told::new(file.clone(), false);
    let gate = Gate::builder(lock.clone()).build();
    let is_up = Arc::<AtomicBool>::default();
    let launcher = finds(&is_up);
    let waiting = tokio::spawn(async move { gate.launch(KEY, launcher).await });
    lock.has_waited(1).await;
    // The backend of this launch is gone when the waiter looks; meanwhile somebody else takes the lock and launches.
    permit.succeed(1).await.unwrap();
    let guard = acquire_spawn_lock(file.path_of(&KEY)).unwrap();
    lock.may_go_on.add_permits(1);
    lock.has_waited(2).await;
    is_up.store(true, Ordering::SeqCst);
    drop(guard);
    lock.may_go_on.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap().how, How::Discovered);
}
