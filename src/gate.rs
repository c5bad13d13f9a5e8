//! The gate: what callers await.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::budget::{BudgetPolicy, SpawnBudgetConfig, WindowKind};
use crate::clock::{SharedClock, SystemClock};
use crate::coordinator::SpawnBudgetSnapshot;
use crate::error::{GateError, LockError, Stage, TimeoutError};
use crate::flight::{Claim, Flight, Outcome};
use crate::handover::{Earned, off_caller};
use crate::held::Held;
use crate::inner::{Inner, Part, Timeouts};
use crate::key::{GateKey, key_label};
use crate::launcher::{BackendLauncher, How, Launched};
use crate::lead::{earn_permit, lead};
use crate::lock::{FileSpawnLock, LockHolder, SpawnLock, SpawnLockError};
use crate::lock_wait::LockWait;
use crate::open_ledger;
use crate::permit::{LaunchPermit, Seat};
use crate::table::{Look, Table};

/// Starts each backend once, however many callers ask for it.
///
/// For a key that is not being launched, one caller becomes the leader; everybody else who asks meanwhile follows and
/// hears the same outcome, value or error. Failures are counted against a budget, and when it is used up callers are
/// refused at once and told when to retry. While it launches, the leader holds the key's spawn lock, so that another
/// process does not launch too.
///
/// The gate does not remember the backends it launched: ask it when you have none that works.
///
/// Handles are cheap to clone, and all clones are one gate. It needs a tokio runtime with time enabled; all its waiting
/// goes by tokio's clock, so tests can pause it.
///
/// # Cancel safety
///
/// Cancel safe means here: if the future is dropped at any point, no other caller is left waiting for it, no lock stays held
/// for it, and no attempt stays charged but for a launch that was made. Each method says what else goes on.
///
/// # Examples
///
/// ```
/// use spawn_gate::{Acquired, InMemorySpawnLock, SpawnGate};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), spawn_gate::GateError> {
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// let port = match gate.acquire("indexer".to_owned()).await? {
///     Acquired::Led(permit) => {
///         let port = 7201; // start it here
///         permit.succeed(port).await?;
///         port
///     }
///     Acquired::Joined(port) => port,
/// };
/// assert_eq!(port, 7201);
/// # Ok(())
/// # }
/// ```
pub struct SpawnGate<K, T> {
    inner: Arc<Inner<K, T>>,
}

