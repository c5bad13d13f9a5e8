//! The budget of one key: a pure state machine. Every method takes `now`; nothing here reads a clock, locks or waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Attempts that a key has in one window unless configured otherwise.
pub const DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW: u32 = 3;

/// Length of the budget's window unless configured otherwise.
pub const DEFAULT_SPAWN_BUDGET_WINDOW: Duration = Duration::from_secs(30);

/// How many attempts a key has, and in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnBudgetConfig {
    /// Most attempts in one window. Zero counts as 1.
    pub max_attempts: u32,
    /// Length of the window. Zero counts as one millisecond.
    pub window: Duration,
}

impl SpawnBudgetConfig {
    /// Creates a configuration; zero attempts become 1, a zero window becomes one millisecond.
    ///
    /// ```
    /// use std::time::Duration;
    /// use spawn_gate::SpawnBudgetConfig;
    ///
    /// let config = SpawnBudgetConfig::new(0, Duration::ZERO);
    /// assert_eq!((config.max_attempts, config.window), (1, Duration::from_millis(1)));
    /// ```
    pub fn new(max_attempts: u32, window: Duration) -> Self {
        Self {
            max_attempts: max_attempts.max(1),
            window: if window.is_zero() {
                Duration::from_millis(1)
            } else {
                window
            },
        }
    }
}

impl Default for SpawnBudgetConfig {
    /// Returns 3 attempts in 30 seconds.
    fn default() -> Self {
        Self::new(
            DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW,
            DEFAULT_SPAWN_BUDGET_WINDOW,
        )
    }
}

/// How attempts age out of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowKind {
    /// A window opens with the first attempt and is forgotten as a whole when it ends. Cheap, but across the edge between
    /// two windows it can let through twice the maximum.
    #[default]
    Fixed,
    /// Each attempt ages out by itself, one window after it was charged: never more than the maximum in any span of that
    /// length.
    Sliding,
}

/// Why an attempt was refused, and when the next one may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetRefusal {
    /// Time until an attempt is free again; never more than the window.
    pub retry_after: Duration,
    /// Attempts left now: always zero.
    pub remaining: u32,
    /// True for the first refusal since the budget ran out: the one worth a log line or an alarm.
    pub first: bool,
}

/// All that decides how a key's budget behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BudgetPolicy {
    pub(crate) config: SpawnBudgetConfig,
    pub(crate) kind: WindowKind,
    /// A success resets the budget only after this long; `None`: at once.
    pub(crate) stable_after: Option<Duration>,
}

/// One charge against a key's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Tells this attempt from every other of its table, so that a stale settling is recognised.
    pub(crate) id: u64,
    /// Place inside its window, from 1.
    pub(crate) number: u32,
    /// What was left right after it was charged.
    pub(crate) remaining: u32,
    charged_at: Instant,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The launch succeeded.
    Success,
    /// The launch failed, or something may have been started: the attempt stays charged.
    Failed,
    /// No launch was reached: the attempt is given back.
    Refund,
}

/// What a key has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: u32,
    pub(crate) remaining: u32,
    pub(crate) in_flight: bool,
    pub(crate) retry_after: Option<Duration>,
}

/// The budget of one key and the attempt that is in flight.
///
/// Invariants: at most one attempt is in flight; only its own settling ends it, never the end of a window; charges are in
/// order of time, and the attempt in flight is the newest of them unless its window has ended meanwhile.
#[derive(Debug, Default)]
pub(crate) struct KeyBudget {
    charges: Charges,
    in_flight: Option<Attempt>,
    /// A success that has yet to prove stable, and since when.
    up_since: Option<Instant>,
    /// Whether a caller was already refused since the last charge.
    refused: bool,
}

impl KeyBudget {
    /// Charges one attempt, if one is left. Only for a key with none in flight, and with an `id` that is new for it.
    pub(crate) fn begin(
        &mut self,
        policy: &BudgetPolicy,
        id: u64,
        now: Instant,
    ) -> Result<Attempt, BudgetRefusal> {
        debug_assert!(self.in_flight.is_none(), "two attempts of one key");
        self.forget_aged(policy, now);
        if let Some(retry_after) = self.charges.retry_after(policy, now) {
            return Err(BudgetRefusal {
                retry_after,
                remaining: 0,
                first: !std::mem::replace(&mut self.refused, true),
            });
        }
        self.refused = false;
        self.charges.push(policy.kind, now);
        let used = self.charges.used();
        let attempt = Attempt {
            id,
            number: used,
            remaining: policy.config.max_attempts.saturating_sub(used),
            charged_at: now,
        };
        self.in_flight = Some(attempt);
        Ok(attempt)
    }

    /// Ends the attempt `id`. Returns false, and changes nothing, if it is not the one in flight.
    pub(crate) fn settle(
        &mut self,
        policy: &BudgetPolicy,
        id: u64,
        settlement: Settlement,
        now: Instant,
    ) -> bool {
        let Some(attempt) = self.in_flight.take_if(|attempt| attempt.id == id) else {
            return false;
        };
        match settlement {
            Settlement::Success => match policy.stable_after {
                None => self.reset(),
                Some(_) => self.up_since = Some(now),
            },
            Settlement::Failed => self.up_since = None,
            Settlement::Refund => self.charges.refund(attempt.charged_at),
        }
        true
    }

