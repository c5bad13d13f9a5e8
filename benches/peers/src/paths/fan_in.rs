//! From the leader's settle to the last of many followers back.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spawn_gate::BackendKey;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

use super::one_thread;
use crate::clock::thread_nanos;
use crate::flights::{Flights, RawWatch, Visitor, WatchWithTimeout, visit_all};
use crate::keys::PeerKey;
use crate::measure::{Comparison, Contender, Plan, compare};

/// Less than elsewhere, since most of the time goes into bringing the followers to where they wait.
const PLAN: Plan = Plan::more_turns_of_millis(15);

/// Compares the time for each of `followers`.
pub fn fan_in(path: &str, followers: usize) -> Comparison {
    let runtime = one_thread();
    let mut all = All {
        runtime: &runtime,
        followers,
        contenders: Vec::new(),
    };
    visit_all::<BackendKey>(&mut all);
    Visitor::<BackendKey>::visit::<WatchWithTimeout>(&mut all);
    Visitor::<BackendKey>::visit::<RawWatch>(&mut all);
    let floor = <WatchWithTimeout as Flights<BackendKey>>::NAME;
    compare(path, PLAN, floor, all.contenders)
}

struct All<'a> {
    runtime: &'a Runtime,
    followers: usize,
    contenders: Vec<Contender<'a>>,
}

impl<K: PeerKey> Visitor<K> for All<'_> {
    fn visit<F: Flights<K>>(&mut self) {
        let (runtime, followers) = (self.runtime, self.followers);
        let flights = Arc::new(F::default());
        let run = move |count| {
            let shots = (0..count).map(|_| runtime.block_on(shot::<K, F>(&flights, followers)));
            shots.sum()
        };
        let contender = Contender::new(F::NAME, run).per(followers);
        self.contenders.push(contender);
    }
}

/// What the tasks of one shot tell. All of them run on one thread.
#[derive(Default)]
struct Shot {
    polls: AtomicUsize,
    waits: AtomicUsize,
    back: AtomicUsize,
    settled_at: OnceLock<u64>,
    last_back_at: OnceLock<u64>,
    all_back: Notify,
}

/// Lets one flight be followed by so many callers, and returns how long the last of them was on its way back.
///
/// # Panics
///
/// If not every follower waited for the flight when it was settled.
pub async fn shot<K: PeerKey, F: Flights<K>>(flights: &Arc<F>, followers: usize) -> Duration {
    let shot = Arc::new(Shot::default());
    let (started, has_started) = oneshot::channel();
    let (settle, may_settle) = oneshot::channel::<()>();
    let leader = {
        let (flights, shot) = (Arc::clone(flights), Arc::clone(&shot));
        let work = async move || {
            started.send(()).expect("the shot waits for it");
            may_settle.await.expect("the shot lets it settle");
            shot.settled_at
                .set(thread_nanos())
                .expect("it settles once");
            1
        };
        tokio::spawn(async move { flights.run(K::nth(7), work).await })
    };
    has_started.await.expect("the leader starts its work");

    for _ in 0..followers {
        let (flights, shot) = (Arc::clone(flights), Arc::clone(&shot));
        tokio::spawn(async move { follow::<K, F>(&flights, &shot, followers).await });
    }
    all_wait(&shot, followers).await;
    if let Some(waiting) = flights.waiting(K::nth(7)).await {
        assert_eq!(waiting, followers, "the contender says who waits");
    }

    settle.send(()).expect("the leader waits for it");
    shot.all_back.notified().await;
    assert_eq!(leader.await.expect("the leader does not panic"), 1);
    let stamps = (shot.last_back_at.get(), shot.settled_at.get());
    let (Some(last_back_at), Some(settled_at)) = stamps else {
        unreachable!("all are back");
    };
    Duration::from_nanos(last_back_at - settled_at)
}

async fn follow<K: PeerKey, F: Flights<K>>(flights: &F, shot: &Shot, followers: usize) {
    let work = || async { unreachable!("it follows") };
    let mut outcome = pin!(flights.run(K::nth(7), work));
    let value = poll_fn(|cx| {
        let polled = outcome.as_mut().poll(cx);
        count_up(&shot.polls);
        if polled.is_pending() {
            count_up(&shot.waits);
        }
        polled
    });
    assert_eq!(value.await, 1);
    if count_up(&shot.back) == followers {
        let first = shot.last_back_at.set(thread_nanos());
        first.expect("one follower is the last");
        shot.all_back.notify_one();
    }
}

/// Returns once each follower was polled, none is done, and none is polled any more, so all of them wait.
async fn all_wait(shot: &Shot, followers: usize) {
    let mut before = 0;
    loop {
        // Within so many turns, a follower that is ready to run is polled.
        for _ in 0..10 {
            yield_now().await;
        }
        let polls = shot.polls.load(Relaxed);
        if polls >= followers && polls == before {
            break;
        }
        before = polls;
    }
    assert_eq!(shot.waits.load(Relaxed), before, "somebody did not wait");
}

/// Dearer operations are not needed on one thread, and would be measured.
fn count_up(count: &AtomicUsize) -> usize {
    let counted = count.load(Relaxed) + 1;
    count.store(counted, Relaxed);
    counted
}