/// What [`SpawnGate::acquire`] returns.
#[derive(Debug)]
#[must_use = "dropping it abandons the launch, if this caller leads, and leaves its attempt charged"]
pub enum Acquired<K: GateKey, T> {
    /// This caller leads: launch the backend and settle the permit.
    Led(LaunchPermit<K, T>),
    /// Another caller launched or found it while this one waited.
    Joined(T),
}

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Creates a gate with all defaults, whose spawn locks are files in `lock_directory`. See [`FileSpawnLock::new`] for
    /// what is asked of the directory.
    ///
    /// It makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError`] if the directory cannot serve.
    pub fn new(lock_directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Ok(Self::builder(FileSpawnLock::new(lock_directory)?).build())
    }

    /// Starts to build a gate that uses `lock`.
    pub fn builder(lock: impl SpawnLock<K>) -> SpawnGateBuilder<K, T> {
        SpawnGateBuilder {
            yields: PhantomData,
            lock: Arc::new(lock),
            policy: BudgetPolicy::default(),
            lock_timeout: None,
            discover_timeout: Duration::from_secs(10),
            launch_timeout: Duration::from_secs(120),
            follow_timeout: None,
            drain_timeout: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Asks for the right to launch the backend of `key`, or for what another caller's launch yields.
    ///
    /// The leader gets its permit once the spawn lock is held; it drives the launch itself and settles the permit. For a
    /// launch that survives its caller, use [`launch`](Self::launch).
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken; its source tells whether a retry helps.
    /// - [`GateError::Timeout`]: the spawn lock was not free in time ([`Stage::Lock`]; the attempt was refunded), or
    ///   another caller's launch is not done in time ([`Stage::Follow`]; it goes on). A retry helps.
    /// - [`GateError::Launch`]: another caller's launch, which this one followed, failed. A retry makes another attempt.
    /// - [`GateError::Closed`]: the gate is closed. [`GateError::ShutDown`]: the runtime is.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A follower that is dropped is charged nothing. A leader that is dropped before it has its permit refunds
    /// its attempt, and one of its followers takes over; a try at the lock that is under way then finishes by itself and
    /// lets the lock go. A leader that is kept but not polled loses its permit to a follower if it does not come for it within
    /// two seconds. No backend can have been started by then. For the permit, see [`LaunchPermit`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub async fn acquire(&self, key: K) -> Result<Acquired<K, T>, GateError> {
        let mut follow_until = None;
        loop {
            let mut task_lost = false;
            let (flight, leads) = match self.inner.enter(&key, false).await? {
                Part::Follow(flight) => (flight, false),
                Part::Lead(flight) => {
                    let seat = self.seat(&key, Arc::clone(&flight));
                    match off_caller(earn_permit(seat, None)).await {
                        Earned::Permit(permit) => return Ok(Acquired::Led(permit)),
                        Earned::Nothing => {}
                        Earned::TaskLost => task_lost = true,
                    }
                    (flight, true)
                }
            };
            match self.follow(&key, &flight, leads, &mut follow_until).await? {
                Outcome::Launched(value) | Outcome::Discovered(value) => {
                    return Ok(Acquired::Joined(value));
                }
                Outcome::Failed(error) => return Err(error),
                Outcome::Vacated if task_lost => return Err(GateError::ShutDown),
                // Another leader is gone; or the permit was there, and this caller did not come for it in time.
                Outcome::Vacated => {}
            }
        }
    }

    /// Returns the backend of `key`: launches it with `launcher`, joins a launch in progress, or finds one running.
    ///
    /// The flight runs in a task of its own, on the runtime of the caller who leads it. Only the leader's launcher is used.
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken; its source tells whether a retry helps.
    /// - [`GateError::Timeout`]: a stage took too long; a retry helps. At [`Stage::Launch`] the attempt is charged, at
    ///   [`Stage::Follow`] the launch goes on.
    /// - [`GateError::Launch`]: the launch failed, for all callers alike. A retry makes another attempt.
    /// - [`GateError::Closed`]: the gate is closed. [`GateError::ShutDown`]: the runtime is.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Once a flight has begun, it goes on when any caller is dropped, the one that began it included: it is
    /// charged once, the followers hear its outcome, and a child can be running. So a client that connects and hangs up
    /// costs nothing more than the launch that it asked for.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled. A panic of the launcher is caught and shared as
    /// [`LaunchError::Panicked`](crate::LaunchError::Panicked).
    pub async fn launch(
        &self,
        key: K,
        launcher: impl BackendLauncher<K, T>,
    ) -> Result<Launched<T>, GateError> {
        let mut follow_until = None;
        let launcher: Arc<dyn BackendLauncher<K, T>> = Arc::new(launcher);
        loop {
            let (flight, leads) = match self.inner.enter(&key, true).await? {
                Part::Follow(flight) => (flight, false),
                Part::Lead(flight) => {
                    let seat = self.seat(&key, Arc::clone(&flight));
                    tokio::spawn(lead(seat, Arc::clone(&launcher)));
                    (flight, true)
                }
            };
            let (value, how) = match self.follow(&key, &flight, leads, &mut follow_until).await? {
                Outcome::Launched(value) => (value, How::Led),
                Outcome::Discovered(value) => (value, How::Discovered),
                Outcome::Failed(error) => return Err(error),
                // Only a runtime that shuts down drops the leader's task.
                Outcome::Vacated if leads => return Err(GateError::ShutDown),
                Outcome::Vacated => continue,
            };
            return Ok(Launched {
                value,
                how: if leads { how } else { How::Joined },
            });
        }
    }

    /// Returns what `key` has used of its budget, and its flight, if one is in progress.
    ///
    /// If the lock keeps a ledger, the budget is that of all processes, and read from there.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn snapshot(&self, key: K) -> KeySnapshot<K> {
        let inner = &*self.inner;
        let ledger = inner.peek(&key).await;
        let now = Instant::now();
        let mut look = inner.table.lock().await.look(&key, now);
        if let Some(ledger) = ledger {
            look.usage = open_ledger::usage(&ledger, &inner.policy, &*inner.clock);
        }
        KeySnapshot::new(key, &look, now)
    }

    /// Returns a snapshot of every key that has an attempt charged or a flight in progress, in no particular order, as far as
    /// this process knows; it reads no ledger.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn snapshots(&self) -> Vec<KeySnapshot<K>> {
        let mut table = self.inner.table.lock().await;
        let now = Instant::now();
        let all = table.look_at_all(now);
        drop(table);
        all.into_iter()
            .map(|(key, look)| KeySnapshot::new(key, &look, now))
            .collect()
    }

    /// Forgets what `key` has used, for an operator who has mended the cause. A flight in progress goes on, and its failure
    /// does not count.
    ///
    /// If the lock keeps a ledger, it is reset for all processes, for which this waits for the lock, so for a launch in
    /// progress, whosesoever it is. Other processes that are refusing requests notice it within a second.
    ///
    /// # Errors
    ///
    /// [`GateError::Lock`] if the lock cannot be taken or the ledger not be written, [`GateError::Timeout`] with
    /// [`Stage::Lock`] if the lock is not free in time. This process has forgotten its count all the same. A retry helps as
    /// with [`launch`](Self::launch).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the ledger is reset as a whole or not at all.
    pub async fn reset(&self, key: &K) -> Result<(), GateError> {
        let inner = &*self.inner;
        inner.table.lock().await.reset(key);
        if !inner.lock.keeps_ledger() {
            return Ok(());
        }
        let mut wait = LockWait::new(Instant::now() + inner.timeouts.lock);
        let lease = wait.take(inner, key, |_| {}).await?;
        let mut held = Held::new(lease, &inner.policy, &inner.clock);
        if let Some(ledger) = &mut held.ledger {
            ledger.reset();
        }
        let written = held.write_ledger().await;
        drop(held);
        // What a flight that ended meanwhile brought along is outdated.
        inner.table.lock().await.reset(key);
        written.map_err(|error| LockError::new(key_label(key), error).into())
    }

    /// Closes the gate: every request from now on is refused, and this call waits for the flights in progress to end.
    ///
    /// Followers that are waiting hear their flight's outcome. Calling it again, from any handle, waits again.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] with [`Stage::Drain`] if a flight has not ended in time; [`snapshots`](Self::snapshots) tells which. The
    /// gate stays closed; a retry waits on.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the gate stays closed, only the waiting ends.
    pub async fn close(&self) -> Result<(), TimeoutError> {
        let flights = self.inner.table.lock().await.close();
        let limit = self.inner.timeouts.drain;
        let deadline = Instant::now() + limit;
        for flight in flights {
            if flight.outcome(deadline).await.is_none() {
                return Err(TimeoutError {
                    key: None,
                    stage: Stage::Drain,
                    after: limit,
                    waiting_for: None,
                });
            }
        }
        Ok(())
    }

    fn seat(&self, key: &K, flight: Arc<Flight<T>>) -> Seat<K, T> {
        Seat {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            flight,
        }
    }

    /// Waits for a flight's outcome; `until` is set at the first wait of a request and holds for its further ones.
    async fn follow(
        &self,
        key: &K,
        flight: &Flight<T>,
        leads: bool,
        until: &mut Option<Instant>,
    ) -> Result<Outcome<T>, GateError> {
        let limit = self.inner.timeouts.follow;
        let deadline = *until.get_or_insert_with(|| Instant::now() + limit);
        match flight.outcome(deadline).await {
            Some(Outcome::Failed(GateError::BudgetExhausted(mut refusal))) if !leads => {
                refusal.first = false;
                Ok(Outcome::Failed(refusal.into()))
            }
            Some(Outcome::Vacated) if Instant::now() >= deadline => {
                Err(self.timed_out(key, flight))
            }
            Some(outcome) => Ok(outcome),
            None => Err(self.timed_out(key, flight)),
        }
    }

    fn timed_out(&self, key: &K, flight: &Flight<T>) -> GateError {
        TimeoutError {
            key: Some(key_label(key).into()),
            stage: Stage::Follow,
            after: self.inner.timeouts.follow,
            waiting_for: flight.progress().and_then(|(_, holder)| holder),
        }
        .into()
    }
}

