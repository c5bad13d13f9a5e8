//! The ledger: the record of a key that all processes share.
//!
//! - this file: the ledger as a value. `text`: its text form, which locks store.
//! - `process`: the identity of this process in a ledger.
//! - `session`: a leader's turn at the ledger, from taking the lock to settling. Pure: `now` is passed in.
//!
//! Of the crate's other rooms only `budget` and `util` may be imported here.

mod process;
mod session;
mod text;

use std::sync::Arc;
use std::time::Duration;

use crate::budget::{BudgetPolicy, ClockReading, ExhaustionReason, KeyBudget, TimePoint, Usage};

pub(crate) use self::process::{this_host, this_process};
pub(crate) use self::session::{Known, LedgerSession, Verdict, picture};
pub use self::text::ParseLedgerError;
pub(crate) use self::text::{MAX_SLIDING_ATTEMPTS, escaped};

/// The record kept with a spawn lock, for all processes that share the lock: fencing token, budget, holder, last outcome.
///
/// A [`SpawnLock`](crate::lock::SpawnLock) stores it as text, by [`Display`](std::fmt::Display) and
/// [`FromStr`](std::str::FromStr).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub(crate) launch: u64,
    pub(crate) budget: KeyBudget<ClockReading>,
    pub(crate) holder: Option<LedgerHolder>,
    /// The newest launch whose attempt was charged and not refunded. Zero if there is none.
    pub(crate) charged: u64,
    pub(crate) charged_at: Option<ClockReading>,
    pub(crate) last_outcome: Option<LastOutcome>,
    /// The newest launch that succeeded, if another was charged after it. Zero if there is none.
    pub(crate) elder: u64,
    /// The newest holder that found a backend running. Zero if there is none.
    pub(crate) found: u64,
    /// The newest reported end of a backend that has been counted.
    pub(crate) backend_end: Option<BackendEnd>,
    /// The record before this one could not be read, and no launch has ended since.
    pub(crate) is_count_lost: bool,
    /// The time of writing, by the writer's clock.
    pub(crate) written: Option<ClockReading>,
    /// The time since then, if the lock measures it. Not stored.
    pub(crate) age: Option<Duration>,
}

/// The result of reading a lock's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum LedgerReading {
    /// The lock keeps no ledger.
    NotKept,
    /// The ledger that was written last; the default one if none was written.
    Found(Box<Ledger>),
    /// The record is not a ledger. The gate counts the key's budget as just used up.
    Unreadable,
}

/// What has changed since a leader first read the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Nothing,
    Launched,
    Failed { launch: u64, message: String },
}

impl Ledger {
    /// Returns the fencing token of the newest holder, whether or not it launched.
    pub fn fencing_token(&self) -> u64 {
        self.launch
    }

    /// Returns the process that was launching when this was written. A killed process stays here until the next holder writes;
    /// [`LockReport::is_held`](crate::admin::LockReport::is_held) says whether the lock is held.
    pub fn holder(&self) -> Option<&LedgerHolder> {
        self.holder.as_ref()
    }

    /// Returns the outcome of the newest launch that has ended.
    pub fn last_outcome(&self) -> Option<&LastOutcome> {
        self.last_outcome.as_ref()
    }

    /// Returns the reported end of the newest launch's backend.
    pub fn backend_end(&self) -> Option<&BackendEnd> {
        let end = self.backend_end.as_ref()?;
        (end.launch == self.last_ended()).then_some(end)
    }

    /// Returns the fencing token of the newest launch if it has no outcome: its process was killed, or dropped its permit. While
    /// that process is the holder here, the launch may be in progress.
    pub fn lost_launch(&self) -> Option<u64> {
        (!self.is_under_way() && self.charged > self.last_ended()).then_some(self.charged)
    }

    /// Returns the number of charged attempts when this was written, without those that were refunded or had aged out.
    pub fn attempts_charged(&self) -> u32 {
        self.budget.charges.used()
    }

    /// Returns the time of the oldest of these attempts. It no longer counts once its window is over.
    pub fn oldest_attempt(&self) -> Option<ClockReading> {
        self.budget.charges.times().first().copied()
    }

    /// Sets how long ago this was written, as measured by the lock. For a lock that several hosts share: no reader then compares
    /// its clock with another host's.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Converts its times to the reader's clock, if the lock has set its age.
    pub(crate) fn by_clock_of_reader(&mut self, now: ClockReading) {
        if let (Some(age), Some(written)) = (self.age.take(), self.written) {
            self.convert_times(|at| now.before(age.saturating_add(written.since(at))));
            self.written = Some(now.before(age));
        }
    }

    /// Applies the report of a backend's end: an orderly end takes back the charge of its launch. Changes nothing unless that
    /// launch is the last success, or the success before the launch in progress.
    ///
    /// Called by a lock that stores such reports beside the record. A second call with the same report changes nothing.
    pub fn note_backend_end(&mut self, end: &BackendEnd) {
        let last = self.last_outcome.as_ref();
        let is_newest =
            last.is_some_and(|last| last.launch == end.launch && last.failure.is_none());
        let known = self.backend_end.as_ref();
        let is_known = known.is_some_and(|known| known.launch == end.launch);
        let is_elder = self.elder > 0 && end.launch == self.elder;
        if is_known || !(is_newest || is_elder) {
            return;
        }
        // A launch that was charged since is the newest charge, and its backend may be up.
        let newer = usize::from(self.charged > end.launch);
        if newer == 0 {
            self.budget.found_down();
        }
        if end.failure.is_none() {
            self.budget.charges.take_back(newer);
        }
        self.backend_end = Some(end.clone());
    }

