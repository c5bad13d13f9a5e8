//! Stand-ins for what the gate uses of the standard library and of tokio. All waiting and all chance goes through `shuttle`, so
//! that a schedule decides it. A name that is missing here does not compile: decide then how it is to follow a schedule.

pub mod standard;
pub mod tokio;