impl<K, T> Clone for SpawnGate<K, T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K, T> fmt::Debug for SpawnGate<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnGate")
            .field("lock", &self.inner.lock)
            .finish_non_exhaustive()
    }
}

/// Builds a [`SpawnGate`]; made by [`SpawnGate::builder`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use spawn_gate::{InMemorySpawnLock, SpawnBudgetConfig, SpawnGate};
///
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new())
///     .budget(SpawnBudgetConfig::new(5, Duration::from_secs(60)))
///     .launch_timeout(Duration::from_secs(20))
///     .build();
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct SpawnGateBuilder<K, T> {
    yields: PhantomData<fn() -> T>,
    lock: Arc<dyn SpawnLock<K>>,
    policy: BudgetPolicy,
    lock_timeout: Option<Duration>,
    discover_timeout: Duration,
    launch_timeout: Duration,
    follow_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    clock: Arc<dyn SharedClock>,
}

impl<K, T> SpawnGateBuilder<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Sets how many attempts a key has, and in which time. 3 in 30 seconds unless set.
    pub fn budget(mut self, config: SpawnBudgetConfig) -> Self {
        self.policy.config = SpawnBudgetConfig::new(config.max_attempts, config.window);
        self
    }

    /// Sets how attempts age out. [`WindowKind::Fixed`] unless set.
    pub fn window_kind(mut self, kind: WindowKind) -> Self {
        self.policy.kind = kind;
        self
    }

    /// Lets a success reset the budget only after this time without another launch of the key, against a backend that
    /// starts well and dies at once, again and again. Unless set, a success resets the budget at once.
    ///
    /// While a success is younger than that, [`SpawnGate::launch`] looks for its backend before it refuses a request for
    /// want of attempts; [`SpawnGate::acquire`] cannot.
    pub fn stable_after(mut self, stable_after: Duration) -> Self {
        self.policy.stable_after = Some(stable_after);
        self
    }

    /// Sets how long the leader waits for the spawn lock. Unless set: as long as another process may take to discover and
    /// launch, and 10 seconds more. It is tried once in any case.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.lock_timeout = Some(bounded(limit));
        self
    }

    /// Sets how long [`BackendLauncher::discover`] may take. 10 seconds unless set.
    pub fn discover_timeout(mut self, limit: Duration) -> Self {
        self.discover_timeout = bounded(limit);
        self
    }

    /// Sets how long [`BackendLauncher::launch`] may take. 120 seconds unless set.
    ///
    /// Choose it longer than the slowest start: what is given up as too slow may still come up, beside its successor.
    pub fn launch_timeout(mut self, limit: Duration) -> Self {
        self.launch_timeout = bounded(limit);
        self
    }

    /// Sets how long a request waits for the outcome of a flight, its own of [`SpawnGate::launch`] included. Unless set: as long as all stages of a flight may take
    /// together.
    ///
    /// The flight goes on when a follower gives up.
    pub fn follow_timeout(mut self, limit: Duration) -> Self {
        self.follow_timeout = Some(bounded(limit));
        self
    }

    /// Sets how long [`SpawnGate::close`] waits. Unless set: as long as all stages of a flight may take together.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = Some(bounded(limit));
        self
    }

    /// Sets the clock by which windows are measured in a ledger, for tests. [`SystemClock`](crate::SystemClock) unless set.
    pub fn clock(mut self, clock: impl SharedClock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Builds the gate.
    pub fn build(self) -> SpawnGate<K, T> {
        let launch = self.discover_timeout + self.launch_timeout + MARGIN;
        let lock = self.lock_timeout.unwrap_or(launch);
        let stages = lock + launch;
        SpawnGate {
            inner: Arc::new(Inner {
                table: Mutex::new(Table::new(self.policy)),
                lock: self.lock,
                clock: self.clock,
                policy: self.policy,
                timeouts: Timeouts {
                    lock,
                    discover: self.discover_timeout,
                    launch: self.launch_timeout,
                    follow: self.follow_timeout.unwrap_or(stages),
                    drain: self.drain_timeout.unwrap_or(stages),
                },
            }),
        }
    }
}

