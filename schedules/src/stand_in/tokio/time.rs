//! Time. It stands still while a schedule runs, and goes on to the next timer when the schedule says so: if no task can run, or
//! at any moment if the schedule is hasty (as if all tasks were slow).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::ops::{Add, Sub};
use std::pin::{Pin, pin};
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

thread_local! {
    static CLOCK: RefCell<Clock> = RefCell::default();
}

/// The clock of the schedule on this thread.
#[derive(Default)]
struct Clock {
    now: Instant,
    timers: BTreeMap<(Instant, u64), Waker>,
    last_timer: u64,
}

/// Time since the schedule began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Self {
        CLOCK.with_borrow(|clock| clock.now)
    }

    pub fn into_std(self) -> std::time::Instant {
        static BEGAN: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
        *BEGAN + self.0
    }

    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// Goes on to the next timer. Returns false if there is none.
pub(crate) fn go_on() -> bool {
    let due = CLOCK.with_borrow_mut(|clock| {
        let &(at, _) = clock.timers.keys().next()?;
        clock.now = clock.now.max(at);
        let later = clock.timers.split_off(&(at, u64::MAX));
        Some(std::mem::replace(&mut clock.timers, later))
    });
    let Some(due) = due else {
        return false;
    };
    due.into_values().for_each(Waker::wake);
    true
}

/// Starts the clock again. The schedule before may have failed.
pub(crate) fn reset() {
    CLOCK.take();
}

/// The number of timers that somebody waits for.
pub(crate) fn timers() -> usize {
    CLOCK.with_borrow(|clock| clock.timers.len())
}

/// A wait until a point in time.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    timer: Option<u64>,
}

pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

pub fn sleep_until(deadline: Instant) -> Sleep {
    let timer = None;
    Sleep { deadline, timer }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        CLOCK.with_borrow_mut(|clock| {
            if self.deadline <= clock.now {
                return Poll::Ready(());
            }
            let timer = *self.timer.get_or_insert_with(|| {
                clock.last_timer += 1;
                clock.last_timer
            });
            let waker = context.waker().clone();
            clock.timers.insert((self.deadline, timer), waker);
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(timer) = self.timer else {
            return;
        };
        // Dropped after the borrow: a waker's drop may run anything.
        let _waker = CLOCK.with_borrow_mut(|clock| clock.timers.remove(&(self.deadline, timer)));
    }
}

pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, error::Elapsed> {
    timeout_at(Instant::now() + limit, future).await
}

/// Polls the future first, so one that is ready is never too late.
pub async fn timeout_at<F: Future>(
    deadline: Instant,
    future: F,
) -> Result<F::Output, error::Elapsed> {
    let mut future = pin!(future);
    let mut over = sleep_until(deadline);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => {
            let over = Pin::new(&mut over).poll(context);
            over.map(|()| Err(error::Elapsed(())))
        }
    })
    .await
}

pub mod error {
    #[derive(Debug)]
    pub struct Elapsed(pub(super) ());
}
