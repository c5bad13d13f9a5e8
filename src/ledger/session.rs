//! A leader's turn at the ledger, from taking the lock to settling. Pure: the ledger, the leader's knowledge and `now` are passed
//! in.

use std::time::Instant;

use super::{LastOutcome, Ledger, LedgerHolder, LedgerReading, Since};
use crate::budget::{
    Attempt, BudgetPolicy, ClockReading, KeyBudget, Picture, Refusal, Settlement, TimePoint, Usage,
};

/// What a leader knows before it takes the lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// The newest ended launch when the leader first read the ledger; `None` if it has not read it.
    pub(crate) news_seen: Option<u64>,
    /// The newest holder when the leader looked for a running backend and found none; `None` if it has not looked, or a launch was
    /// in progress then.
    pub(crate) holder_at_look: Option<u64>,
    /// The leader can look for a running backend.
    pub(crate) can_look: bool,
    /// A launch that was charged to this leader under a lock that it lost before launching.
    pub(crate) lost_charge: Option<u64>,
}

impl Known {
    /// Whether this ledger lets a waiting leader continue without the lock: it can share a failure, or look for what was launched.
    pub(crate) fn is_answered_by(&self, reading: &LedgerReading) -> bool {
        match reading {
            LedgerReading::Found(ledger) if ledger.has_news_since(self.news_seen) => {
                self.can_look || ledger.newest_failure().is_some()
            }
            _ => false,
        }
    }
}

/// What the leader does with the lock that it has just taken.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Launch: the attempt is charged.
    Charged(Attempt),
    /// Look for a running backend, then charge: the lock may have been held since the last look.
    Look,
    /// No attempt is left.
    Refused(Refusal),
    /// Share the failure of a launch that the leader waited for.
    FailedSince { launch: u64, message: String },
}

/// The ledger while its lock is held.
#[derive(Debug)]
pub(crate) struct LedgerSession {
    ledger: Box<Ledger>,
    /// The newest launch charged before this one, and the time of its charge.
    charged_before: (u64, Option<ClockReading>),
    is_charged: bool,
    elder_before: u64,
    before_success: Option<KeyBudget<ClockReading>>,
    policy: BudgetPolicy,
}

impl LedgerSession {
    /// Takes over the ledger of a lock that was just taken, and decides. `None` if the lock keeps no ledger.
    pub(crate) fn open(
        reading: LedgerReading,
        fencing_token: u64,
        known: Known,
        policy: &BudgetPolicy,
        holder: LedgerHolder,
    ) -> Option<(Self, Verdict)> {
        let now = holder.since;
        let found = match &reading {
            LedgerReading::Found(ledger) => {
                Some((ledger.launch, ledger.since_seen(known.news_seen)))
            }
            _ => None,
        };
        let mut session = Self::take_over(reading, fencing_token, policy, holder)?;
        session.take_back(known.lost_charge);
        let (newest_holder, since) = match found {
            Some((newest_holder, since)) => (Some(newest_holder), since),
            None => (None, Since::Nothing),
        };
        let verdict = if let Since::Failed { launch, message } = since {
            Verdict::FailedSince { launch, message }
        } else if known.can_look
            && (newest_holder.is_none() || known.holder_at_look != newest_holder)
        {
            Verdict::Look
        } else {
            match session.charge(known.can_look, now) {
                Ok(attempt) => Verdict::Charged(attempt),
                Err(refusal) => Verdict::Refused(refusal),
            }
        };
        Some((session, verdict))
    }

    /// The record to write before anything else is done, if that verdict needs one. After any other, the flight ends, and settles.
    pub(crate) fn record_for(&self, verdict: &Verdict) -> Option<Ledger> {
        match verdict {
            Verdict::Charged(_) | Verdict::Look => Some((*self.ledger).clone()),
            Verdict::Refused(_) | Verdict::FailedSince { .. } => None,
        }
    }

    /// Takes over the ledger, with this process as its holder.
    pub(crate) fn take_over(
        reading: LedgerReading,
        fencing_token: u64,
        policy: &BudgetPolicy,
        holder: LedgerHolder,
    ) -> Option<Self> {
        let now = holder.since;
        let mut ledger = match reading {
            LedgerReading::NotKept => return None,
            LedgerReading::Found(ledger) => ledger,
            LedgerReading::Unreadable => {
                // The count is lost, so the whole budget counts as used; otherwise a broken record would lift the limit.
                let mut ledger = Box::<Ledger>::default();
                ledger.budget.use_up(policy, now);
                ledger.is_count_lost = true;
                ledger
            }
        };
        ledger.by_clock_of_reader(now);
        if ledger.is_ahead_of(now) {
            ledger.catch_up(now);
        }
        if ledger.holder.is_some() {
            // That launch was cut short, so the last success is followed by another launch and never becomes stable.
            ledger.budget.found_down();
        }
        ledger.launch = fencing_token;
        ledger.holder = Some(holder);
        ledger.written = Some(now);
        Some(Self {
            charged_before: (ledger.charged, ledger.charged_at),
            elder_before: ledger.elder,
            ledger,
            is_charged: false,
            before_success: None,
            policy: *policy,
        })
    }

