//! The decision for one key: may this request launch? Pure: `(state, now)` gives a decision and the next state.
//!
//! ```text
//!             enter ── Follow    (a flight is in progress)
//!               │  └── Refuse    (no attempt is free, and that was checked less than a second ago)
//!          Lead │ Look           (the flight is in progress now)
//!               ▼
//!            charge ── Refusal   (no attempt is free after all)
//!               │
//!              end               (settle the attempt, or take over what the ledger says)
//! ```
//!
//! Where a ledger keeps the count, [`KeyState`] holds a picture of it: good enough to refuse by for a moment, while the charge
//! itself is decided on the ledger, by the same [`KeyBudget`].

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::key_budget::{Attempt, KeyBudget, Settlement, Usage};
use super::policy::BudgetPolicy;

/// How long a check of a refusal stands: a look that found no running backend, and a look into the ledger. So a backend that was
/// started by other means and an operator's reset by another process are noticed within this time, and a storm of refused requests
/// costs one check in it.
const CHECKED_FOR: Duration = Duration::from_secs(1);

/// What one process knows of a key.
#[derive(Debug, Default)]
pub(crate) struct KeyState {
    budget: KeyBudget,
    /// The flight in progress. Only its own end clears it, never the end of a window.
    in_flight: Option<NonZeroU64>,
    /// The flight in progress has charged its attempt here.
    is_charged: bool,
    /// When a request last checked whether a refusal still stands.
    checked_at: Option<Instant>,
    /// That check included a look for a running backend, and none was found.
    has_looked: bool,
    /// What the flight in progress saw of the ledger may be outdated.
    is_doubted: bool,
    /// A caller has heard a refusal since an attempt was free.
    has_refused: bool,
    /// Why the budget is used up, or would be.
    reason: Option<Arc<ExhaustionReason>>,
}

/// How a request takes part.
#[derive(Debug)]
pub(crate) enum Admission {
    /// This flight is in progress: follow it.
    Follow(NonZeroU64),
    /// Lead a flight that may launch.
    Lead,
    /// Lead a flight that checks this refusal: is a backend running, does the ledger have an attempt left?
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
    /// Whether no caller heard a refusal since an attempt was free.
    pub(crate) first: bool,
}

/// What the end of a flight does to the key's state.
#[derive(Debug)]
pub(crate) enum BudgetUpdate {
    /// Nothing: it is not known what the ledger says.
    Keep,
    /// Settle the flight's attempt. The reason is why the launch failed.
    Settle {
        settlement: Settlement,
        reason: Option<Arc<ExhaustionReason>>,
        launch: u64,
        now: Instant,
    },
    /// Take over what the ledger says.
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

impl KeyState {
    /// Decides on a request. `can_look`: if it leads, it can look for a running backend.
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
        self.has_looked = can_look;
        admission
    }

    /// Returns the refusal if no attempt is free. `has_looked`: no backend runs, so a success that has yet to prove stable never
    /// will.
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

    /// Takes the charge back that the flight in progress has made here.
    pub(crate) fn refund(&mut self) {
        if std::mem::take(&mut self.is_charged) {
            self.budget.charges.take_back_newest();
        }
    }

