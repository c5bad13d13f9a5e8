//! The budget of one key: a pure state machine. Every method takes `now`; nothing here reads a clock, locks or waits.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::charges::Charges;
use crate::clock::TimePoint;
use crate::policy::BudgetPolicy;

/// Why an attempt was refused, and when the next one may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetRefusal {
    /// Never more than the window.
    pub(crate) retry_after: Duration,
    /// Whether nobody was refused since the budget ran out.
    pub(crate) first: bool,
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
    /// Charges one attempt, if one is left. Only for a key with none in flight, and with an `id` that is new for it and not
    /// zero.
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
        self.charges = Charges::all_at(policy, now);
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

    /// Whether no attempt is left, unless some have aged.
    pub(crate) fn is_used_up(&self, policy: &BudgetPolicy) -> bool {
        self.charges.used() >= policy.config.max_attempts
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
        KeyBudget {
            charges: self.charges.by_clock(&convert),
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
