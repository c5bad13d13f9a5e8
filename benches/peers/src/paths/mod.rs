//! What is measured: one module for each path.

pub mod crowd;
pub mod fan_in;
pub mod file_lock;
pub mod leader;
pub mod memory;
pub mod notice;
pub mod processes;
pub mod random_keys;
pub mod refusal;
pub mod stress;

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::measure::Contender;

/// A request seldom finds its task's budget of tokio operations used up, so neither does an operation here: after so many of
/// them the task yields.
const OPERATIONS_PER_YIELD: u64 = 32;

/// So many that reading the clock costs next to nothing.
const OPERATIONS_PER_READING: u64 = 256;

/// The deadline of what is done by hand.
const LIMIT: Duration = Duration::from_secs(150);

fn one_thread() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime is built")
}

fn threads(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).enable_all();
    builder.build().expect("a runtime is built")
}

/// Makes a contender that does `operation` on what `prepare` yields, by that clock.
fn repeated<'a, P>(
    runtime: &'a Runtime,
    clock: Clock,
    name: &str,
    prepare: impl Fn() -> P + 'a,
    operation: impl AsyncFn(P) + 'a,
) -> Contender<'a> {
    Contender::new(name, move |count| {
        runtime.block_on(timed(clock, count, &prepare, &operation))
    })
}

/// A function of [`crate::clock`].
type Clock = fn() -> u64;

/// Does `operation` so many times, and returns how long that took without what was prepared.
async fn timed<P>(
    clock: Clock,
    count: u64,
    prepare: impl Fn() -> P,
    operation: impl AsyncFn(P),
) -> Duration {
    let mut elapsed = 0;
    let mut left = count;
    while left > 0 {
        let now = left.min(OPERATIONS_PER_READING);
        let prepared: Vec<P> = (0..now).map(|_| prepare()).collect();
        yield_now().await;
        let began = clock();
        let mut done = 0;
        for prepared in prepared {
            operation(prepared).await;
            done += 1;
            if done % OPERATIONS_PER_YIELD == 0 {
                yield_now().await;
            }
        }
        elapsed += clock() - began;
        left -= now;
    }
    Duration::from_nanos(elapsed)
}
