//! The decision for one key: may this request launch? Pure: `(state, now)` gives a decision and the next state.
//!
//! ```text
//!             enter ── Follow    (a flight is in progress)
//!               │  └── Refuse    (no attempt is free, and the last check is less than a second old)
//!          Lead │ Look           (the flight is in progress now)
//!               ▼
//!            charge ── Refusal   (no attempt is free after all)
//!               │
//!              end               (settle the attempt, or take over what the ledger says)
//! ```
//!
//! If a ledger keeps the count, [`KeyState`] holds a picture of it, which is good enough to refuse by for a second. The charge
//! is decided on the ledger, by the same [`KeyBudget`].

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key_budget::{Attempt, KeyBudget, Settlement, Usage};
use super::policy::BudgetPolicy;
use super::reason::ExhaustionReason;

/// How long a check of a refusal is valid: a look for a running backend and a read of the ledger. So a backend that was started
/// by other means, or a reset by another process, is noticed within this time, and many refused requests cost one check.
const CHECKED_FOR: Duration = Duration::from_secs(1);

/// The state of one key in one process.
#[derive(Debug, Default)]
pub(crate) struct KeyState {
    budget: KeyBudget,
    /// The flight in progress. Only its end clears this, never the end of a window.
    in_flight: Option<NonZeroU64>,
    /// The flight in progress has charged its attempt in this count.
    is_charged: bool,
    /// When a flight last checked a refusal.
    checked_at: Option<Instant>,
    /// That check looked for a running backend and found none.
    has_looked: bool,
    /// The ledger may have changed since the flight in progress read it.
    is_doubted: bool,
    /// A caller was refused since an attempt was last free.
    has_refused: bool,
    /// Why the budget is used up, or would be.
    reason: Option<Arc<ExhaustionReason>>,
}

/// The decision on a request.
#[derive(Debug)]
pub(crate) enum Admission {
    /// This flight is in progress: follow it.
    Follow(NonZeroU64),
    /// Lead a flight that may launch.
    Lead,
    /// Lead a flight that checks this refusal: is a backend running, is an attempt left in the ledger?
    Look(Refusal),
    /// No attempt is free.
    Refuse(Refusal),
}

/// No attempt is free.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// Never more than the window.
    pub(crate) retry_after: Duration,
    pub(crate) reason: Option<Arc<ExhaustionReason>>,
    /// Whether no caller was refused since an attempt was last free.
    pub(crate) first: bool,
}

/// The change of the local budget at the end of a flight.
#[derive(Debug)]
pub(crate) enum BudgetUpdate {
    /// None: the state of the ledger is unknown.
    Keep,
    /// Settle the flight's attempt. `reason` says why the launch failed.
    Settle {
        settlement: Settlement,
        reason: Option<Arc<ExhaustionReason>>,
        launch: u64,
        now: Instant,
    },
    /// Take over the ledger's budget.
    Picture(Box<Picture>),
}

/// A ledger at one moment, by this process's clock.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) budget: KeyBudget,
    pub(crate) reason: Option<Arc<ExhaustionReason>>,
    /// When it was read.
    pub(crate) at: Instant,
}

impl BudgetUpdate {
    /// Settles an attempt without having read a ledger: if there is one, it is not known what it says.
    pub(crate) fn without_ledger(
        policy: &BudgetPolicy,
        settlement: Settlement,
        reason: Option<Arc<ExhaustionReason>>,
    ) -> Self {
        if policy.is_in_ledger {
            return Self::Keep;
        }
        Self::Settle {
            settlement,
            reason,
            launch: 0,
            // Counts only for a success.
            now: Instant::now(),
        }
    }
}

impl KeyState {
    /// Decides on a request. `can_look`: as a leader, it can look for a running backend.
    pub(crate) fn enter(
        &mut self,
        policy: &BudgetPolicy,
        flight: NonZeroU64,
        can_look: bool,
        now: Instant,
    ) -> Admission {
        if let Some(flight) = self.in_flight {
            return Admission::Follow(flight);
        }
        let admission = match self.budget.retry_after(policy, now) {
            None => {
                self.has_refused = false;
                Admission::Lead
            }
            Some(retry_after) if self.is_check_due(policy, can_look, now) => {
                Admission::Look(self.refusal(retry_after))
            }
            Some(retry_after) => {
                let refusal = self.refusal(retry_after);
                self.has_refused = true;
                return Admission::Refuse(refusal);
            }
        };
        self.in_flight = Some(flight);
        self.is_charged = false;
        self.checked_at = Some(now);
        admission
    }

