//! How a gate is built.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::SpawnGate;
use crate::budget::{BudgetPolicy, SharedClock, SpawnBudgetConfig, SystemClock, WindowKind};
use crate::flight::{Registry, Shared, Timeouts};
use crate::key::GateKey;
use crate::ledger::MAX_SLIDING_ATTEMPTS;
use crate::lock::SpawnLock;

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
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
    ///
    /// If the lock keeps a ledger, all processes that share it should use the same budget: each counts what is written there by
    /// its own, so a shorter window in one of them lets all begin anew.
    pub fn budget(mut self, config: SpawnBudgetConfig) -> Self {
        self.policy.config = SpawnBudgetConfig::new(config.max_attempts, config.window);
        self
    }

    /// Sets how attempts age out. [`WindowKind::Fixed`] unless set.
    ///
    /// If the lock keeps a ledger, a sliding window holds at most 24 attempts, for which that has room; more count as 24.
    pub fn window_kind(mut self, kind: WindowKind) -> Self {
        self.policy.kind = kind;
        self
    }

    /// Lets a success reset the budget only after this time without another launch of the key, against a backend that
    /// starts well and dies at once, again and again. Unless set, a success resets the budget at once, and such a backend is
    /// launched again whenever it is asked for.
    ///
    /// A backend that ends in an orderly way before that is best reported, with [`SpawnGate::backend_ended`]: else the launch
    /// after it counts as one more attempt.
    pub fn stable_after(mut self, stable_after: Duration) -> Self {
        self.policy.stable_after = Some(stable_after);
        self
    }

    /// Sets how long the leader waits for the spawn lock. Unless set: as long as another process may take to discover and
    /// launch, and 10 seconds more. Even with no time, the lock is tried once. If a lock is lost and taken again, one deadline
    /// covers both waits.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.lock_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets how long [`BackendLauncher::discover`](crate::BackendLauncher::discover) may take. 10 seconds unless set.
    pub fn discover_timeout(mut self, limit: Duration) -> Self {
        self.discover_timeout = at_most_a_year(limit);
        self
    }

    /// Sets how long [`BackendLauncher::launch`](crate::BackendLauncher::launch) may take. 120 seconds unless set.
    ///
    /// Choose it longer than the slowest start: what is given up as too slow may still come up, beside its successor.
    pub fn launch_timeout(mut self, limit: Duration) -> Self {
        self.launch_timeout = at_most_a_year(limit);
        self
    }

    /// Sets how long a request waits for the outcome of a flight, its own of [`SpawnGate::launch`] included. Unless set: as
    /// long as all stages of a flight may take together.
    ///
    /// The flight goes on when a follower gives up.
    pub fn follow_timeout(mut self, limit: Duration) -> Self {
        self.follow_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets how long [`SpawnGate::close`] waits. Unless set: as long as all stages of a flight may take together.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = Some(at_most_a_year(limit));
        self
    }

    /// Sets the clock by which windows are measured in a ledger, for tests. [`SystemClock`](crate::SystemClock) unless set.
    pub fn clock(mut self, clock: impl SharedClock) -> Self {
        self.clock = Arc::new(clock);
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
        let stages = lock + launch;
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

/// Added to a default wait for others' stages, so that it does not end just before they do.
const MARGIN: Duration = Duration::from_secs(10);

/// Keeps sums of limits and clocks far from overflow: a year is as good as for ever.
fn at_most_a_year(limit: Duration) -> Duration {
    limit.min(Duration::from_secs(365 * 24 * 60 * 60))
}
