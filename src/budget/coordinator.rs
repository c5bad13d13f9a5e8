//! The synchronous core as a public type: single flight and budget over a map of keys.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::decision::{Admission, BudgetUpdate, KeyState, Refusal};
use super::key_budget::{Settlement, Usage};
use super::policy::{BudgetPolicy, SpawnBudgetConfig, WindowKind};
use super::sweep::Sweep;
use crate::key::BackendKey;

/// Decides, for any number of keys, whether an attempt may begin now.
///
/// It takes no lock, reads no clock and starts nothing: the caller passes `now` in, launches when it gets a permit, and reports
/// the end with [`finish`](Self::finish). [`SpawnGate`](crate::SpawnGate) makes the same decisions, and adds waiting, sharing
/// and the spawn lock.
///
/// An attempt stays in flight until it is finished, also if its window ends before: a launch that takes longer than the window
/// never runs beside a second one. Keys with nothing in flight and nothing charged are forgotten.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use spawn_gate::{SpawnBeginError, SpawnBudgetConfig, SpawnCoordinator, SpawnOutcome};
///
/// let mut coordinator = SpawnCoordinator::with_config(SpawnBudgetConfig::new(1, Duration::from_secs(10)));
/// let now = Instant::now();
///
/// let permit = coordinator.try_begin("indexer", now)?;
/// assert_eq!(permit.attempt_number, 1);
/// assert_eq!(coordinator.try_begin("indexer", now), Err(SpawnBeginError::AlreadyInProgress));
///
/// coordinator.finish(&"indexer", SpawnOutcome::Failed, now);
/// let refused = coordinator.try_begin("indexer", now + Duration::from_secs(4));
/// assert_eq!(
///     refused,
///     Err(SpawnBeginError::BudgetExhausted { retry_after: Duration::from_secs(6), remaining: 0 }),
/// );
/// # Ok::<(), SpawnBeginError>(())
/// ```
#[derive(Debug)]
pub struct SpawnCoordinator<K = BackendKey> {
    policy: BudgetPolicy,
    keys: HashMap<K, KeyState>,
    last_attempt: NonZeroU64,
    sweep: Sweep,
}

impl<K: Clone + Eq + Hash> SpawnCoordinator<K> {
    /// Creates a coordinator with the default budget: 3 attempts in 30 seconds for each key.
    pub fn new() -> Self {
        Self::with_config(SpawnBudgetConfig::default())
    }

    /// Creates a coordinator with a budget of its own.
    pub fn with_config(config: SpawnBudgetConfig) -> Self {
        Self {
            policy: BudgetPolicy {
                config: SpawnBudgetConfig::new(config.max_attempts, config.window),
                ..BudgetPolicy::default()
            },
            keys: HashMap::new(),
            last_attempt: NonZeroU64::MIN,
            sweep: Sweep::default(),
        }
    }

    /// Sets how attempts age out. The default is [`WindowKind::Fixed`]. Call it before the first attempt.
    #[must_use]
    pub fn with_window_kind(mut self, kind: WindowKind) -> Self {
        self.policy.kind = kind;
        self
    }

    /// Makes a success reset the budget only once it is `stable_after` old and no launch of the key has ended since. By default,
    /// a success resets the budget at once.
    #[must_use]
    pub fn with_stable_after(mut self, stable_after: Duration) -> Self {
        self.policy.stable_after = Some(stable_after);
        self
    }

    /// Begins one attempt for `key` and charges it.
    ///
    /// # Errors
    ///
    /// [`SpawnBeginError::AlreadyInProgress`] while an attempt of this key is in flight: wait for its outcome.
    /// [`SpawnBeginError::BudgetExhausted`] if no attempt is left: retry after the time it names.
    pub fn try_begin(&mut self, key: K, now: Instant) -> Result<SpawnPermit<K>, SpawnBeginError> {
        self.forget_idle(now);
        let id = self.last_attempt.saturating_add(1);
        let state = self.keys.entry(key.clone()).or_default();
        match state.enter(&self.policy, id, false, now) {
            Admission::Follow(_) => return Err(SpawnBeginError::AlreadyInProgress),
            Admission::Refuse(refusal) | Admission::Look(refusal) => return Err(refusal.into()),
            Admission::Lead => {}
        }
        let attempt = state.charge(&self.policy, false, now)?;
        self.last_attempt = id;
        Ok(SpawnPermit {
            key,
            attempt_number: attempt.number,
            remaining_after_begin: attempt.remaining,
        })
    }

