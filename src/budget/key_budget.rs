//! The budget of one key: what it has used, and whether its last success has proved stable.

use std::time::{Duration, Instant};

use super::charges::Charges;
use super::clock::TimePoint;
use super::policy::BudgetPolicy;

/// One charge against a key's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Place inside its window, from 1.
    pub(crate) number: u32,
    /// What was left right after it was charged.
    pub(crate) remaining: u32,
}

/// What becomes of a flight's attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The launch succeeded.
    Success,
    /// The launch failed, or something may have been started: the attempt stays charged.
    Failed,
    /// No launch was reached: the attempt, if it was charged, is given back.
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

/// What one key has used, by a process's own clock or by the one that all processes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyBudget<I = Instant> {
    pub(crate) charges: Charges<I>,
    /// A success that has yet to prove stable, and since when.
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
    /// Time until an attempt is free; `None` if one is free now. Forgets what no longer counts.
    pub(crate) fn retry_after(&mut self, policy: &BudgetPolicy, now: I) -> Option<Duration> {
        if self.is_stable(policy, now) {
            self.reset();
        }
        self.charges.forget_aged(policy, now);
        self.charges.retry_after(policy, now)
    }

    /// Charges one attempt. Only if [`retry_after`](Self::retry_after) says that one is free.
    pub(crate) fn charge(&mut self, policy: &BudgetPolicy, now: I) -> Attempt {
        self.charges.push(policy, now);
        let used = self.charges.used();
        Attempt {
            number: used,
            remaining: policy.config.max_attempts.saturating_sub(used),
        }
    }

    /// Settles the newest charge, that of the attempt which ends now.
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

    /// Notes that the backend of the last success was looked for and is gone, so that it never proves stable.
    pub(crate) fn found_down(&mut self) {
        self.up_since = None;
    }

    /// Forgets what was used.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Counts the whole budget as used at `now`, for a key whose count was lost.
    pub(crate) fn use_up(&mut self, policy: &BudgetPolicy, now: I) {
        self.up_since = None;
        self.charges = Charges::all_at(policy, now);
    }

    /// What is used at `now`. `in_flight`: an attempt is in progress, which leaves open whether the last success proves stable.
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

    /// Whether no attempt is left, unless some have aged.
    pub(crate) fn is_used_up(&self, policy: &BudgetPolicy) -> bool {
        self.charges.used() >= policy.config.max_attempts
    }

    /// Whether nothing is charged, aged or not: cheaper than [`usage`](Self::usage).
    pub(crate) fn is_blank(&self) -> bool {
        self.charges.used() == 0
    }

    /// The same budget by another clock.
    pub(crate) fn by_clock<J>(&self, convert: impl Fn(I) -> J) -> KeyBudget<J> {
        KeyBudget {
            charges: self.charges.by_clock(&convert),
            up_since: self.up_since.map(&convert),
        }
    }

    /// Whether the last success has proved stable.
    pub(crate) fn is_stable(&self, policy: &BudgetPolicy, now: I) -> bool {
        match (self.up_since, policy.stable_after) {
            (Some(since), Some(stable_after)) => now.since(since) >= stable_after,
            _ => false,
        }
    }
}