    /// The usage of the budget.
    pub(crate) fn usage(&self, policy: &BudgetPolicy, now: ClockReading) -> Usage {
        self.budget.usage(policy, self.is_under_way(), now)
    }

    /// What has changed since a leader first read this ledger, when `seen` was the newest ended launch; nothing if it has not
    /// read it. Compares fencing tokens, never the clocks of two processes.
    pub(crate) fn since_seen(&self, seen: Option<u64>) -> Since {
        if !self.has_news_since(seen) {
            return Since::Nothing;
        }
        match self.newest_failure() {
            Some((launch, message)) => Since::Failed {
                launch,
                message: message.to_owned(),
            },
            None => Since::Launched,
        }
    }

    /// Whether [`since_seen`](Self::since_seen) is anything but [`Since::Nothing`].
    pub(crate) fn has_news_since(&self, seen: Option<u64>) -> bool {
        seen.is_some_and(|seen| self.newest_news() > seen)
    }

    /// The newest launch that has ended and its error, if that is the newest news: a backend that was found after it counts.
    pub(crate) fn newest_failure(&self) -> Option<(u64, &str)> {
        let last = self.last_outcome.as_ref();
        let last = last.filter(|last| last.launch >= self.found)?;
        Some((last.launch, last.failure.as_deref()?))
    }

    /// The newest ended launch or successful look, which waiters want to know of.
    pub(crate) fn newest_news(&self) -> u64 {
        self.last_ended().max(self.found)
    }

    /// The newest launch with an outcome.
    pub(crate) fn last_ended(&self) -> u64 {
        self.last_outcome.as_ref().map_or(0, |last| last.launch)
    }

    /// The reason of a refusal, if no attempt is left.
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

    /// Whether the decision needs the lock: a launch may be in progress, or the record must be written. `has_looked`: a look
    /// found no backend.
    pub(crate) fn needs_holder(&self, has_looked: bool, now: ClockReading) -> bool {
        let is_down = has_looked && self.budget.up_since.is_some();
        self.holder.is_some() || is_down || self.is_ahead_of(now)
    }

    /// Whether the last success is stable.
    pub(crate) fn is_stable(&self, policy: &BudgetPolicy, now: ClockReading) -> bool {
        !self.is_under_way() && self.budget.is_stable(policy, now)
    }

    /// Whether one of its times is in the future, and so would count as now whenever it is read.
    pub(crate) fn is_ahead_of(&self, now: ClockReading) -> bool {
        self.times().any(|at| at.is_after(now))
    }

    /// Moves times in the future to now, so that they age from now on.
    pub(crate) fn catch_up(&mut self, now: ClockReading) {
        self.convert_times(|at| if at.is_after(now) { now } else { at });
    }

    /// A copy without its messages, for when they do not fit.
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

    /// Whether its holder is launching, according to the record.
    fn is_under_way(&self) -> bool {
        self.holder.is_some() && self.launch == self.charged
    }

    fn convert_times(&mut self, convert: impl Fn(ClockReading) -> ClockReading) {
        let holder = self.holder.as_mut().map(|holder| &mut holder.since);
        let outcome = self.last_outcome.as_mut().map(|last| &mut last.at);
        let up = self.budget.up_since.as_mut();
        let others = [up, self.charged_at.as_mut(), holder, outcome];
        let charges = self.budget.charges.times_mut().iter_mut();
        for at in charges.chain(others.into_iter().flatten()) {
            *at = convert(*at);
        }
    }

    /// The times in it, except when it was written.
    fn times(&self) -> impl Iterator<Item = &ClockReading> {
        let holder = self.holder.as_ref().map(|holder| &holder.since);
        let outcome = self.last_outcome.as_ref().map(|last| &last.at);
        let up = self.budget.up_since.as_ref();
        let others = [up, self.charged_at.as_ref(), holder, outcome];
        let charges = self.budget.charges.times().iter();
        charges.chain(others.into_iter().flatten())
    }
}

/// A launching process, for people: when this is read, it may be gone and its id in use by another process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LedgerHolder {
    /// The process id, valid on its host and in its process namespace.
    pub pid: u32,
    /// Start of its launch.
    pub since: ClockReading,
    /// Start of the process in the kernel's ticks since boot, on platforms that provide it.
    pub process_started: Option<u64>,
    /// Host and process namespace of that process id, if known.
    pub host: Option<ProcessHost>,
}

/// Where a process id is valid: a host and, on platforms that have them, a process namespace on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProcessHost {
    /// The host's name.
    pub name: String,
    /// The number of the process namespace, on Linux. The kernel reuses it after the end of the namespace (when a container is
    /// started anew, say), so an equal number does not prove that it is the same namespace.
    pub pid_namespace: Option<u64>,
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LastOutcome {
    /// The launch's fencing token.
    pub launch: u64,
    /// When the launch ended.
    pub at: ClockReading,
    /// The failure's message, if the launch failed; cut after some 500 bytes.
    pub failure: Option<String>,
}

/// The reported end of a backend.
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
    /// Creates the report of an orderly end.
    pub fn orderly(launch: u64) -> Self {
        Self {
            launch,
            failure: None,
        }
    }

    /// Creates the report of a failure, with its reason: `exit status: 1`, say.
    pub fn failed(launch: u64, reason: impl Into<String>) -> Self {
        Self {
            launch,
            failure: Some(reason.into()),
        }
    }
}

/// Serializes what the public methods return, not the stored form.
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