    /// Ends a flight. `is_up`: a backend runs. Returns false, and changes nothing, if it is not the one in progress.
    pub(crate) fn end(
        &mut self,
        policy: &BudgetPolicy,
        flight: NonZeroU64,
        is_up: bool,
        update: BudgetUpdate,
    ) -> bool {
        if !self.is_in_flight(flight) {
            return false;
        }
        self.in_flight = None;
        self.has_looked &= !is_up;
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
            // A reset came after that look, so what it says is outdated.
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

    /// Notes that an attempt was free, in a ledger: a refusal from now on is the first of another storm.
    pub(crate) fn note_free(&mut self) {
        self.has_refused = false;
    }

    /// Whether the next refusal that a caller hears is the first since an attempt was free. Asked by that caller.
    pub(crate) fn take_first_refusal(&mut self) -> bool {
        !std::mem::replace(&mut self.has_refused, true)
    }

    /// Notes that the backend of a launch has ended. `failure` says why, unless it ended in an orderly way: then the charge of
    /// its launch is taken back. Changes nothing unless that launch is the last that succeeded and has yet to prove stable.
    pub(crate) fn backend_ended(
        &mut self,
        policy: &BudgetPolicy,
        ended: u64,
        failure: Option<&str>,
        now: Instant,
    ) {
        // Forgets what no longer counts, and a success that has proved stable.
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

    /// Forgets what was used; a flight in progress goes on. What was seen of a ledger before `now` is outdated.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.reset_count();
        self.checked_at = Some(now);
    }

    /// As [`reset`](Self::reset), where no ledger is.
    pub(crate) fn reset_count(&mut self) {
        self.budget.reset();
        self.is_charged = false;
        self.has_refused = false;
        self.reason = None;
    }

    /// Lets the next refusal be checked against the ledger first, whatever the flight in progress has seen there.
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

    /// Whether nothing is charged and nothing in flight: cheaper than [`is_idle`](Self::is_idle).
    pub(crate) fn is_blank(&self) -> bool {
        self.in_flight.is_none() && self.budget.is_blank()
    }

    /// Whether nothing would be lost by forgetting this key.
    pub(crate) fn is_idle(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        self.is_blank() || (self.in_flight.is_none() && self.usage(policy, now).used == 0)
    }

    /// Whether a request that is to be refused shall check first.
    fn is_check_due(&self, policy: &BudgetPolicy, can_look: bool, now: Instant) -> bool {
        let is_old = self
            .checked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= CHECKED_FOR);
        (policy.is_in_ledger && is_old) || (can_look && (is_old || !self.has_looked))
    }

    fn refusal(&self, retry_after: Duration) -> Refusal {
        Refusal {
            retry_after,
            reason: self.reason.clone(),
            first: !self.has_refused,
        }
    }

    /// Notes why the budget will be used up once the next request finds no attempt free.
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
            // Kept only where it can be asked for: memory follows what was charged.
            (Settlement::Failed, _) => reason.filter(|_| self.budget.is_used_up(policy)),
            (Settlement::Success, None) => None,
            (Settlement::Refund, _) => return,
        };
    }
}

/// Why a key has no attempt left: how the last launch that was charged went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum ExhaustionReason {
    /// It failed.
    LaunchFailed {
        /// The launcher's error and its sources, cut after some 500 bytes; empty if there was no room for it.
        message: String,
    },
    /// It succeeded, and the backend was gone before it had been up for
    /// [`stable_after`](crate::SpawnGateBuilder::stable_after).
    NotStable {
        /// The launch's fencing token.
        launch: u64,
        /// How long the backend has to stay up.
        stable_after: Duration,
    },
    /// It succeeded, and the backend ended with a failure, as
    /// [`SpawnGate::backend_ended`](crate::SpawnGate::backend_ended) was told.
    BackendEnded {
        /// The launch's fencing token.
        launch: u64,
        /// Why the backend ended.
        reason: String,
    },
    /// It was cut short: the launching process was killed, or dropped its permit.
    CutShort {
        /// The launch's fencing token.
        launch: u64,
        /// When it was charged, by the wall clock, if that is known.
        at: Option<SystemTime>,
    },
    /// The record that counts the launches could not be read, so all attempts count as used.
    RecordUnreadable,
}

impl ExhaustionReason {
    pub(crate) fn launch_failed(message: impl Into<String>) -> Self {
        Self::LaunchFailed {
            message: message.into(),
        }
    }

    pub(crate) fn backend_ended(launch: u64, reason: impl Into<String>) -> Self {
        Self::BackendEnded {
            launch,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for ExhaustionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaunchFailed { message } if message.is_empty() => {
                f.write_str("the last launch failed")
            }
            Self::LaunchFailed { message } => write!(f, "the last launch failed: {message}"),
            Self::NotStable { stable_after, .. } => write!(
                f,
                "the last launch succeeded, but the backend did not stay up for {stable_after:?}"
            ),
            Self::BackendEnded { reason, .. } => {
                write!(f, "the backend of the last launch ended: {reason}")
            }
            Self::CutShort { launch, at } => {
                write!(f, "launch {launch} was cut short")?;
                match at.and_then(|at| at.elapsed().ok()) {
                    Some(age) => write!(f, ", begun {:.1} s ago", age.as_secs_f64()),
                    None => Ok(()),
                }
            }
            Self::RecordUnreadable => {
                f.write_str("the record of earlier launches could not be read")
            }
        }
    }
}