    /// Returns the refusal if no attempt is free. `has_looked`: a look found no backend, so the last success never becomes stable.
    pub(crate) fn confirm(
        &mut self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Option<Refusal> {
        let retry_after = self.budget.retry_after(policy, now);
        if has_looked {
            self.budget.found_down();
        }
        retry_after.map(|retry_after| self.refusal(retry_after))
    }

    /// Charges the attempt of the flight in progress to this process's own count.
    pub(crate) fn charge(
        &mut self,
        policy: &BudgetPolicy,
        has_looked: bool,
        now: Instant,
    ) -> Result<Attempt, Refusal> {
        match self.confirm(policy, has_looked, now) {
            Some(refusal) => Err(refusal),
            None => {
                self.has_refused = false;
                self.is_charged = true;
                Ok(self.budget.charge(policy, now))
            }
        }
    }

    /// Refunds the charge that the flight in progress has made here.
    pub(crate) fn refund(&mut self) {
        if std::mem::take(&mut self.is_charged) {
            self.budget.charges.take_back_newest();
        }
    }

    /// Ends a flight. `has_looked`: it has looked for a running backend, and none was found. Returns false, and changes nothing,
    /// if it is not the one in progress.
    pub(crate) fn end(
        &mut self,
        policy: &BudgetPolicy,
        flight: NonZeroU64,
        has_looked: bool,
        update: BudgetUpdate,
    ) -> bool {
        if !self.is_in_flight(flight) {
            return false;
        }
        self.in_flight = None;
        self.has_looked = has_looked;
        let is_doubted = std::mem::take(&mut self.is_doubted);
        match update {
            BudgetUpdate::Keep => {}
            BudgetUpdate::Settle {
                settlement,
                reason,
                launch,
                now,
            } => {
                if self.is_charged {
                    self.budget.settle(policy, settlement, now);
                    self.note_reason(policy, settlement, reason, launch);
                }
            }
            // A reset came after that read, so the picture is outdated.
            BudgetUpdate::Picture(seen) if self.checked_at.is_some_and(|at| at > seen.at) => {}
            BudgetUpdate::Picture(seen) => {
                self.budget = seen.budget;
                self.reason = seen.reason.filter(|_| self.budget.is_used_up(policy));
                self.checked_at = Some(seen.at);
            }
        }
        if is_doubted {
            self.checked_at = None;
        }
        true
    }

    /// Records that an attempt was free in the ledger, so the next refusal is a first one.
    pub(crate) fn note_free(&mut self) {
        self.has_refused = false;
    }

    /// Whether this refusal is the first since an attempt was last free. Called once per refused caller.
    pub(crate) fn take_first_refusal(&mut self) -> bool {
        !std::mem::replace(&mut self.has_refused, true)
    }

    /// Records that the backend of a launch has ended. Without a `failure`, the end was orderly, and the charge of the launch is
    /// taken back. Changes nothing unless that launch is the last success and not yet stable.
    pub(crate) fn backend_ended(
        &mut self,
        policy: &BudgetPolicy,
        ended: u64,
        failure: Option<&str>,
        now: Instant,
    ) {
        // Called to forget aged charges and a stable success.
        self.budget.retry_after(policy, now);
        let is_newest = match self.reason.as_deref() {
            Some(ExhaustionReason::NotStable { launch, .. }) => *launch == ended,
            _ => false,
        };
        if !is_newest || self.budget.is_blank() {
            return;
        }
        self.budget.found_down();
        self.reason =
            failure.map(|reason| Arc::new(ExhaustionReason::backend_ended(ended, reason)));
        if failure.is_none() {
            self.budget
                .charges
                .take_back(usize::from(self.is_charged && self.in_flight.is_some()));
        }
    }

    /// Resets the budget; a flight in progress continues. Pictures of a ledger from before `now` are outdated.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.reset_count();
        self.checked_at = Some(now);
    }

    /// Like [`reset`](Self::reset), without a ledger.
    pub(crate) fn reset_count(&mut self) {
        self.budget.reset();
        self.is_charged = false;
        self.has_refused = false;
        self.reason = None;
    }

