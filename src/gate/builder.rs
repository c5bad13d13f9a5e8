//! How a gate is built.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::SpawnGate;
use crate::budget::{BudgetPolicy, SharedClock, SpawnBudgetConfig, SystemClock, WindowKind};
use crate::flight::{OnWait, Registry, Shared, Timeouts, Waiting};
use crate::key::GateKey;
use crate::ledger::MAX_SLIDING_ATTEMPTS;
use crate::lock::SpawnLock;
use crate::statistics::Recorder;
use crate::util::at_most_a_year;

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Creates a builder for a gate that uses `lock`.
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
            on_wait: None,
        }
    }
}

/// Builds a [`SpawnGate`]. Created by [`SpawnGate::builder`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use spawn_gate::budget::SpawnBudgetConfig;
/// use spawn_gate::{InMemorySpawnLock, SpawnGate};
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
    on_wait: Option<OnWait>,
}

impl<K, T> SpawnGateBuilder<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Sets the maximum of attempts per key and the window. The default is 3 attempts in 30 seconds.
    ///
    /// If the lock keeps a ledger, all processes that share it should use the same budget: each applies its own to the shared
    /// count, so a shorter window in one of them resets the count for all.
    pub fn budget(mut self, config: SpawnBudgetConfig) -> Self {
        self.policy.config = SpawnBudgetConfig::new(config.max_attempts, config.window);
        self
    }

    /// Sets how attempts age out. The default is [`WindowKind::Fixed`].
    ///
    /// A ledger has room for 24 attempts of a sliding window; a larger maximum counts as 24.
    pub fn window_kind(mut self, kind: WindowKind) -> Self {
        self.policy.kind = kind;
        self
    }

    /// Makes a success reset the budget only after this time without another launch of the key. This stops a crash loop of a
    /// backend that starts well and dies soon after. By default, a success resets the budget at once.
    ///
    /// Report a backend that ends in an orderly way before this time with [`SpawnGate::backend_ended`]; otherwise its launch
    /// stays charged. `ProcessLauncher` (feature `process`) reports the ends that it can know by itself: of a backend that was
    /// stopped by it or is attached, and of a detached one that uses `Instance`.
    pub fn stable_after(mut self, stable_after: Duration) -> Self {
        self.policy.stable_after = Some(stable_after);
        self
    }

    /// Sets how long the leader waits for the spawn lock. The default is the discover timeout plus the launch timeout (the time
    /// that another process may take) plus 10 seconds. With zero, the lock is tried once. If the lock is lost and taken again,
    /// one deadline covers both waits.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.lock_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets how long [`BackendLauncher::discover`](crate::BackendLauncher::discover) may take. The default is 10 seconds.
    pub fn discover_timeout(mut self, limit: Duration) -> Self {
        self.discover_timeout = at_most_a_year(limit);
        self
    }

    /// Sets how long [`BackendLauncher::launch`](crate::BackendLauncher::launch) may take. The default is 120 seconds.
    ///
    /// Choose it longer than the slowest start: a backend that was given up as too slow may still come up beside the next one.
    pub fn launch_timeout(mut self, limit: Duration) -> Self {
        self.launch_timeout = at_most_a_year(limit);
        self
    }

    /// Sets how long a request waits for the outcome of a flight, also of one that it leads by [`SpawnGate::launch`]. The
    /// default is the time that all stages of a flight may take together.
    ///
    /// The flight continues when a caller gives up.
    pub fn follow_timeout(mut self, limit: Duration) -> Self {
        self.follow_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets how long [`SpawnGate::close`] waits. The default is the time that all stages of a flight may take together.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets the clock that measures windows in a ledger, for tests. The default is [`SystemClock`].
    pub fn clock(mut self, clock: impl SharedClock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets a hook that is called once a flight has waited for longer than a second: at most once for each flight and stage. Use
    /// it to show a person at a terminal what a command-line tool waits for.
    ///
    /// It is called in the flight's task, so it should not block. Its panic is caught. [`SpawnGate::launch`] shows long looks,
    /// launches and waits for the spawn lock, [`SpawnGate::acquire`] only such waits. A follower shows nothing of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{IsTerminal, stderr};
    /// use spawn_gate::{InMemorySpawnLock, SpawnGate};
    ///
    /// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new())
    ///     .on_wait(|waiting| {
    ///         if stderr().is_terminal() {
    ///             eprintln!("{waiting}");
    ///         }
    ///     })
    ///     .build();
    /// ```
    pub fn on_wait(mut self, hook: impl Fn(&Waiting) + Send + Sync + 'static) -> Self {
        self.on_wait = Some(OnWait::new(hook));
        self
    }

    /// Builds the gate.
    pub fn build(mut self) -> SpawnGate<K, T> {
        self.policy.is_in_ledger = self.lock.keeps_ledger();
        if self.policy.is_in_ledger && self.policy.kind == WindowKind::Sliding {
            let max_attempts = &mut self.policy.config.max_attempts;
            *max_attempts = (*max_attempts).min(MAX_SLIDING_ATTEMPTS);
        }
        let launch = self.discover_timeout + self.launch_timeout + MARGIN;
        let lock = self.lock_timeout.unwrap_or(launch);
        // The first look is made before the wait for the lock.
        let stages = self.discover_timeout + lock + launch;
        let follow = self.follow_timeout.unwrap_or(stages);
        let timeouts = Timeouts {
            lock,
            discover: self.discover_timeout,
            launch: self.launch_timeout,
            follow,
            drain: self.drain_timeout.unwrap_or(stages),
        };
        SpawnGate::of(Shared {
            registry: Registry::new(),
            lock: self.lock,
            clock: self.clock,
            policy: self.policy,
            timeouts,
            recorder: Recorder::new(),
            on_wait: self.on_wait,
        })
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

/// Added to a default wait for other stages, so that it does not end just before they do.
const MARGIN: Duration = Duration::from_secs(10);
