//! What the gate uses of tokio, with the same promises.

pub mod sync;
pub mod task;
pub mod time;

pub use self::task::spawn;
