//! A flight: one launch in progress for a key, and the watch channel on which its followers hear the outcome.
//!
//! All transitions are made under a mutex that is held for single steps, so the first ending wins: nothing that comes late
//! changes an outcome. The end says what it does to the key's budget; whoever is at the table next applies that (see `table`).
//! So ending a flight needs nothing but this, and can be done in `Drop`.
//!
//! There is a channel once somebody follows. Followers do not set a timer each, as most flights are over long before anybody's
//! deadline: whoever keeps the flight's time (the leader's task, or one of its own) tells them all when it has become long, and
//! only then they do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant as StdInstant;

use tokio::sync::watch::{Receiver, Sender};
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

/// What the followers were told.
#[derive(Debug)]
enum Told<T> {
    Nothing,
    /// The flight takes long: set a timer now.
    IsLong,
    Ended(Outcome<T>),
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
    pub(crate) claim: Claim,
    pub(crate) began: Instant,
    /// No code of the user's runs under it.
    state: Mutex<State<T>>,
    /// Whether somebody keeps the time for the followers.
    is_timed: AtomicBool,
    /// Whether the caller that asked for a launch waits for the leader's task.
    asker_waits: AtomicBool,
}

#[derive(Debug)]
enum State<T> {
    Running(Running<T>),
    Ended(Settling),
}

#[derive(Debug)]
struct Running<T> {
    stage: Stage,
    waiting_for: Option<LockHolder>,
    has_lock: bool,
    is_long: bool,
    /// There once somebody follows.
    followers: Option<Sender<Told<T>>>,
    /// One of the channel's receivers is no follower, but keeps the time.
    has_timekeeper: bool,
}

