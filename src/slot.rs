//! A key's slot: its budget, and its flight if one is in progress.
//!
//! All of it is changed under the slot's own mutex, which is held for single steps and never while a future waits or code of
//! the user's runs. So the first ending of a flight wins, nothing that comes late changes an outcome or a budget, and a
//! flight can be ended in `Drop`.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::{Attempt, BudgetRefusal, KeyBudget, Settlement, Usage};
use crate::error::Stage;
use crate::key::{GateKey, key_label};
use crate::lock::LockHolder;
use crate::outcome::{Followers, Following};
use crate::policy::BudgetPolicy;
use crate::snapshot::FlightSnapshot;

/// How long a refusal by the ledger stands before a request looks at the ledger again. So an operator's reset from another
/// process is noticed within this time, and a storm of refused requests costs one look in it.
const LEDGER_SEEN_FOR: Duration = Duration::from_secs(1);

/// What the leader of a flight may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    /// Launch, for the attempt that was charged.
    Launch(Attempt),
    /// Look for a backend that is up, and into the ledger; unless one of them says otherwise, this refusal stands. (It settles
    /// as `Failed` then.)
    Look(BudgetRefusal),
}

/// What the end of a flight does to its key's budget.
#[derive(Debug)]
pub(crate) enum Settling {
    /// The attempt settles so. With why its launch failed, if it did.
    Attempt(Settlement, Option<Arc<String>>),
    /// What the ledger says takes the place of what this process knew.
    Ledger(Box<SeenLedger>),
}

impl Settling {
    /// Nothing was launched.
    pub(crate) const REFUND: Self = Self::Attempt(Settlement::Refund, None);

    /// The launch succeeded.
    pub(crate) const SUCCESS: Self = Self::Attempt(Settlement::Success, None);

    /// The launch failed.
    pub(crate) fn failed(why: Arc<String>) -> Self {
        Self::Attempt(Settlement::Failed, Some(why))
    }
}

/// A ledger at one moment, by this process's clock.
#[derive(Debug)]
pub(crate) struct SeenLedger {
    pub(crate) budget: KeyBudget,
    pub(crate) last_failure: Option<Arc<String>>,
    pub(crate) at: Instant,
}

/// All that is known of a key.
#[derive(Debug)]
pub(crate) struct Slot<K, T> {
    pub(crate) key: K,
    pub(crate) hash: u64,
    /// The key as it is named in refusals, of which there can be many; once there was one.
    label: OnceLock<Arc<str>>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
pub(crate) struct State<T> {
    pub(crate) budget: KeyBudget,
    /// When the ledger was seen from which the budget was taken, where the lock keeps one.
    pub(crate) ledger_seen: Option<Instant>,
    /// Why the last launch failed, if it used up the budget: what refused requests are told.
    pub(crate) last_failure: Option<Arc<String>>,
    pub(crate) flight: Option<Box<Running<T>>>,
}

#[derive(Debug)]
pub(crate) struct Running<T> {
    pub(crate) number: u64,
    pub(crate) claim: Claim,
    /// What is shown of the attempt: in a ledger it has another place than in this process's count.
    pub(crate) attempt_number: Option<u32>,
    pub(crate) began: Instant,
    pub(crate) stage: Stage,
    pub(crate) waiting_for: Option<Arc<LockHolder>>,
    pub(crate) has_lock: bool,
    /// Whether the caller that asked for a launch waits for the leader's task.
    pub(crate) asker_waits: bool,
    /// There once somebody follows.
    pub(crate) followers: Option<Followers<T>>,
}

impl<K, T> Slot<K, T> {
    pub(crate) fn new(key: K, hash: u64) -> Self {
        Self {
            key,
            hash,
            label: OnceLock::new(),
            state: Mutex::new(State {
                budget: KeyBudget::default(),
                ledger_seen: None,
                last_failure: None,
                flight: None,
            }),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was used; a flight in progress goes on. What was seen of a ledger before `now` is outdated.
    pub(crate) fn reset(&self, now: Instant) {
        let mut state = self.state();
        state.budget.reset();
        state.ledger_seen = Some(now);
    }

    /// What was used, and the flight in progress.
    pub(crate) fn snapshot(
        &self,
        policy: &BudgetPolicy,
        now: Instant,
    ) -> (Usage, Option<FlightSnapshot>) {
        let state = self.state();
        let flight = state.flight.as_deref().map(|running| FlightSnapshot {
            stage: running.stage,
            age: now.saturating_duration_since(running.began),
            attempt_number: running.attempt_number,
            waiting: running.waiting(),
            waiting_for: running.waiting_for.as_deref().cloned(),
        });
        (state.budget.usage(policy, now.into_std()), flight)
    }

    /// Follows the flight in progress.
    pub(crate) fn follow(&self) -> Option<Following<T>> {
        Some(self.state().flight.as_mut()?.follow())
    }

    /// Whether something would be lost by forgetting this key.
    pub(crate) fn is_live(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        let state = self.state();
        let is_idle = state.budget.is_blank() || state.budget.is_idle(policy, now.into_std());
        state.flight.is_some() || !is_idle
    }
}

impl<K: GateKey, T> Slot<K, T> {
    /// The key as it is named in refusals.
    pub(crate) fn label(&self) -> Arc<str> {
        Arc::clone(self.label.get_or_init(|| key_label(&self.key).into()))
    }
}

impl<T> State<T> {
    /// Whether another process may have reset the budget since this one saw the ledger.
    pub(crate) fn is_ledger_stale(&self, now: Instant) -> bool {
        self.ledger_seen
            .is_none_or(|seen| now.saturating_duration_since(seen) >= LEDGER_SEEN_FOR)
    }

    pub(crate) fn settle(&mut self, policy: &BudgetPolicy, ended: &Running<T>, settling: Settling) {
        match (settling, ended.claim) {
            (Settling::Ledger(seen), _) if self.ledger_seen.is_none_or(|at| at <= seen.at) => {
                self.budget = seen.budget;
                self.ledger_seen = Some(seen.at);
                self.note_failure(policy, seen.last_failure);
            }
            // A reset came after that look, so what it says is outdated; but the attempt is over.
            (Settling::Ledger(_), _) => self.budget.forget_in_flight(),
            (Settling::Attempt(settlement, why), Claim::Launch(attempt)) => {
                // The time is asked for only where it counts.
                let now = match policy.stable_after {
                    Some(_) => Instant::now(),
                    None => ended.began,
                };
                self.budget
                    .settle(policy, attempt.id, settlement, now.into_std());
                self.note_failure(policy, why);
            }
            (Settling::Attempt(Settlement::Failed, why), Claim::Look(_)) => {
                self.budget.found_down();
                match why {
                    None => self.budget.note_refused(),
                    // The ledger had an attempt left after all, and the launch failed.
                    Some(_) => self.note_failure(policy, why),
                }
            }
            (Settling::Attempt(..), Claim::Look(_)) => {}
        }
    }

    /// Notes why the last launch failed, for requests that are refused.
    fn note_failure(&mut self, policy: &BudgetPolicy, why: Option<Arc<String>>) {
        self.last_failure = why.filter(|_| self.budget.is_used_up(policy));
    }
}

impl<T> Running<T> {
    pub(crate) fn follow(&mut self) -> Following<T> {
        self.followers.get_or_insert_with(Followers::new).add()
    }

    pub(crate) fn waiting(&self) -> usize {
        let followers = self.followers.as_ref().map_or(0, Followers::count);
        followers + usize::from(self.asker_waits)
    }
}
