//! A flight: one launch in progress for a key, and the watch channel on which its outcome is heard.
//!
//! The channel's value is the flight's whole state, so a transition is atomic and the first ending wins: nothing that comes
//! late changes an outcome. The end carries what it does to the key's budget; whoever is at the table next applies that (see
//! `table`). So ending a flight needs no mutex, and can be done in `Drop`.

use std::time::Instant as StdInstant;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::budget::{Attempt, BudgetRefusal, KeyBudget, Settlement};
use crate::error::{GateError, Stage};
use crate::lock::LockHolder;

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome<T> {
    /// The leader launched a backend.
    Launched(T),
    /// A backend was running already.
    Discovered(T),
    /// There is no backend; all callers share the reason.
    Failed(GateError),
    /// The leader went away before it had its permit. Nothing was launched, and a follower takes over.
    Vacated,
}

#[derive(Debug)]
enum State<T> {
    Running {
        stage: Stage,
        waiting_for: Option<LockHolder>,
    },
    Ended {
        outcome: Outcome<T>,
        settling: Settling,
    },
}

/// What the end of a flight does to its key's budget.
#[derive(Clone, Debug)]
pub(crate) enum Settling {
    /// The attempt settles so, at that time.
    Attempt(Settlement, StdInstant),
    /// The ledger was seen at that time: what it counts takes the place of what this process counted.
    Ledger(KeyBudget, Instant),
}

impl Settling {
    pub(crate) fn now(settlement: Settlement) -> Self {
        Self::Attempt(settlement, Instant::now().into_std())
    }
}

/// What the leader of a flight may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    /// Launch, for the attempt that was charged.
    Launch(Attempt),
    /// Look for a backend that is up, and into the ledger; unless one of them says otherwise, this refusal stands. (It settles
    /// as `Failed` then.)
    Look(BudgetRefusal),
}

/// One launch in progress.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    state: watch::Sender<State<T>>,
    pub(crate) claim: Claim,
    pub(crate) began: Instant,
}

impl<T> Flight<T> {
    pub(crate) fn new(claim: Claim, began: Instant) -> Self {
        Self {
            state: watch::Sender::new(State::Running {
                stage: Stage::Lock,
                waiting_for: None,
            }),
            claim,
            began,
        }
    }

    /// Moves a running flight to a stage, without waking anybody.
    pub(crate) fn advance(&self, to: Stage) {
        self.state.send_if_modified(|state| {
            if let State::Running { stage, waiting_for } = state {
                *stage = to;
                *waiting_for = None;
            }
            false
        });
    }

    /// Notes whom the leader waits for.
    pub(crate) fn note_holder(&self, holder: LockHolder) {
        self.state.send_if_modified(|state| {
            if let State::Running { waiting_for, .. } = state {
                *waiting_for = Some(holder);
            }
            false
        });
    }

    /// Ends a running flight and wakes everybody who follows. Changes nothing if it has ended already.
    pub(crate) fn end(&self, outcome: Outcome<T>, settling: Settling) {
        self.end_with(|_| (outcome, settling));
    }

    fn end_with(&self, ending: impl FnOnce(Stage) -> (Outcome<T>, Settling)) {
        self.state.send_if_modified(|state| {
            let State::Running { stage, .. } = state else {
                return false;
            };
            let (outcome, settling) = ending(*stage);
            *state = State::Ended { outcome, settling };
            true
        });
    }

    /// Ends a flight whose leader is gone, with what its stage makes of that.
    pub(crate) fn abandon(&self, ending: impl FnOnce(Stage) -> (Outcome<T>, Settlement)) {
        self.end_with(|stage| {
            let (outcome, settlement) = ending(stage);
            (outcome, Settling::now(settlement))
        });
    }

    /// What to do to the key's budget, once the flight has ended.
    pub(crate) fn settling(&self) -> Option<Settling> {
        match &*self.state.borrow() {
            State::Running { .. } => None,
            State::Ended { settling, .. } => Some(settling.clone()),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ended { .. })
    }

    /// The stage and whom it waits for, while the flight runs.
    pub(crate) fn progress(&self) -> Option<(Stage, Option<LockHolder>)> {
        match &*self.state.borrow() {
            State::Running { stage, waiting_for } => Some((*stage, waiting_for.clone())),
            State::Ended { .. } => None,
        }
    }

    pub(crate) fn follower_count(&self) -> usize {
        self.state.receiver_count()
    }
}

impl<T: Clone> Flight<T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`.
    pub(crate) async fn outcome(&self, deadline: Instant) -> Option<Outcome<T>> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended { .. }));
        // `self` holds the sender, so waiting cannot fail for want of one.
        match timeout_at(deadline, ended).await.ok()?.as_deref() {
            Ok(State::Ended { outcome, .. }) => Some(outcome.clone()),
            _ => None,
        }
    }
}
