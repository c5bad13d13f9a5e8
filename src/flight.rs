//! A flight: one launch in progress for a key, and the watch channel on which its outcome is heard.
//!
//! The channel's value is the flight's whole state, so a transition is atomic and the first ending wins: a leader that was
//! deposed cannot get its permit, and nothing that comes late changes an outcome. The outcome carries what the attempt
//! settles to and when; whoever holds the table next applies it (see `table`). So ending a flight needs no lock, and can be
//! done in `Drop`.

use std::time::Instant as StdInstant;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::budget::{Attempt, BudgetRefusal, KeyBudget, Settlement};
use crate::error::{GateError, LaunchError, Stage};
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
    /// A leader that has no permit by then is not being polled; followers depose it.
    pub(crate) permit_due: Instant,
}

impl<T> Flight<T> {
    pub(crate) fn new(claim: Claim, began: Instant, permit_due: Instant) -> Self {
        Self {
            state: watch::Sender::new(State::Running {
                stage: Stage::Lock,
                waiting_for: None,
            }),
            claim,
            began,
            permit_due,
        }
    }

    /// Moves a running flight to a stage, without waking anybody. Returns false if it has ended.
    pub(crate) fn advance(&self, to: Stage) -> bool {
        let mut running = false;
        self.state.send_if_modified(|state| {
            if let State::Running { stage, waiting_for } = state {
                *stage = to;
                *waiting_for = None;
                running = true;
            }
            false
        });
        running
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

    /// Ends a running flight, in whichever stage, and wakes everybody who follows. Changes nothing if it has ended already.
    pub(crate) fn end(&self, outcome: Outcome<T>, settling: Settling) {
        self.end_if(|_| Some((outcome, settling)));
    }

    /// Ends a running flight if `ending` has something for its stage.
    fn end_if(&self, ending: impl FnOnce(Stage) -> Option<(Outcome<T>, Settling)>) {
        self.state.send_if_modified(|state| {
            let State::Running { stage, .. } = state else {
                return false;
            };
            let Some((outcome, settling)) = ending(*stage) else {
                return false;
            };
            *state = State::Ended { outcome, settling };
            true
        });
    }

    /// Ends a flight whose leader is gone: vacated before the permit, `after_permit` later, because then something may have
    /// been started.
    pub(crate) fn abandon(&self, after_permit: impl FnOnce() -> LaunchError) {
        self.end_if(|stage| {
            Some(match stage {
                Stage::Launch => (
                    Outcome::Failed(after_permit().into()),
                    Settling::now(Settlement::Failed),
                ),
                _ => (Outcome::Vacated, Settling::now(Settlement::Refund)),
            })
        });
    }

    /// Takes the flight from a leader that should have had its permit by now.
    pub(crate) fn depose_leader(&self) {
        self.end_if(|stage| {
            (stage != Stage::Launch).then(|| (Outcome::Vacated, Settling::now(Settlement::Refund)))
        });
    }

    /// What to do to the key's budget, once the flight has ended.
    pub(crate) fn settling(&self) -> Option<Settling> {
        match &*self.state.borrow() {
            State::Running { .. } => None,
            State::Ended { settling, .. } => Some(settling.clone()),
        }
    }

    fn has_ended(&self) -> bool {
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
        loop {
            let has_permit = match &*state.borrow_and_update() {
                State::Ended { outcome, .. } => return Some(outcome.clone()),
                State::Running { stage, .. } => *stage == Stage::Launch,
            };
            let wake_at = if has_permit {
                deadline
            } else {
                deadline.min(self.permit_due)
            };
            // `self` holds the sender, so `changed` cannot fail.
            if tokio::time::timeout_at(wake_at, state.changed())
                .await
                .is_ok()
            {
                continue;
            }
            if wake_at < deadline {
                self.depose_leader();
            } else if !self.has_ended() {
                return None;
            }
        }
    }
}
