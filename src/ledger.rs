//! The ledger: what all processes know of a key, as a value.

use crate::budget::KeyBudget;
use crate::clock::ClockReading;

/// What the processes that share a spawn lock know of its key: launch number, budget, holder, last outcome.
///
/// A [`SpawnLock`](crate::SpawnLock) keeps it as text, by its [`Display`](std::fmt::Display) and
/// [`FromStr`](std::str::FromStr) forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub(crate) launch: u64,
    pub(crate) budget: KeyBudget<ClockReading>,
    pub(crate) holder: Option<LedgerHolder>,
    /// The newest launch that an attempt was charged for, and not given back. Zero if there was none.
    pub(crate) charged: u64,
    pub(crate) last_outcome: Option<LastOutcome>,
}

impl Ledger {
    /// Returns the fencing token of the newest holder that wrote here, whether or not it launched.
    pub fn launch_number(&self) -> u64 {
        self.launch
    }

    /// Returns the process that was launching when this was written. One that was killed stays here until the next holder
    /// writes; [`LockReport::is_held`](crate::LockReport::is_held) tells whether the lock is held.
    pub fn holder(&self) -> Option<&LedgerHolder> {
        self.holder.as_ref()
    }

    /// Returns how the newest launch that ended did.
    pub fn last_outcome(&self) -> Option<&LastOutcome> {
        self.last_outcome.as_ref()
    }

    /// Returns the number of the newest launch if that ended without a word: its process was killed, or it dropped its permit.
    /// As long as it is written there as the holder, it may be under way; whoever takes the lock next notes that it is not.
    pub fn lost_launch(&self) -> Option<u64> {
        let is_under_way = self.holder.is_some() && self.launch == self.charged;
        (!is_under_way && self.charged > self.last_ended()).then_some(self.charged)
    }

    /// Returns how many attempts were charged and have not been taken back or aged out when the record was written.
    pub fn attempts_charged(&self) -> u32 {
        self.budget.charges.used()
    }

    /// Returns when the oldest of these attempts was made. When its window is over it counts no longer.
    pub fn oldest_attempt(&self) -> Option<ClockReading> {
        self.budget.charges.oldest().copied()
    }

    /// Why the last launch failed; `None` if it did not, or did not say.
    pub(crate) fn last_failure(&self) -> Option<&str> {
        let why = self.last_outcome.as_ref()?.failure.as_deref();
        why.filter(|_| self.charged <= self.last_ended())
    }

    /// The newest launch that ended and said how.
    fn last_ended(&self) -> u64 {
        self.last_outcome.as_ref().map_or(0, |last| last.launch)
    }

    /// The same without the message of a failure, if there is no room for that.
    pub(crate) fn without_message(&self) -> Self {
        let mut short = self.clone();
        if let Some(failure) = short
            .last_outcome
            .as_mut()
            .and_then(|last| last.failure.as_mut())
        {
            failure.clear();
        }
        short
    }
}

/// A process that launches, for people: by the time this is read it may be gone, and its id in use by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerHolder {
    /// Its process id.
    pub pid: u32,
    /// Since when it has been launching.
    pub since: ClockReading,
    /// When the process started, in the kernel's ticks since boot, where the platform tells it.
    pub process_started: Option<u64>,
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastOutcome {
    /// The launch's number.
    pub launch: u64,
    /// When it ended.
    pub at: ClockReading,
    /// What the launcher said, if it failed; cut after some 500 bytes.
    pub failure: Option<String>,
}
