//! What a gate has done so far, in numbers.
//!
//! The files, each importing only from those above it:
//!
//! - `histogram`: durations by size. `view`: what operators get. `recorder`: what the gate counts with.
//!
//! Of the crate's other rooms, `error` may be imported here.

mod histogram;
mod recorder;
mod view;

pub use self::histogram::DurationHistogram;
pub(crate) use self::recorder::{LaunchEnd, LockWaitEnd, Recorder, Request};
pub use self::view::{ActiveFlights, RequestCounts, Statistics};