    /// Takes back the charge of a launch that never began.
    fn take_back(&mut self, lost_charge: Option<u64>) {
        if lost_charge.is_some_and(|launch| launch == self.ledger.charged) {
            self.ledger.budget.charges.take_back_newest();
            self.ledger.charged = self.ledger.last_ended();
            self.charged_before = (self.ledger.charged, self.ledger.charged_at);
        }
    }

    /// The record to write now.
    pub(crate) fn to_write(&self) -> &Ledger {
        &self.ledger
    }

    /// Applies a report of a backend's end that came after the ledger was read.
    pub(crate) fn note_backend_end(&mut self, newer: &Ledger) {
        if let Some(end) = &newer.backend_end {
            self.ledger.note_backend_end(end);
        }
    }

    /// Charges one attempt, if one is left for all processes together. `has_looked`: a look found no backend, so the last success
    /// never becomes stable.
    pub(crate) fn charge(
        &mut self,
        has_looked: bool,
        now: ClockReading,
    ) -> Result<Attempt, Refusal> {
        let ledger = &mut *self.ledger;
        ledger.written = Some(now);
        let retry_after = ledger.budget.retry_after(&self.policy, now);
        if let Some(retry_after) = retry_after {
            let reason = ledger.exhaustion_reason(&self.policy);
            if has_looked {
                ledger.budget.found_down();
            }
            return Err(Refusal {
                retry_after,
                reason: Some(reason),
                first: false,
            });
        }
        if has_looked {
            ledger.budget.found_down();
        }
        self.elder_before = ledger.elder;
        ledger.elder = match &ledger.last_outcome {
            Some(last) if last.failure.is_none() => last.launch,
            _ => 0,
        };
        ledger.charged = ledger.launch;
        ledger.charged_at = Some(now);
        self.is_charged = true;
        Ok(ledger.budget.charge(&self.policy, now))
    }

    /// Records the end of the flight and removes the holder. `failure` says why a launch failed.
    pub(crate) fn settle(
        &mut self,
        settlement: Settlement,
        failure: Option<&str>,
        now: ClockReading,
    ) {
        let ledger = &mut *self.ledger;
        if self.is_charged {
            if settlement == Settlement::Success {
                self.before_success = Some(ledger.budget.clone());
            }
            ledger.budget.settle(&self.policy, settlement, now);
        }
        ledger.holder = None;
        ledger.written = Some(now);
        if settlement == Settlement::Refund {
            (ledger.charged, ledger.charged_at) = self.charged_before;
            ledger.elder = self.elder_before;
        } else {
            ledger.is_count_lost = false;
            ledger.last_outcome = Some(LastOutcome {
                launch: ledger.launch,
                at: now,
                failure: failure.map(str::to_owned),
            });
        }
        self.is_charged = false;
    }

    /// Records that a backend was found with the lock held, for the processes that wait for the lock.
    pub(crate) fn note_found(&mut self) {
        self.ledger.found = self.ledger.launch;
    }

    /// Takes back that the launch succeeded: the lock had been lost.
    pub(crate) fn unsettle(&mut self) {
        if let Some(before) = self.before_success.take() {
            self.ledger.budget = before;
            self.is_charged = true;
        }
    }

    /// The ledger with its budget reset, for an operator.
    pub(crate) fn into_reset(mut self) -> Ledger {
        self.ledger.budget.reset();
        self.ledger.is_count_lost = false;
        self.ledger.holder = None;
        *self.ledger
    }

    /// Its picture at this moment, by this process's clock.
    pub(crate) fn picture(&self, shared_now: ClockReading, now: Instant) -> Picture {
        picture(&self.ledger, &self.policy, shared_now, now)
    }

    /// The usage while the flight is in progress.
    pub(crate) fn usage(&self, now: ClockReading) -> Usage {
        self.ledger.budget.usage(&self.policy, true, now)
    }
}

/// The picture of a ledger, by this process's clock.
pub(crate) fn picture(
    ledger: &Ledger,
    policy: &BudgetPolicy,
    shared_now: ClockReading,
    now: Instant,
) -> Picture {
    let mut budget = ledger.budget.clone();
    // Called to forget aged charges.
    budget.retry_after(policy, shared_now);
    Picture {
        reason: budget
            .is_used_up(policy)
            .then(|| ledger.exhaustion_reason(policy)),
        // A time before the start of this process's clock (boot, on some platforms) counts as now: that attempt ages out later
        // here, and the ledger is read before that matters.
        budget: budget.by_clock(|at| now.checked_sub(shared_now.since(at)).unwrap_or(now)),
        at: now,
    }
}