    /// Ends the attempt of `key` that is in flight, whichever it is. Does nothing if none is in flight.
    ///
    /// If a caller may report late, when its attempt has ended and another has begun, use
    /// [`finish_attempt`](Self::finish_attempt).
    pub fn finish(&mut self, key: &K, outcome: SpawnOutcome, now: Instant) {
        if let Some(attempt) = self.attempt_in_flight(key) {
            self.finish_attempt(key, attempt, outcome, now);
        }
    }

    /// Returns the attempt of `key` that is in flight.
    pub fn attempt_in_flight(&self, key: &K) -> Option<AttemptId> {
        self.keys.get(key)?.in_flight().map(AttemptId)
    }

    /// Ends one attempt of `key`. Returns false and changes nothing if that attempt is not in flight.
    ///
    /// ```
    /// use std::time::Instant;
    /// use spawn_gate::{SpawnCoordinator, SpawnOutcome};
    ///
    /// let now = Instant::now();
    /// let mut coordinator = SpawnCoordinator::new();
    /// coordinator.try_begin("indexer", now)?;
    /// let elder = coordinator.attempt_in_flight(&"indexer").unwrap();
    /// coordinator.finish(&"indexer", SpawnOutcome::Failed, now);
    ///
    /// coordinator.try_begin("indexer", now)?;
    /// assert!(!coordinator.finish_attempt(&"indexer", elder, SpawnOutcome::Success, now));
    /// assert!(coordinator.snapshot("indexer", now).in_flight);
    /// # Ok::<(), spawn_gate::SpawnBeginError>(())
    /// ```
    pub fn finish_attempt(
        &mut self,
        key: &K,
        attempt: AttemptId,
        outcome: SpawnOutcome,
        now: Instant,
    ) -> bool {
        self.settle(key, attempt, outcome.into(), now)
    }

    /// Refunds one attempt of `key` that never reached a launch. Returns false and changes nothing if that attempt is not in
    /// flight.
    pub fn refund(&mut self, key: &K, attempt: AttemptId, now: Instant) -> bool {
        self.settle(key, attempt, Settlement::Refund, now)
    }

    /// Resets the budget of `key`, for an operator. An attempt in flight stays in flight.
    pub fn reset(&mut self, key: &K) {
        if let Some(state) = self.keys.get_mut(key) {
            // There is no ledger here, so the time of the reset does not matter.
            state.reset_count();
            if state.in_flight().is_none() {
                self.keys.remove(key);
            }
        }
    }

    /// Returns what `key` has used and has left.
    pub fn snapshot(&mut self, key: K, now: Instant) -> SpawnBudgetSnapshot<K> {
        match self.keys.get(&key) {
            Some(state) => self.snapshot_of(key, state, now),
            None => self.snapshot_of(key, &KeyState::default(), now),
        }
    }

    /// Returns a snapshot of every key that has an attempt charged or in flight, in no particular order.
    pub fn snapshots(&self, now: Instant) -> Vec<SpawnBudgetSnapshot<K>> {
        let live = self
            .keys
            .iter()
            .filter(|(_, state)| !state.is_idle(&self.policy, now));
        live.map(|(key, state)| self.snapshot_of(key.clone(), state, now))
            .collect()
    }

    fn snapshot_of(&self, key: K, state: &KeyState, now: Instant) -> SpawnBudgetSnapshot<K> {
        let usage = state.usage(&self.policy, now);
        SpawnBudgetSnapshot::new(key, usage, state.in_flight().is_some())
    }

