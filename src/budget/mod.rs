//! The budget: which launches are allowed, decided without locks, I/O or waiting.
//!
//! Everything here is pure: `now` is passed in. The files, each importing only from those above it:
//!
//! - `clock`: points in time, by one process's clock or by the clock that all processes of a machine share.
//! - `policy`: limits, windows, and when a success resets the budget.
//! - `charges`: the charges that still count. `key_budget`: these and the stability of the last success.
//! - `reason`: why a budget is used up.
//! - `decision`: the state of one key in one process, and every answer to "may this request launch?".
//! - `sweep`: when to forget idle keys. `coordinator`: a map of such states, for code without async.
//!
//! Of the crate's other rooms only `key` may be imported here.

mod charges;
mod clock;
mod coordinator;
mod decision;
mod key_budget;
mod policy;
mod reason;
mod sweep;

pub(crate) use self::charges::Charges;
pub(crate) use self::clock::TimePoint;
pub use self::clock::{BootReading, ClockReading, SharedClock, SystemClock};
pub(crate) use self::coordinator::whole_millis;
pub use self::coordinator::{
    AttemptId, SpawnBeginError, SpawnBudgetSnapshot, SpawnCoordinator, SpawnOutcome, SpawnPermit,
};
pub(crate) use self::decision::{Admission, BudgetUpdate, KeyState, Picture, Refusal};
pub(crate) use self::key_budget::{Attempt, KeyBudget, Settlement, Usage};
pub(crate) use self::policy::BudgetPolicy;
pub use self::policy::{
    DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW, SpawnBudgetConfig, WindowKind,
};
pub use self::reason::ExhaustionReason;
pub(crate) use self::sweep::Sweep;
