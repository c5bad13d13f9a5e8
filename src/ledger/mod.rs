//! The ledger: what all processes know of a key.
//!
//! - this file: the ledger as a value. `text`: its text form, which locks store.
//! - `process`: what names this process in it.
//! - `session`: a leader's turn at it, from taking the lock to settling. Pure: `now` is passed in.
//!
//! Of the crate's other rooms only `budget` may be imported here.

mod process;
mod session;
mod text;

use std::sync::Arc;
use std::time::Duration;

use crate::budget::{
    BudgetPolicy, Charges, ClockReading, ExhaustionReason, KeyBudget, TimePoint, Usage,
};

pub(crate) use self::process::this_host;
pub(crate) use self::session::{Known, LedgerSession, Verdict, picture};
pub use self::text::ParseLedgerError;
pub(crate) use self::text::{MAX_SLIDING_ATTEMPTS, escaped};

/// What the processes that share a spawn lock know of its key: launch number, budget, holder, last outcome.
///
/// A [`SpawnLock`](crate::lock::SpawnLock) keeps it as text, by its [`Display`](std::fmt::Display) and
/// [`FromStr`](std::str::FromStr) forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub(crate) launch: u64,
    pub(crate) budget: KeyBudget<ClockReading>,
    pub(crate) holder: Option<LedgerHolder>,
    /// The newest launch that an attempt was charged for, and not given back. Zero if there was none.
    pub(crate) charged: u64,
    pub(crate) charged_at: Option<ClockReading>,
    pub(crate) last_outcome: Option<LastOutcome>,
    /// The newest launch that succeeded, if another one was charged after it. Zero if there is none.
    pub(crate) elder: u64,
    /// The newest holder that found a backend running. Zero if there is none.
    pub(crate) found: u64,
    /// The newest reported end of a backend that has been counted.
    pub(crate) backend_end: Option<BackendEnd>,
    /// The record before this one could not be read, and no launch has ended since.
    pub(crate) is_count_lost: bool,
    /// When it was written, by the writer's clock.
    pub(crate) written: Option<ClockReading>,
    /// How long ago that was, if the lock tells. Not stored.
    pub(crate) age: Option<Duration>,
}

/// What a lock's ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum LedgerReading {
    /// The lock keeps no ledger.
    NotKept,
    /// What was written there last; a ledger that was never written reads as the default one.
    Found(Box<Ledger>),
    /// Something is written there that is no ledger. The gate takes the key's budget as just used up.
    Unreadable,
}

/// What became of launches since a request first read the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Nothing,
    Launched,
    Failed { launch: u64, message: String },
}

impl Ledger {
    /// Returns the fencing token of the newest holder that wrote here, whether or not it launched.
    pub fn fencing_token(&self) -> u64 {
        self.launch
    }

    /// Returns the process that was launching when this was written. One that was killed stays here until the next holder
    /// writes; [`LockReport::is_held`](crate::admin::LockReport::is_held) tells whether the lock is held.
    pub fn holder(&self) -> Option<&LedgerHolder> {
        self.holder.as_ref()
    }

    /// Returns how the newest launch that ended did.
    pub fn last_outcome(&self) -> Option<&LastOutcome> {
        self.last_outcome.as_ref()
    }

    /// Returns the end of the newest launch's backend, if it was reported.
    pub fn backend_end(&self) -> Option<&BackendEnd> {
        let end = self.backend_end.as_ref()?;
        (end.launch == self.last_ended()).then_some(end)
    }

    /// Returns the fencing token of the newest launch if that was cut short: its process was killed, or it dropped its permit.
    /// While that process stands here as the holder, the launch may be under way.
    pub fn lost_launch(&self) -> Option<u64> {
        (!self.is_under_way() && self.charged > self.last_ended()).then_some(self.charged)
    }

    /// Returns how many attempts were charged and have not been taken back or aged out when the record was written.
    pub fn attempts_charged(&self) -> u32 {
        self.budget.charges.used()
    }

    /// Returns when the oldest of these attempts was made. When its window is over it counts no longer.
    pub fn oldest_attempt(&self) -> Option<ClockReading> {
        self.budget.charges.oldest().copied()
    }