impl<T> Flight<T> {
    /// `is_timed`: the leader's task keeps the time.
    pub(crate) fn new(claim: Claim, began: Instant, is_timed: bool) -> Self {
        Self {
            claim,
            began,
            state: Mutex::new(State::Running(Running {
                stage: Stage::Lock,
                waiting_for: None,
                has_lock: false,
                is_long: false,
                followers: None,
                has_timekeeper: false,
            })),
            is_timed: AtomicBool::new(is_timed),
            asker_waits: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn while_running<V>(&self, step: impl FnOnce(&mut Running<T>) -> V) -> Option<V> {
        match &mut *self.state() {
            State::Running(running) => Some(step(running)),
            State::Ended(_) => None,
        }
    }

    /// Moves a running flight to a stage.
    pub(crate) fn advance(&self, to: Stage) {
        self.while_running(|running| {
            running.stage = to;
            running.waiting_for = None;
            running.has_lock &= to != Stage::Lock;
        });
    }

    /// Notes that the leader holds the lock now.
    pub(crate) fn note_lock_held(&self) {
        self.while_running(|running| running.has_lock = true);
    }

    /// Whether the leader holds the lock, so that it must not be cut short.
    pub(crate) fn has_lock(&self) -> bool {
        self.while_running(|running| running.has_lock)
            .unwrap_or(true)
    }

    /// Notes whom the leader waits for.
    pub(crate) fn note_holder(&self, holder: LockHolder) {
        self.while_running(|running| running.waiting_for = Some(holder));
    }

    /// Ends a running flight and wakes everybody who follows. Changes nothing if it has ended already.
    pub(crate) fn end(&self, outcome: Outcome<T>, settling: Settling) {
        self.end_with(|_| (outcome, settling));
    }

    fn end_with(&self, ending: impl FnOnce(Stage) -> (Outcome<T>, Settling)) {
        let mut state = self.state();
        let State::Running(running) = &mut *state else {
            return;
        };
        let followers = running.followers.take();
        let (outcome, settling) = ending(running.stage);
        *state = State::Ended(settling);
        drop(state);
        if let Some(followers) = followers {
            followers.send_replace(Told::Ended(outcome));
        }
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
        match &*self.state() {
            State::Running(_) => None,
            State::Ended(settling) => Some(settling.clone()),
        }
    }

    /// Whether the flight ended with an attempt that counts.
    pub(crate) fn has_failed(&self) -> bool {
        let settling = self.settling();
        matches!(settling, Some(Settling::Attempt(Settlement::Failed, _)))
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(&*self.state(), State::Ended(_))
    }

    /// The stage and whom it waits for, while the flight runs.
    pub(crate) fn progress(&self) -> Option<(Stage, Option<LockHolder>)> {
        self.while_running(|running| (running.stage, running.waiting_for.clone()))
    }

    /// How many callers wait for the outcome.
    pub(crate) fn waiting(&self) -> usize {
        let followers = self.while_running(|running| {
            let receivers = running.followers.as_ref().map_or(0, Sender::receiver_count);
            receivers.saturating_sub(usize::from(running.has_timekeeper))
        });
        followers.unwrap_or(0) + usize::from(self.asker_waits.load(Ordering::Relaxed))
    }

    /// Follows the flight from now on; `None` if it has ended.
    pub(crate) fn follow(&self) -> Option<Following<T>> {
        self.while_running(|running| {
            let first_told = if running.is_long {
                Told::IsLong
            } else {
                Told::Nothing
            };
            let followers = running
                .followers
                .get_or_insert_with(|| Sender::new(first_told));
            Following(followers.subscribe())
        })
    }

    /// Tells the followers that the flight takes long.
    pub(crate) fn tell_long(&self) {
        let followers = self.while_running(|running| {
            running.is_long = true;
            running.has_timekeeper = false;
            running.followers.clone()
        });
        if let Some(Some(followers)) = followers {
            followers.send_if_modified(|told| {
                let is_news = matches!(told, Told::Nothing);
                if is_news {
                    *told = Told::IsLong;
                }
                is_news
            });
        }
    }

    /// Counts the caller that asked for the launch among those who wait, until the guard is dropped.
    pub(crate) fn count_asker(self: &Arc<Self>) -> AskerWaits<T> {
        self.asker_waits.store(true, Ordering::Relaxed);
        AskerWaits(Arc::clone(self))
    }
}

impl<T: Send + Sync + 'static> Flight<T> {
    /// Sees to it that the followers are told when the flight is still running at `long_at`.
    pub(crate) fn keep_time(self: &Arc<Self>, long_at: Instant) {
        if self.is_timed.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(mut following) = self.follow() else {
            return;
        };
        self.while_running(|running| running.has_timekeeper = true);
        // Also if the task is dropped with its runtime: others may wait on another one.
        let teller = TellsLong(Arc::clone(self));
        tokio::spawn(async move {
            let _ = timeout_at(long_at, following.ended()).await;
            drop((following, teller));
        });
    }
}

/// A follower's end of a flight.
#[derive(Debug)]
pub(crate) struct Following<T>(Receiver<Told<T>>);

impl<T> Following<T> {
    async fn ended(&mut self) {
        // An error means that the other end is gone, so that there is nothing to wait for either.
        let _ = self.0.wait_for(|told| matches!(told, Told::Ended(_))).await;
    }
}

impl<T: Clone> Following<T> {
    /// Waits for the outcome. Returns `None` if there is none by `deadline`. `is_timed`: it will be told in time if the flight
    /// takes long, so it needs no timer until then.
    pub(crate) async fn outcome(
        &mut self,
        deadline: Instant,
        is_timed: bool,
    ) -> Option<Outcome<T>> {
        if is_timed {
            let told = self.0.wait_for(|told| !matches!(told, Told::Nothing)).await;
            if let Ok(Told::Ended(outcome)) = told.as_deref() {
                return Some(outcome.clone());
            }
        }
        timeout_at(deadline, self.ended()).await.ok()?;
        match &*self.0.borrow() {
            Told::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }
}

/// Says on drop that the flight takes long, unless it has ended.
struct TellsLong<T>(Arc<Flight<T>>);

impl<T> Drop for TellsLong<T> {
    fn drop(&mut self) {
        self.0.tell_long();
    }
}

/// The caller that asked for a launch, while it waits.
#[derive(Debug)]
pub(crate) struct AskerWaits<T>(Arc<Flight<T>>);

impl<T> Drop for AskerWaits<T> {
    fn drop(&mut self) {
        self.0.asker_waits.store(false, Ordering::Relaxed);
    }
}