impl<K, T> fmt::Debug for SpawnGateBuilder<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnGateBuilder")
            .field("lock", &self.lock)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// What the default of a wait for somebody else's stages has beyond these.
const MARGIN: Duration = Duration::from_secs(10);

/// Keeps sums of limits and clocks far from overflow: a year is as good as for ever.
fn bounded(limit: Duration) -> Duration {
    limit.min(Duration::from_secs(365 * 24 * 60 * 60))
}

/// A key's budget and flight, at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeySnapshot<K> {
    /// The budget.
    pub budget: SpawnBudgetSnapshot<K>,
    /// The flight in progress.
    pub flight: Option<FlightSnapshot>,
}

/// A flight in progress, at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightSnapshot {
    /// What it is doing: [`Stage::Lock`], [`Stage::Discover`] or [`Stage::Launch`].
    pub stage: Stage,
    /// How long it has been in progress.
    pub age: Duration,
    /// The attempt's place in its window, from 1; `None` if it may only look for a running backend.
    pub attempt_number: Option<u32>,
    /// Callers that wait for its outcome, the one that asked for the launch included.
    pub waiting: usize,
    /// Who holds the spawn lock, if it waits for that and the holder is known.
    pub waiting_for: Option<LockHolder>,
}

impl<K> KeySnapshot<K> {
    fn new<T>(key: K, look: &Look<T>, now: Instant) -> Self {
        let mut budget = SpawnBudgetSnapshot::new(key, look.usage);
        let flight = look.flight.as_ref().and_then(|flight| {
            let (stage, waiting_for) = flight.progress()?;
            Some(FlightSnapshot {
                stage,
                age: now.saturating_duration_since(flight.began),
                attempt_number: match flight.claim {
                    Claim::Launch(attempt) => Some(attempt.number),
                    Claim::Look(_) => None,
                },
                waiting: flight.follower_count(),
                waiting_for,
            })
        });
        budget.in_flight = flight.is_some();
        Self { budget, flight }
    }
}