    /// Says how long ago this was written, by the lock's own measure. For a lock that several hosts share: no reader then compares
    /// its clock with that of another host.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// The same with its times by the reader's clock, if the lock told how old it is.
    pub(crate) fn by_clock_of_reader(&mut self, now: ClockReading) {
        if let (Some(age), Some(written)) = (self.age.take(), self.written) {
            self.convert_times(|at| now.before(age.saturating_add(written.since(at))));
            self.written = Some(now.before(age));
        }
    }

    /// Notes that a backend ended: the charge of its launch is taken back if it ended in an orderly way. Changes nothing unless
    /// that launch is the last that succeeded, or the one before the launch in progress. A lock calls it that keeps such reports
    /// beside the record; calling it again changes nothing.
    pub fn note_backend_end(&mut self, end: &BackendEnd) {
        let last = self.last_outcome.as_ref();
        let is_newest =
            last.is_some_and(|last| last.launch == end.launch && last.failure.is_none());
        let known = self.backend_end.as_ref();
        let is_known = known.is_some_and(|known| known.launch == end.launch);
        if is_known || !(is_newest || end.launch == self.elder) {
            return;
        }
        // A launch that was charged since is the newest, and may be up.
        let newer = usize::from(self.charged > end.launch);
        if newer == 0 {
            self.budget.found_down();
        }
        if end.failure.is_none() {
            self.budget.charges.take_back(newer);
        }
        self.backend_end = Some(end.clone());
    }

    /// What of the budget is used.
    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: ClockReading) -> Usage {
        self.budget.usage(policy, self.is_under_way(), now)
    }

    /// What became of launches since a request first read this ledger, which was when the launch `seen` was the newest that
    /// had ended; nothing if it had not read it. By launch numbers: the clocks of two processes are never compared.
    pub(crate) fn since_seen(&self, seen: Option<u64>) -> Since {
        match &self.last_outcome {
            Some(last) if seen.is_some_and(|seen| last.launch > seen) => match &last.failure {
                None => Since::Launched,
                Some(message) => Since::Failed {
                    launch: last.launch,
                    message: message.clone(),
                },
            },
            _ if seen.is_some_and(|seen| self.found > seen) => Since::Launched,
            _ => Since::Nothing,
        }
    }

    /// The newest launch or look of which those who wait want to know.
    pub(crate) fn newest_news(&self) -> u64 {
        self.last_ended().max(self.found)
    }

    /// The newest launch that ended and said how.
    pub(crate) fn last_ended(&self) -> u64 {
        self.last_outcome.as_ref().map_or(0, |last| last.launch)
    }

    /// Why no attempt is left, if none is.
    pub(crate) fn exhaustion_reason(&self, policy: &BudgetPolicy) -> Arc<ExhaustionReason> {
        let last = self.last_outcome.as_ref();
        Arc::new(match last {
            _ if self.is_count_lost => ExhaustionReason::RecordUnreadable,
            Some(last) if self.charged <= last.launch => {
                match (&last.failure, self.backend_end()) {
                    (Some(message), _) => ExhaustionReason::launch_failed(message),
                    (
                        None,
                        Some(BackendEnd {
                            launch,
                            failure: Some(reason),
                        }),
                    ) => ExhaustionReason::backend_ended(*launch, reason),
                    (None, _) => ExhaustionReason::NotStable {
                        launch: last.launch,
                        stable_after: policy.stable_after.unwrap_or_default(),
                    },
                }
            }
            _ => ExhaustionReason::CutShort {
                launch: self.charged,
                at: self.charged_at.map(|at| at.system_time()),
            },
        })
    }

    /// Whether there is something that only a holder of the lock can tell or mend. `has_looked`: no backend runs.
    pub(crate) fn needs_holder(&self, has_looked: bool, now: ClockReading) -> bool {
        let is_down = has_looked && self.budget.up_since.is_some();
        self.holder.is_some() || is_down || self.is_ahead_of(now)
    }

    /// Whether the last success has proved stable.
    pub(crate) fn is_stable(&self, policy: &BudgetPolicy, now: ClockReading) -> bool {
        !self.is_under_way() && self.budget.is_stable(policy, now)
    }

    /// Whether a time in it lies in the future, so that it would count as now whenever it is read.
    pub(crate) fn is_ahead_of(&self, now: ClockReading) -> bool {
        let mut is_ahead = false;
        self.clone().convert_times(|at| {
            is_ahead |= at.is_after(now);
            at
        });
        is_ahead
    }

    /// Moves times that lie in the future to now, so that they age from now on.
    pub(crate) fn catch_up(&mut self, now: ClockReading) {
        self.convert_times(|at| if at.is_after(now) { now } else { at });
    }

    /// The same without its messages, if there is no room for them.
    pub(crate) fn without_message(&self) -> Self {
        let mut short = self.clone();
        let failure = short
            .last_outcome
            .as_mut()
            .and_then(|last| last.failure.as_mut());
        failure.into_iter().for_each(String::clear);
        let reason = short
            .backend_end
            .as_mut()
            .and_then(|end| end.failure.as_mut());
        reason.into_iter().for_each(String::clear);
        short
    }

    /// Whether its holder is launching, for all that is written there.
    fn is_under_way(&self) -> bool {
        self.holder.is_some() && self.launch == self.charged
    }

    fn convert_times(&mut self, mut convert: impl FnMut(ClockReading) -> ClockReading) {
        match &mut self.budget.charges {
            Charges::None => {}
            Charges::Fixed { window_began, .. } => *window_began = convert(*window_began),
            Charges::Sliding(times) => times.iter_mut().for_each(|at| *at = convert(*at)),
        }
        let holder = self.holder.as_mut().map(|holder| &mut holder.since);
        let outcome = self.last_outcome.as_mut().map(|last| &mut last.at);
        let others = [
            self.budget.up_since.as_mut(),
            self.charged_at.as_mut(),
            holder,
            outcome,
        ];
        others
            .into_iter()
            .flatten()
            .for_each(|at| *at = convert(*at));
    }
}