    /// Ends whichever attempt is in flight, for callers who know their key only.
    pub(crate) fn settle_any(
        &mut self,
        policy: &BudgetPolicy,
        settlement: Settlement,
        now: Instant,
    ) -> bool {
        match self.in_flight {
            Some(attempt) => self.settle(policy, attempt.id, settlement, now),
            None => false,
        }
    }

    /// Whether the last launch succeeded and has yet to prove stable: the backend may be running.
    pub(crate) fn may_be_up(&self) -> bool {
        self.up_since.is_some()
    }

    /// Notes that the backend of the last success was looked for and is gone.
    pub(crate) fn found_down(&mut self) {
        self.up_since = None;
    }

    /// Forgets what was used. An attempt in flight stays in flight and settles as usual.
    pub(crate) fn reset(&mut self) {
        self.charges = Charges::default();
        self.up_since = None;
        self.refused = false;
    }

    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: Instant) -> Usage {
        let used = if self.is_reset_due(policy, now) {
            0
        } else {
            self.charges.used_at(policy, now)
        };
        let remaining = policy.config.max_attempts.saturating_sub(used);
        Usage {
            used,
            remaining,
            in_flight: self.in_flight.is_some(),
            retry_after: (remaining == 0)
                .then(|| self.charges.retry_after(policy, now))
                .flatten(),
        }
    }

    /// The attempt in flight.
    pub(crate) fn in_flight(&self) -> Option<u64> {
        self.in_flight.map(|attempt| attempt.id)
    }

    /// Whether nothing was charged and nothing is in flight, aged or not: cheaper than [`is_idle`](Self::is_idle).
    pub(crate) fn is_blank(&self) -> bool {
        self.in_flight.is_none() && self.charges.used() == 0
    }

    /// Whether nothing would be lost by forgetting this key.
    pub(crate) fn is_idle(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        self.in_flight.is_none() && self.usage(policy, now).used == 0
    }

    fn forget_aged(&mut self, policy: &BudgetPolicy, now: Instant) {
        if self.is_reset_due(policy, now) {
            self.reset();
        }
        self.charges.forget_aged(policy, now);
    }

    /// Whether the last success has proved stable. An attempt in flight leaves that open: it began before, so either it
    /// finds the backend running and is refunded, or the backend was down too soon.
    fn is_reset_due(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        match (self.up_since, policy.stable_after) {
            (Some(since), Some(stable_after)) => {
                self.in_flight.is_none() && elapsed(since, now) >= stable_after
            }
            _ => false,
        }
    }
}

/// The attempts that still count.
#[derive(Debug, Default)]
enum Charges {
    #[default]
    None,
    Fixed {
        window_began: Instant,
        used: u32,
    },
    Sliding(VecDeque<Instant>),
}

impl Charges {
    fn used(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Fixed { used, .. } => *used,
            Self::Sliding(times) => u32::try_from(times.len()).unwrap_or(u32::MAX),
        }
    }

    /// What is used once everything that has aged by `now` is left out.
    fn used_at(&self, policy: &BudgetPolicy, now: Instant) -> u32 {
        let window = policy.config.window;
        match self {
            Self::Fixed { window_began, .. } if elapsed(*window_began, now) >= window => 0,
            Self::Sliding(times) => {
                let aged = times.partition_point(|&at| elapsed(at, now) >= window);
                u32::try_from(times.len() - aged).unwrap_or(u32::MAX)
            }
            _ => self.used(),
        }
    }

    fn forget_aged(&mut self, policy: &BudgetPolicy, now: Instant) {
        if self.used_at(policy, now) == 0 {
            *self = Self::None;
        } else if let Self::Sliding(times) = self {
            let aged = times.partition_point(|&at| elapsed(at, now) >= policy.config.window);
            times.drain(..aged);
        }
    }

    /// How long until an attempt is free; `None` if one is free now. Call it on charges that have not aged.
    fn retry_after(&self, policy: &BudgetPolicy, now: Instant) -> Option<Duration> {
        let max = policy.config.max_attempts;
        if self.used() < max {
            return None;
        }
        let freed_by = match self {
            Self::None => return None,
            Self::Fixed { window_began, .. } => *window_began,
            // The newest `max` of them must shrink by one.
            Self::Sliding(times) => times[times.len() - max as usize],
        };
        Some(policy.config.window.saturating_sub(elapsed(freed_by, now)))
    }

    fn push(&mut self, kind: WindowKind, now: Instant) {
        match (&mut *self, kind) {
            (Self::Fixed { used, .. }, WindowKind::Fixed) => *used = used.saturating_add(1),
            (Self::Sliding(times), WindowKind::Sliding) => {
                // Callers read the clock before they queue for the table, so `now` can be a little behind.
                let now = times.back().map_or(now, |&last| last.max(now));
                times.push_back(now);
            }
            (_, WindowKind::Fixed) => {
                *self = Self::Fixed {
                    window_began: now,
                    used: 1,
                }
            }
            (_, WindowKind::Sliding) => *self = Self::Sliding(VecDeque::from([now])),
        }
    }

    /// Takes back the newest charge, unless the window it was made in has ended.
    fn refund(&mut self, charged_at: Instant) {
        match self {
            Self::None => {}
            Self::Fixed { window_began, used } => {
                if charged_at >= *window_began {
                    *used = used.saturating_sub(1);
                }
            }
            Self::Sliding(times) => {
                if times.back().is_some_and(|&last| last >= charged_at) {
                    times.pop_back();
                }
            }
        }
        if self.used() == 0 {
            *self = Self::None;
        }
    }
}

fn elapsed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}
