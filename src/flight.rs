//! A key's slot: its budget, and its flight if one is in progress; and what the leader of that flight does to it.
//!
//! All transitions are made under the slot's own mutex, which is held for single steps and never while a future waits or code
//! of the user's runs. So the first ending of a flight wins, nothing that comes late changes an outcome or a budget, and a
//! flight can be ended in `Drop`. A flight is known by its number, never by its key alone.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::budget::{Attempt, BudgetPolicy, BudgetRefusal, KeyBudget, Settlement, Usage};
use crate::error::Stage;
use crate::hashed::Hashed;
use crate::key::{GateKey, key_label};
use crate::lock::LockHolder;
use crate::outcome::{Followers, Following, Outcome};

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
    /// The attempt settles so.
    Attempt(Settlement),
    /// The ledger was seen at that time: what it counts takes the place of what this process counted.
    Ledger(Box<KeyBudget>, Instant),
}

/// What a request names its backend by: a key of its own, until there is a slot that has it.
#[derive(Debug)]
pub(crate) struct Asked<K, T>(AskedBy<K, T>);

#[derive(Debug)]
enum AskedBy<K, T> {
    Key(Hashed<K>),
    Slot(Arc<Slot<K, T>>),
}

impl<K, T> Asked<K, T> {
    pub(crate) fn with(key: Hashed<K>) -> Self {
        Self(AskedBy::Key(key))
    }

    pub(crate) fn key(&self) -> &Hashed<K> {
        match &self.0 {
            AskedBy::Key(key) => key,
            AskedBy::Slot(slot) => &slot.key,
        }
    }

    /// Asks again for what a flight was for. No other copy of the key is kept.
    pub(crate) fn again(flight: Flight<K, T>) -> Self {
        Self(AskedBy::Slot(flight.slot))
    }

    /// Returns a slot for a key that has none: a new one with the request's key, or the one that it had before.
    pub(crate) fn into_slot(self) -> Arc<Slot<K, T>> {
        match self.0 {
            AskedBy::Key(key) => Arc::new(Slot::new(key)),
            AskedBy::Slot(slot) => slot,
        }
    }
}

/// What a request is to do.
#[derive(Debug)]
pub(crate) enum Entered<K, T> {
    /// Wait for this flight's outcome.
    Follow(Flight<K, T>, Following<T>),
    /// Lead this flight, which was just begun.
    Lead(Flight<K, T>, Claim),
    /// Be refused: no attempt is left.
    Refused(Arc<Slot<K, T>>, BudgetRefusal),
    /// Be refused: the gate is closed.
    Closed,
}

/// All that is known of a key.
#[derive(Debug)]
pub(crate) struct Slot<K, T> {
    pub(crate) key: Hashed<K>,
    /// The key as it is named in refusals, of which there can be many; once there was one.
    label: OnceLock<Arc<str>>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    budget: KeyBudget,
    /// When the budget was last taken from the ledger, where the lock keeps one.
    ledger_seen: Option<Instant>,
    flight: Option<Box<Running<T>>>,
}

#[derive(Debug)]
struct Running<T> {
    number: u64,
    claim: Claim,
    /// What is shown of the attempt: in a ledger it has another place than in this process's count.
    attempt_number: Option<u32>,
    began: Instant,
    stage: Stage,
    waiting_for: Option<Arc<LockHolder>>,
    has_lock: bool,
    is_long: bool,
    /// Whether somebody keeps the time for the followers.
    is_timed: bool,
    /// One of the followers is none, but keeps the time.
    has_timekeeper: bool,
    /// Whether the caller that asked for a launch waits for the leader's task.
    asker_waits: bool,
    /// There once somebody follows.
    followers: Option<Followers<T>>,
}

/// What a key has used, and how its flight fares.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) usage: Usage,
    pub(crate) flight: Option<FlightLook>,
}

/// A flight at one moment.
#[derive(Debug)]
pub(crate) struct FlightLook {
    pub(crate) attempt_number: Option<u32>,
    pub(crate) began: Instant,
    pub(crate) stage: Stage,
    pub(crate) waiting_for: Option<LockHolder>,
    pub(crate) waiting: usize,
}