/// A process that launches, for people: by the time this is read it may be gone, and its id in use by another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LedgerHolder {
    /// Its process id, on its host and in its process namespace.
    pub pid: u32,
    /// Since when it has been launching.
    pub since: ClockReading,
    /// When the process started, in the kernel's ticks since boot, where the platform tells it.
    pub process_started: Option<u64>,
    /// Where that process id means something, if that is known.
    pub host: Option<ProcessHost>,
}

/// Where a process id means something: a host and, where the platform has them, a process namespace on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProcessHost {
    /// The host's name.
    pub name: String,
    /// The number of the process namespace, on Linux.
    pub pid_namespace: Option<u64>,
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LastOutcome {
    /// The launch's fencing token.
    pub launch: u64,
    /// When it ended.
    pub at: ClockReading,
    /// What the launcher said, if it failed; cut after some 500 bytes.
    pub failure: Option<String>,
}

/// The end of a backend, as it was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BackendEnd {
    /// The fencing token of the launch that started the backend.
    pub launch: u64,
    /// Why it ended; `None` if it ended in an orderly way. A lock may keep only the first 60 bytes.
    pub failure: Option<String>,
}

impl BackendEnd {
    /// The backend ended as it should.
    pub fn orderly(launch: u64) -> Self {
        Self {
            launch,
            failure: None,
        }
    }

    /// The backend ended for this reason: `exit status: 1`, say.
    pub fn failed(launch: u64, reason: impl Into<String>) -> Self {
        Self {
            launch,
            failure: Some(reason.into()),
        }
    }
}

/// What the public methods tell; how it is stored is the text's business.
#[cfg(feature = "serde")]
impl serde::Serialize for Ledger {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let mut fields = serializer.serialize_struct("Ledger", 7)?;
        fields.serialize_field("fencing_token", &self.fencing_token())?;
        fields.serialize_field("holder", &self.holder())?;
        fields.serialize_field("attempts_charged", &self.attempts_charged())?;
        fields.serialize_field("oldest_attempt", &self.oldest_attempt())?;
        fields.serialize_field("last_outcome", &self.last_outcome())?;
        fields.serialize_field("lost_launch", &self.lost_launch())?;
        fields.serialize_field("backend_end", &self.backend_end())?;
        fields.end()
    }
}
