//! The budget of one key: a pure state machine. Every method takes `now`; nothing here reads a clock, locks or waits.

use std::iter::repeat_n;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::clock::TimePoint;

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
pub(crate) struct BudgetRefusal {
    /// Never more than the window.
    pub(crate) retry_after: Duration,
    /// Always zero.
    pub(crate) remaining: u32,
    /// Whether nobody was refused since the budget ran out.
    pub(crate) first: bool,
}

/// All that decides how a key's budget behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BudgetPolicy {
    pub(crate) config: SpawnBudgetConfig,
    pub(crate) kind: WindowKind,
    /// A success resets the budget only after this long; `None`: at once.
    pub(crate) stable_after: Option<Duration>,
    /// The count that decides is a ledger's, which other processes change too.
    pub(crate) is_in_ledger: bool,
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

/// The budget of one key and the attempt that is in flight, by a process's own clock or by the one that all share.
///
/// Invariants: at most one attempt is in flight; only its own settling ends it, never the end of a window; it is the newest
/// charge, unless the budget was reset meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyBudget<I = Instant> {
    pub(crate) charges: Charges<I>,
    /// The id of the attempt in flight.
    in_flight: Option<NonZeroU64>,
    /// A success that has yet to prove stable, and since when.
    pub(crate) up_since: Option<I>,
    /// Whether a caller was already refused since the last charge.
    refused: bool,
}

impl<I> Default for KeyBudget<I> {
    fn default() -> Self {
        Self {
            charges: Charges::None,
            in_flight: None,
            up_since: None,
            refused: false,
        }
    }
}

impl<I: TimePoint> KeyBudget<I> {
    /// Charges one attempt, if one is left. Only for a key with none in flight, and with an `id` that is new for it and not zero.
    pub(crate) fn begin(
        &mut self,
        policy: &BudgetPolicy,
        id: u64,
        now: I,
    ) -> Result<Attempt, BudgetRefusal> {
        debug_assert!(self.in_flight.is_none(), "two attempts of one key");
        self.forget_aged(policy, now);
        if let Some(retry_after) = self.charges.retry_after(policy, now) {
            return Err(BudgetRefusal {
                retry_after,
                remaining: 0,
                first: !self.refused,
            });
        }
        self.refused = false;
        self.charges.push(policy, now);
        let used = self.charges.used();
        let attempt = Attempt {
            id,
            number: used,
            remaining: policy.config.max_attempts.saturating_sub(used),
        };
        self.in_flight = NonZeroU64::new(id);
        Ok(attempt)
    }

    /// Notes that a caller heard a refusal: the next one is not the first.
    pub(crate) fn note_refused(&mut self) {
        self.refused = true;
    }

    /// Ends the attempt `id`. Returns false, and changes nothing, if it is not the one in flight.
    pub(crate) fn settle(
        &mut self,
        policy: &BudgetPolicy,
        id: u64,
        settlement: Settlement,
        now: I,
    ) -> bool {
        if self
            .in_flight
            .take_if(|attempt| attempt.get() == id)
            .is_none()
        {
            return false;
        }
        match settlement {
            Settlement::Success => match policy.stable_after {
                None => self.reset(),
                Some(_) => self.up_since = Some(now),
            },
            Settlement::Failed => self.up_since = None,
            Settlement::Refund => self.charges.take_back_newest(),
        }
        true
    }