    fn forget_idle(&mut self, now: Instant) {
        if !self.sweep.is_due(self.policy.config.window, now) {
            return;
        }
        let policy = self.policy;
        self.keys.retain(|_, state| !state.is_idle(&policy, now));
        let (left, capacity) = (self.keys.len(), self.keys.capacity());
        if let Some(capacity) = self.sweep.swept(left, capacity) {
            self.keys.shrink_to(capacity);
        }
    }

    /// Settles one attempt, and forgets the key if it is then idle.
    fn settle(
        &mut self,
        key: &K,
        AttemptId(attempt): AttemptId,
        settlement: Settlement,
        now: Instant,
    ) -> bool {
        let Some(state) = self.keys.get_mut(key) else {
            return false;
        };
        let update = BudgetUpdate::Settle {
            settlement,
            reason: None,
            launch: attempt.get(),
            now,
        };
        let settled = state.end(&self.policy, attempt, false, update);
        if state.is_blank() {
            self.keys.remove(key);
        }
        settled
    }
}

impl<K: Clone + Eq + Hash> Default for SpawnCoordinator<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to launch that [`SpawnCoordinator::try_begin`] gives: its attempt is charged and in flight.
///
/// Only [`SpawnCoordinator::finish`] ends the attempt; dropping this value does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnPermit<K = BackendKey> {
    /// The key that may be launched.
    pub key: K,
    /// The attempt's place in its window, from 1.
    pub attempt_number: u32,
    /// Attempts left after this one.
    pub remaining_after_begin: u32,
}

/// Names one attempt of a [`SpawnCoordinator`]; never used twice by the same coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId(NonZeroU64);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnOutcome {
    /// The backend runs. Resets the key's budget.
    Success,
    /// The backend does not run. The attempt stays charged.
    Failed,
}

impl From<SpawnOutcome> for Settlement {
    fn from(outcome: SpawnOutcome) -> Self {
        match outcome {
            SpawnOutcome::Success => Self::Success,
            SpawnOutcome::Failed => Self::Failed,
        }
    }
}

/// Why no attempt began.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpawnBeginError {
    /// An attempt of this key is in flight. Wait for its outcome instead of retrying.
    #[error("a launch of this backend is already in progress")]
    AlreadyInProgress,
    /// The key has used all its attempts. A retry helps after `retry_after`.
    #[error("the spawn budget is used up; retry after {retry_after:?}")]
    BudgetExhausted {
        /// Time until an attempt is free again; never more than the window.
        retry_after: Duration,
        /// Attempts left now: always zero.
        remaining: u32,
    },
}

impl From<Refusal> for SpawnBeginError {
    fn from(refusal: Refusal) -> Self {
        Self::BudgetExhausted {
            retry_after: refusal.retry_after,
            remaining: 0,
        }
    }
}

/// What a key has used of its budget, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SpawnBudgetSnapshot<K = BackendKey> {
    /// The key.
    pub key: K,
    /// Attempts charged that still count.
    pub attempts_used: u32,
    /// Attempts left.
    pub remaining: u32,
    /// Whether an attempt is in flight.
    pub in_flight: bool,
    /// Time until an attempt is free again, when none is left.
    pub retry_after: Option<Duration>,
}

/// Rounds up, so that a caller that waits for it is not too early.
pub(crate) fn whole_millis(time: Duration) -> Duration {
    let nanos = time.subsec_nanos().next_multiple_of(1_000_000);
    Duration::from_secs(time.as_secs()).saturating_add(Duration::from_nanos(nanos.into()))
}

/// `3 of 3 attempts used, retry after 12.5s`
impl<K> fmt::Display for SpawnBudgetSnapshot<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.attempts_used.saturating_add(self.remaining);
        write!(f, "{} of {all} attempts used", self.attempts_used)?;
        match self.retry_after {
            Some(retry_after) => write!(f, ", retry after {:?}", whole_millis(retry_after)),
            None => Ok(()),
        }
    }
}

impl<K> SpawnBudgetSnapshot<K> {
    pub(crate) fn new(key: K, usage: Usage, in_flight: bool) -> Self {
        Self {
            key,
            attempts_used: usage.used,
            remaining: usage.remaining,
            in_flight,
            retry_after: usage.retry_after,
        }
    }
}
