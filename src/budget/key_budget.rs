//! The budget of one key: its charges, and whether its last success is stable.

use std::time::{Duration, Instant};

use super::charges::Charges;
use super::clock::TimePoint;
use super::policy::BudgetPolicy;

/// One charge against a key's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Place in its window, from 1.
    pub(crate) number: u32,
    /// Attempts left right after this charge.
    pub(crate) remaining: u32,
}

/// How a flight's attempt is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The launch succeeded.
    Success,
    /// The launch failed, or something may have been started: the attempt stays charged.
    Failed,
    /// No launch was reached: the attempt is refunded if it was charged.
    Refund,
}

/// What a key has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: u32,
    pub(crate) remaining: u32,
    /// Time until an attempt is free, if none is now.
    pub(crate) retry_after: Option<Duration>,
}

/// The budget of one key, by a process's own clock or by the clock that all processes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyBudget<I = Instant> {
    pub(crate) charges: Charges<I>,
    /// Time of the last success, if it is not yet stable.
    pub(crate) up_since: Option<I>,
}

impl<I> Default for KeyBudget<I> {
    fn default() -> Self {
        Self {
            charges: Charges::None,
            up_since: None,
        }
    }
}

impl<I: TimePoint> KeyBudget<I> {
    /// Time until an attempt is free; `None` if one is free now. Forgets aged charges, and all after a stable success.
    pub(crate) fn retry_after(&mut self, policy: &BudgetPolicy, now: I) -> Option<Duration> {
        if self.is_stable(policy, now) {
            self.reset();
        }
        self.charges.forget_aged(policy, now);
        self.charges.retry_after(policy, now)
    }

    /// Charges one attempt. Call it only if [`retry_after`](Self::retry_after) returns `None`.
    pub(crate) fn charge(&mut self, policy: &BudgetPolicy, now: I) -> Attempt {
        self.charges.push(policy, now);
        let used = self.charges.used();
        Attempt {
            number: used,
            remaining: policy.config.max_attempts.saturating_sub(used),
        }
    }

    /// Settles the newest charge, which is that of the attempt that ends now.
    pub(crate) fn settle(&mut self, policy: &BudgetPolicy, settlement: Settlement, now: I) {
        match settlement {
            Settlement::Success => match policy.stable_after {
                None => self.reset(),
                Some(_) => self.up_since = Some(now),
            },
            Settlement::Failed => self.up_since = None,
            Settlement::Refund => self.charges.take_back_newest(),
        }
    }

    /// Records that a look did not find the backend of the last success, so it never becomes stable.
    pub(crate) fn found_down(&mut self) {
        self.up_since = None;
    }

    /// Forgets all charges.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Uses up the whole budget at `now`, for a key whose count was lost.
    pub(crate) fn use_up(&mut self, policy: &BudgetPolicy, now: I) {
        self.up_since = None;
        self.charges = Charges::all_at(policy, now);
    }

    /// The usage at `now`. `in_flight`: an attempt is in progress, so the last success does not count as stable.
    pub(crate) fn usage(&self, policy: &BudgetPolicy, in_flight: bool, now: I) -> Usage {
        let used = if !in_flight && self.is_stable(policy, now) {
            0
        } else {
            self.charges.used_at(policy, now)
        };
        let remaining = policy.config.max_attempts.saturating_sub(used);
        Usage {
            used,
            remaining,
            retry_after: (remaining == 0)
                .then(|| self.charges.retry_after(policy, now))
                .flatten(),
        }
    }

    /// Whether no attempt is left, aged charges included.
    pub(crate) fn is_used_up(&self, policy: &BudgetPolicy) -> bool {
        self.charges.used() >= policy.config.max_attempts
    }

    /// Whether nothing is charged, aged charges included; cheaper than [`usage`](Self::usage).
    pub(crate) fn is_blank(&self) -> bool {
        self.charges.used() == 0
    }

    /// Converts it to another clock.
    pub(crate) fn by_clock<J>(&self, convert: impl Fn(I) -> J) -> KeyBudget<J> {
        KeyBudget {
            charges: self.charges.by_clock(&convert),
            up_since: self.up_since.map(&convert),
        }
    }

    /// Whether the last success is stable.
    pub(crate) fn is_stable(&self, policy: &BudgetPolicy, now: I) -> bool {
        match (self.up_since, policy.stable_after) {
            (Some(since), Some(stable_after)) => now.since(since) >= stable_after,
            _ => false,
        }
    }
}