    /// Ends whichever attempt is in flight, for callers who know their key only.
    pub(crate) fn settle_any(
        &mut self,
        policy: &BudgetPolicy,
        settlement: Settlement,
        now: I,
    ) -> bool {
        match self.in_flight {
            Some(id) => self.settle(policy, id.get(), settlement, now),
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
        self.charges = Charges::None;
        self.up_since = None;
        self.refused = false;
    }

    /// Counts the whole budget as used at `now`, for a key whose count was lost.
    pub(crate) fn use_up(&mut self, policy: &BudgetPolicy, now: I) {
        self.reset();
        let max = policy.config.max_attempts;
        self.charges = match policy.kind {
            WindowKind::Fixed => Charges::Fixed {
                window_began: now,
                used: max,
            },
            WindowKind::Sliding => Charges::Sliding(repeat_n(now, max as usize).collect()),
        };
    }

    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: I) -> Usage {
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

    /// Forgets that an attempt is in flight; what was charged for it stays.
    pub(crate) fn forget_in_flight(&mut self) {
        self.in_flight = None;
    }

    /// The attempt in flight.
    pub(crate) fn in_flight(&self) -> Option<u64> {
        self.in_flight.map(NonZeroU64::get)
    }

    /// Whether nothing was charged and nothing is in flight, aged or not: cheaper than [`is_idle`](Self::is_idle).
    pub(crate) fn is_blank(&self) -> bool {
        self.in_flight.is_none() && self.charges.used() == 0
    }

    /// Whether nothing would be lost by forgetting this key.
    pub(crate) fn is_idle(&self, policy: &BudgetPolicy, now: I) -> bool {
        self.in_flight.is_none() && self.usage(policy, now).used == 0
    }

    /// The same budget by another clock, without an attempt in flight.
    pub(crate) fn by_clock<J>(&self, convert: impl Fn(I) -> J) -> KeyBudget<J> {
        let charges = match &self.charges {
            Charges::None => Charges::None,
            Charges::Fixed { window_began, used } => Charges::Fixed {
                window_began: convert(*window_began),
                used: *used,
            },
            Charges::Sliding(times) => {
                Charges::Sliding(times.iter().copied().map(&convert).collect())
            }
        };
        KeyBudget {
            charges,
            in_flight: None,
            up_since: self.up_since.map(&convert),
            refused: self.refused,
        }
    }

    /// Drops what no longer counts.
    pub(crate) fn forget_aged(&mut self, policy: &BudgetPolicy, now: I) {
        if self.is_reset_due(policy, now) {
            self.reset();
        }
        self.charges.forget_aged(policy, now);
    }

    /// Whether the last success has proved stable. An attempt in flight leaves that open: it began before, so either it
    /// finds the backend running and is refunded, or the backend was down too soon.
    fn is_reset_due(&self, policy: &BudgetPolicy, now: I) -> bool {
        match (self.up_since, policy.stable_after) {
            (Some(since), Some(stable_after)) => {
                self.in_flight.is_none() && now.since(since) >= stable_after
            }
            _ => false,
        }
    }
}

/// The attempts that still count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Charges<I> {
    None,
    /// All made in one window.
    Fixed {
        window_began: I,
        used: u32,
    },
    /// When each was made, oldest first.
    Sliding(Box<[I]>),
}

impl<I: TimePoint> Charges<I> {
    fn used(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Fixed { used, .. } => *used,
            Self::Sliding(times) => u32::try_from(times.len()).unwrap_or(u32::MAX),
        }
    }

    /// What is used once everything that has aged by `now` is left out.
    fn used_at(&self, policy: &BudgetPolicy, now: I) -> u32 {
        let window = policy.config.window;
        match self {
            Self::Fixed { window_began, .. } if now.since(*window_began) >= window => 0,
            Self::Sliding(times) => {
                let counting = times.iter().filter(|&&at| now.since(at) < window).count();
                u32::try_from(counting).unwrap_or(u32::MAX)
            }
            _ => self.used(),
        }
    }

    fn forget_aged(&mut self, policy: &BudgetPolicy, now: I) {
        if self.used_at(policy, now) == 0 {
            *self = Self::None;
        } else if let Self::Sliding(times) = self {
            let counts = |at: &I| now.since(*at) < policy.config.window;
            if !times.iter().all(counts) {
                *times = times.iter().copied().filter(counts).collect();
            }
        }
    }

    /// How long until an attempt is free; `None` if one is free now. Call it on charges that have not aged.
    fn retry_after(&self, policy: &BudgetPolicy, now: I) -> Option<Duration> {
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
        Some(policy.config.window.saturating_sub(now.since(freed_by)))
    }

    fn push(&mut self, policy: &BudgetPolicy, now: I) {
        let so_far = std::mem::replace(self, Self::None);
        *self = match (so_far.of_kind(policy), policy.kind) {
            (Self::Fixed { window_began, used }, _) => Self::Fixed {
                window_began,
                used: used.saturating_add(1),
            },
            (Self::Sliding(times), _) => {
                Self::Sliding(times.iter().copied().chain([now]).collect())
            }
            (Self::None, WindowKind::Fixed) => Self::Fixed {
                window_began: now,
                used: 1,
            },
            (Self::None, WindowKind::Sliding) => Self::Sliding(Box::new([now])),
        };
    }

    /// The charges as this policy counts them: a process with another one may have made them.
    fn of_kind(self, policy: &BudgetPolicy) -> Self {
        match (self, policy.kind) {
            (Self::Fixed { window_began, used }, WindowKind::Sliding) => {
                let used = used.min(policy.config.max_attempts);
                Self::Sliding(repeat_n(window_began, used as usize).collect())
            }
            (Self::Sliding(times), WindowKind::Fixed) => match times.first() {
                Some(&window_began) => Self::Fixed {
                    window_began,
                    used: u32::try_from(times.len()).unwrap_or(u32::MAX),
                },
                None => Self::None,
            },
            (same, _) => same,
        }
    }

    fn take_back_newest(&mut self) {
        match self {
            Self::None => {}
            Self::Fixed { used, .. } => *used = used.saturating_sub(1),
            Self::Sliding(times) => {
                let older = times.len().saturating_sub(1);
                *times = times[..older].into();
            }
        }
        if self.used() == 0 {
            *self = Self::None;
        }
    }
}