    /// Makes the next refusal check the ledger first, whatever the flight in progress has read there.
    pub(crate) fn doubt(&mut self) {
        self.checked_at = None;
        self.is_doubted = self.in_flight.is_some();
    }

    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: Instant) -> Usage {
        self.budget.usage(policy, self.in_flight.is_some(), now)
    }

    /// The flight in progress.
    pub(crate) fn in_flight(&self) -> Option<NonZeroU64> {
        self.in_flight
    }

    pub(crate) fn is_in_flight(&self, flight: NonZeroU64) -> bool {
        self.in_flight == Some(flight)
    }

    /// Whether nothing is charged and nothing in flight; cheaper than [`is_idle`](Self::is_idle).
    pub(crate) fn is_blank(&self) -> bool {
        self.in_flight.is_none() && self.budget.is_blank()
    }

    /// Whether nothing would be lost by forgetting this key.
    pub(crate) fn is_idle(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        self.is_blank() || (self.in_flight.is_none() && self.usage(policy, now).used == 0)
    }

    /// Whether a refusal must be checked first.
    fn is_check_due(&self, policy: &BudgetPolicy, can_look: bool, now: Instant) -> bool {
        let is_old = || {
            let at = self.checked_at;
            at.is_none_or(|at| now.saturating_duration_since(at) >= CHECKED_FOR)
        };
        (policy.is_in_ledger && is_old()) || (can_look && (!self.has_looked || is_old()))
    }

    fn refusal(&self, retry_after: Duration) -> Refusal {
        Refusal {
            retry_after,
            reason: self.reason.clone(),
            first: !self.has_refused,
        }
    }

    /// Records the reason for a refusal of the next request, if that finds no attempt free.
    fn note_reason(
        &mut self,
        policy: &BudgetPolicy,
        settlement: Settlement,
        reason: Option<Arc<ExhaustionReason>>,
        launch: u64,
    ) {
        self.reason = match (settlement, policy.stable_after) {
            (Settlement::Success, Some(stable_after)) => {
                Some(Arc::new(ExhaustionReason::NotStable {
                    launch,
                    stable_after,
                }))
            }
            // Kept only if the budget is used up, to save memory.
            (Settlement::Failed, _) => reason.filter(|_| self.budget.is_used_up(policy)),
            (Settlement::Success, None) => None,
            (Settlement::Refund, _) => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_kept_only_while_no_attempt_is_left() {
        let policy = &BudgetPolicy::default();
        let now = Instant::now();
        let flight = NonZeroU64::MIN;
        let mut state = KeyState::default();
        for attempt in 1..=policy.config.max_attempts {
            assert!(matches!(
                state.enter(policy, flight, false, now),
                Admission::Lead
            ));
            state.charge(policy, false, now).unwrap();
            let settle = BudgetUpdate::Settle {
                settlement: Settlement::Failed,
                reason: Some(Arc::new(ExhaustionReason::launch_failed("no such program"))),
                launch: 1,
                now,
            };
            assert!(state.end(policy, flight, false, settle));
            let is_last = attempt == policy.config.max_attempts;
            assert_eq!(state.reason.is_some(), is_last, "attempt {attempt}");
        }
    }

    #[test]
    fn a_picture_of_the_ledger_that_was_doubted_while_it_was_taken_refuses_nobody() {
        let policy = &BudgetPolicy {
            is_in_ledger: true,
            ..BudgetPolicy::default()
        };
        let now = Instant::now();
        let flight = NonZeroU64::MIN;
        let enter = |state: &mut KeyState| state.enter(policy, flight, false, now);
        let picture = || {
            let mut budget = KeyBudget::default();
            budget.use_up(policy, now);
            BudgetUpdate::Picture(Box::new(Picture {
                budget,
                reason: None,
                at: now,
            }))
        };
        let mut state = KeyState::default();
        assert!(matches!(enter(&mut state), Admission::Lead));
        state.end(policy, flight, false, picture());
        assert!(matches!(enter(&mut state), Admission::Refuse(_)));

        let mut state = KeyState::default();
        assert!(matches!(enter(&mut state), Admission::Lead));
        state.doubt();
        state.end(policy, flight, false, picture());
        assert!(matches!(enter(&mut state), Admission::Look(_)));
    }
}
