//! Blocking calls, off the runtime's threads. Where no thread can be started, the call fails with an error; nothing panics.

#![cfg_attr(
    windows,
    allow(
        clippy::missing_const_for_thread_local,
        reason = "it is const; on Windows the lint does not see that through the macro"
    )
)]

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a runtime surely keeps the thread that made a call. Its threads stay idle for ten seconds by default.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The same for a call that is made again and again, such as a waiter's look: longer than the pause between two of them.
const KEPT_FOR_THE_NEXT: Duration = Duration::from_secs(2);

thread_local! {
    /// When this thread last saw a call return.
    static LAST_RETURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Why a call was not made.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// No thread could be started. The call may still be made once there is one, like that of a future that was dropped.
    NoThread(io::Error),
    /// The runtime was shut down.
    RuntimeShutDown,
}

/// Runs a blocking call off the runtime's threads. A panic of the call is resumed.
///
/// The call begins at once and goes on if the future is dropped, so the future does not hold it.
pub(crate) fn off_thread<V: Send + 'static>(
    call: impl FnOnce() -> V + Send + 'static,
) -> impl Future<Output = Result<V, NotMade>> {
    returned(begin(KEPT_FOR, call))
}

/// Like [`off_thread`], for a call that is made again and again.
pub(crate) fn off_thread_again<V: Send + 'static>(
    call: impl FnOnce() -> V + Send + 'static,
) -> impl Future<Output = Result<V, NotMade>> {
    returned(begin(KEPT_FOR_THE_NEXT, call))
}

/// A call that has begun.
enum Begun<V> {
    OnRuntime(JoinHandle<V>),
    OnOwnThread(oneshot::Receiver<V>),
}

fn begin<V: Send + 'static>(
    kept_for: Duration,
    call: impl FnOnce() -> V + Send + 'static,
) -> Result<Begun<V>, NotMade> {
    let runtime = Handle::current();
    if cfg!(panic = "abort") {
        // A runtime without a thread to spare panics, which cannot be caught here.
        let call = move || {
            let _entered = runtime.enter();
            call()
        };
        let answer = on_own_thread(call).map_err(NotMade::NoThread)?;
        return Ok(Begun::OnOwnThread(answer));
    }
    if !has_thread(kept_for) {
        try_thread().map_err(NotMade::NoThread)?;
    }
    // Threads may have run short since: `spawn_blocking` then panics, for nothing else.
    let spawned = catch_unwind(AssertUnwindSafe(|| runtime.spawn_blocking(call)));
    let spawned = spawned.map_err(|_| NotMade::NoThread(out_of_threads()))?;
    Ok(Begun::OnRuntime(spawned))
}

/// What the call returns.
async fn returned<V>(begun: Result<Begun<V>, NotMade>) -> Result<V, NotMade> {
    match begun? {
        Begun::OnOwnThread(answer) => answer.await.map_err(|_| NotMade::RuntimeShutDown),
        Begun::OnRuntime(spawned) => {
            let returned = spawned.await;
            LAST_RETURN.set(Some(Instant::now()));
            returned.map_err(|error| match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => NotMade::RuntimeShutDown,
            })
        }
    }
}

/// Whether the runtime of this thread has a thread for the call, as far as is known.
fn has_thread(kept_for: Duration) -> bool {
    keeps_thread(LAST_RETURN.get(), Instant::now(), kept_for)
}

/// Whether the thread of a call that returned then is kept at `now`.
fn keeps_thread(last_return: Option<Instant>, now: Instant, kept_for: Duration) -> bool {
    last_return.is_some_and(|last| now.saturating_duration_since(last) < kept_for)
}

/// Checks that a thread can be started. A runtime would panic, or keep the call until it has a thread.
fn try_thread() -> io::Result<()> {
    let tried = thread::Builder::new().spawn(|| {})?;
    // Joined, so that it does not take the place of the runtime's thread.
    let _ = tried.join();
    Ok(())
}

/// Makes the call on a thread of its own.
fn on_own_thread<V: Send + 'static>(
    call: impl FnOnce() -> V + Send + 'static,
) -> io::Result<oneshot::Receiver<V>> {
    let (answer, answered) = oneshot::channel();
    thread::Builder::new()
        .name("spawn-gate-call".to_owned())
        .spawn(move || {
            // Nobody may wait for it any more; what it took is then dropped, which releases it.
            drop(answer.send(call()));
        })?;
    Ok(answered)
}

#[cfg(unix)]
fn out_of_threads() -> io::Error {
    rustix::io::Errno::AGAIN.into()
}

#[cfg(not(unix))]
fn out_of_threads() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_on_a_thread_of_its_own_returns_its_answer() {
        let here = thread::current().id();
        let answer = on_own_thread(move || thread::current().id() != here).unwrap();
        assert!(answer.await.unwrap());
    }

    #[test]
    fn a_thread_counts_as_kept_for_a_while_after_a_call() {
        let now = Instant::now();
        for kept_for in [KEPT_FOR, KEPT_FOR_THE_NEXT] {
            assert!(!keeps_thread(None, now, kept_for));
            assert!(keeps_thread(Some(now), now, kept_for));
            let almost = kept_for - Duration::from_millis(1);
            assert!(keeps_thread(Some(now), now + almost, kept_for));
            assert!(!keeps_thread(Some(now), now + kept_for, kept_for));
        }
    }
}
