//! The budget: which launches are allowed, decided without locks, I/O or waiting.
//!
//! Everything here is pure: `now` is passed in. The files, each importing only from those above it:
//!
//! - `clock`: points in time, by one process's clock or by the one that all processes of a machine share.
//! - `policy`: how many attempts in which time, and when a success resets them.
//! - `charges`: the attempts that still count. `key_budget`: these and the backend's stability.
//! - `decision`: what one process knows of a key, and every answer to "may this request launch?".
//! - `coordinator`: a map of such decisions, for code without async. `sweep`: when it forgets idle keys.
//!
//! Of the crate's other rooms only `key` may be imported here.

mod charges;
mod clock;
mod coordinator;
mod decision;
mod key_budget;
mod policy;
mod sweep;

pub(crate) use self::charges::Charges;
pub(crate) use self::clock::TimePoint;
pub use self::clock::{BootReading, ClockReading, SharedClock, SystemClock};
pub use self::coordinator::{
    AttemptId, SpawnBeginError, SpawnBudgetSnapshot, SpawnCoordinator, SpawnOutcome, SpawnPermit,
};
pub use self::decision::ExhaustionReason;
pub(crate) use self::decision::{Admission, BudgetUpdate, KeyState, Picture, Refusal};
pub(crate) use self::key_budget::{Attempt, KeyBudget, Settlement, Usage};
pub(crate) use self::policy::BudgetPolicy;
pub use self::policy::{
    DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, DEFAULT_SPAWN_BUDGET_WINDOW, SpawnBudgetConfig, WindowKind,
};
pub(crate) use self::sweep::Sweep;
