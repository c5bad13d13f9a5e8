//! What is measured: one module for each path.

pub mod fan_in;
pub mod file_lock;
pub mod leader;
pub mod memory;
pub mod notice;
pub mod processes;
pub mod random_keys;
pub mod refusal;
pub mod stress;

use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::measure::Contender;

/// A request seldom finds its task's budget of tokio operations used up, so neither does an operation here: after so many of
/// them the task yields, off the clock.
const OPERATIONS_PER_YIELD: u64 = 32;

fn one_thread() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime is built")
}

fn threads(count: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).enable_all();
    builder.build().expect("a runtime is built")
}

/// Makes a contender that does `operation` on what `prepare` yields.
fn repeated<'a, P>(
    runtime: &'a Runtime,
    name: &str,
    prepare: impl Fn() -> P + 'a,
    operation: impl AsyncFn(P) + 'a,
) -> Contender<'a> {
    Contender::new(name, move |count| {
        runtime.block_on(timed(count, &prepare, &operation))
    })
}

/// Does `operation` so many times, and returns how long that took without what was prepared.
async fn timed<P>(count: u64, prepare: impl Fn() -> P, operation: impl AsyncFn(P)) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let now = left.min(OPERATIONS_PER_YIELD);
        let prepared: Vec<P> = (0..now).map(|_| prepare()).collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        for prepared in prepared {
            operation(prepared).await;
        }
        elapsed += began.elapsed();
        left -= now;
    }
    elapsed
}