impl<K, T> Slot<K, T> {
    pub(crate) fn new(key: Hashed<K>) -> Self {
        Self {
            key,
            label: OnceLock::new(),
            state: Mutex::new(State {
                budget: KeyBudget::default(),
                ledger_seen: None,
                flight: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was used; a flight in progress goes on.
    pub(crate) fn reset(&self) {
        self.state().budget.reset();
    }

    pub(crate) fn look(&self, policy: &BudgetPolicy, now: Instant) -> Look {
        let state = self.state();
        Look {
            usage: state.budget.usage(policy, now.into_std()),
            flight: state.flight.as_deref().map(|running| FlightLook {
                attempt_number: running.attempt_number,
                began: running.began,
                stage: running.stage,
                waiting_for: running.waiting_for.as_deref().cloned(),
                waiting: running.waiting(),
            }),
        }
    }

    /// Follows the flight in progress.
    pub(crate) fn follow(&self) -> Option<Following<T>> {
        Some(self.state().flight.as_mut()?.follow())
    }

    /// Whether something would be lost by forgetting this key.
    pub(crate) fn is_live(&self, policy: &BudgetPolicy, now: Instant) -> bool {
        let state = self.state();
        state.flight.is_some() || !state.budget.is_idle(policy, now.into_std())
    }
}

impl<K: GateKey, T> Slot<K, T> {
    /// The key as it is named in refusals.
    pub(crate) fn label(&self) -> Arc<str> {
        Arc::clone(self.label.get_or_init(|| key_label(&self.key.key).into()))
    }

    /// The one transition: follow the flight in progress, or charge the budget and lead, or be refused. `can_discover`: if this
    /// request leads, it can look for a running backend, and does so in a task that keeps the time.
    pub(crate) fn enter(
        self: &Arc<Self>,
        policy: &BudgetPolicy,
        number: u64,
        can_discover: bool,
        now: Instant,
    ) -> Entered<K, T> {
        let state = &mut *self.state();
        if let Some(running) = &mut state.flight {
            return Entered::Follow(self.flight(running.number, running.began), running.follow());
        }
        let claim = match state.budget.begin(policy, number, now.into_std()) {
            Ok(attempt) => Claim::Launch(attempt),
            // The backend of the last success, not yet stable, may be up: refusing it unseen would be wrong.
            Err(refusal) if can_discover && state.budget.may_be_up() => Claim::Look(refusal),
            Err(refusal) if policy.is_in_ledger && state.is_ledger_stale(now) => {
                Claim::Look(refusal)
            }
            Err(refusal) => {
                state.budget.note_refused();
                return Entered::Refused(Arc::clone(self), refusal);
            }
        };
        state.flight = Some(Box::new(Running {
            number,
            claim,
            attempt_number: match claim {
                Claim::Launch(attempt) => Some(attempt.number),
                Claim::Look(_) => None,
            },
            began: now,
            stage: Stage::Lock,
            waiting_for: None,
            has_lock: false,
            is_long: false,
            is_timed: can_discover,
            has_timekeeper: false,
            asker_waits: false,
            followers: None,
        }));
        Entered::Lead(self.flight(number, now), claim)
    }

    fn flight(self: &Arc<Self>, number: u64, began: Instant) -> Flight<K, T> {
        Flight {
            slot: Arc::clone(self),
            number,
            began,
        }
    }
}

impl<T> State<T> {
    /// Whether another process may have reset the budget since this one saw the ledger.
    fn is_ledger_stale(&self, now: Instant) -> bool {
        self.ledger_seen
            .is_none_or(|seen| now.saturating_duration_since(seen) >= LEDGER_SEEN_FOR)
    }

    fn settle(&mut self, policy: &BudgetPolicy, ended: &Running<T>, settling: Settling) {
        match (settling, ended.claim) {
            (Settling::Ledger(budget, at), _) => {
                self.budget = *budget;
                self.ledger_seen = Some(at);
            }
            (Settling::Attempt(settlement), Claim::Launch(attempt)) => {
                // The time is asked for only where it counts.
                let now = match policy.stable_after {
                    Some(_) => Instant::now(),
                    None => ended.began,
                };
                self.budget
                    .settle(policy, attempt.id, settlement, now.into_std());
            }
            (Settling::Attempt(Settlement::Failed), Claim::Look(_)) => {
                self.budget.note_refused();
                self.budget.found_down();
            }
            (Settling::Attempt(_), Claim::Look(_)) => {}
        }
    }
}

impl<T> Running<T> {
    fn follow(&mut self) -> Following<T> {
        let is_long = self.is_long;
        self.followers
            .get_or_insert_with(|| Followers::new(is_long))
            .add()
    }

    fn waiting(&self) -> usize {
        let followers = self.followers.as_ref().map_or(0, Followers::count);
        followers.saturating_sub(usize::from(self.has_timekeeper)) + usize::from(self.asker_waits)
    }
}

/// A flight of a slot's, in progress or ended.
#[derive(Debug)]
pub(crate) struct Flight<K, T> {
    slot: Arc<Slot<K, T>>,
    number: u64,
    pub(crate) began: Instant,
}

impl<K, T> Clone for Flight<K, T> {
    fn clone(&self) -> Self {
        Self {
            slot: Arc::clone(&self.slot),
            number: self.number,
            began: self.began,
        }
    }
}

impl<K, T> Flight<K, T> {
    pub(crate) fn key(&self) -> &K {
        &self.slot.key.key
    }

    /// Does a step while the flight is in progress.
    fn step<V>(&self, step: impl FnOnce(&mut Running<T>) -> V) -> Option<V> {
        let mut state = self.slot.state();
        let running = state.flight.as_mut()?;
        (running.number == self.number).then(|| step(running))
    }

    /// Moves it to a stage.
    pub(crate) fn advance(&self, to: Stage) {
        self.step(|running| {
            running.stage = to;
            running.waiting_for = None;
            running.has_lock &= to != Stage::Lock;
        });
    }

    /// Notes whom the leader waits for.
    pub(crate) fn note_holder(&self, holder: Arc<LockHolder>) {
        self.step(|running| running.waiting_for = Some(holder));
    }

    /// Notes the attempt's place in its window.
    pub(crate) fn note_attempt(&self, number: u32) {
        self.step(|running| running.attempt_number = Some(number));
    }

    /// Notes that the leader holds the lock now.
    pub(crate) fn note_lock_held(&self) {
        self.step(|running| running.has_lock = true);
    }

    /// Whether the leader holds the lock, so that it must not be cut short.
    pub(crate) fn has_lock(&self) -> bool {
        self.step(|running| running.has_lock).unwrap_or(true)
    }

    /// Whom the leader waits for, if it waits for the lock.
    pub(crate) fn waiting_for(&self) -> Option<Arc<LockHolder>> {
        self.step(|running| running.waiting_for.clone())?
    }

    /// Ends the flight, settles its attempt, and wakes everybody who follows. Changes nothing if it has ended.
    pub(crate) fn end(&self, policy: &BudgetPolicy, outcome: Outcome<T>, settling: Settling) {
        self.end_with(policy, |_| (outcome, settling));
    }

    /// Ends a flight whose leader is gone, with what its stage makes of that.
    pub(crate) fn end_with(
        &self,
        policy: &BudgetPolicy,
        ending: impl FnOnce(Stage) -> (Outcome<T>, Settling),
    ) {
        let mut state = self.slot.state();
        let Some(running) = state
            .flight
            .take_if(|running| running.number == self.number)
        else {
            return;
        };
        let (outcome, settling) = ending(running.stage);
        state.settle(policy, &running, settling);
        drop(state);
        if let Some(followers) = running.followers {
            followers.tell_outcome(outcome);
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.step(|_| ()).is_none()
    }

    /// Tells the followers that the flight takes long.
    pub(crate) fn tell_long(&self) {
        let followers = self.step(|running| {
            running.is_long = true;
            running.has_timekeeper = false;
            running.followers.clone()
        });
        if let Some(Some(followers)) = followers {
            followers.tell_long();
        }
    }

    /// Counts the caller that asked for the launch among those who wait, until the guard is dropped.
    pub(crate) fn count_asker(&self) -> AskerWaits<'_, K, T> {
        self.step(|running| running.asker_waits = true);
        AskerWaits(self)
    }
}

impl<K: GateKey, T> Flight<K, T> {
    /// The key as it is named in messages.
    pub(crate) fn label(&self) -> Arc<str> {
        key_label(self.key()).into()
    }
}

impl<K: GateKey, T: Send + Sync + 'static> Flight<K, T> {
    /// Sees to it that the followers are told when the flight is still in progress at `long_at`.
    pub(crate) fn keep_time(&self, long_at: Instant) {
        let following = self.step(|running| {
            if std::mem::replace(&mut running.is_timed, true) {
                return None;
            }
            running.has_timekeeper = true;
            Some(running.follow())
        });
        let Some(Some(mut following)) = following else {
            return;
        };
        // Also if the task is dropped with its runtime: others may wait on another one.
        let teller = TellsLong(self.clone());
        tokio::spawn(async move {
            let _ = timeout_at(long_at, following.ended()).await;
            drop((following, teller));
        });
    }
}

/// Says on drop that the flight takes long, unless it has ended.
struct TellsLong<K, T>(Flight<K, T>);

impl<K, T> Drop for TellsLong<K, T> {
    fn drop(&mut self) {
        self.0.tell_long();
    }
}

/// The caller that asked for a launch, while it waits.
#[derive(Debug)]
pub(crate) struct AskerWaits<'a, K, T>(&'a Flight<K, T>);

impl<K, T> Drop for AskerWaits<'_, K, T> {
    fn drop(&mut self) {
        self.0.step(|running| running.asker_waits = false);
    }
}
