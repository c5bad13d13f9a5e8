//! Flights that follow one another, take long, or outlive a sweep (promises 3, 6, 27): each caller keeps its deadline and gets
//! the outcome of its own flight.

mod support;

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use spawn_gate::{
    Acquired, BackendLauncher, BoxError, GateError, InMemorySpawnLock, LaunchPermit, Launched,
    SpawnBudgetConfig, SpawnGate, async_trait,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_test::task;

use crate::support::{lead, seconds};

type Gate = SpawnGate<&'static str, u32>;
type Permit = LaunchPermit<&'static str, u32>;

/// Takes its time, and finds nothing.
#[derive(Clone)]
struct Slow {
    looks: Duration,
    launches: Duration,
    looking: Arc<AtomicU32>,
    most_looking: Arc<AtomicU32>,
}

#[async_trait]
impl BackendLauncher<&'static str, u32> for Slow {
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        let looking = self.looking.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_looking.fetch_max(looking, Ordering::SeqCst);
        sleep(self.looks).await;
        self.looking.fetch_sub(1, Ordering::SeqCst);
        Ok(None)
    }

    async fn launch(&self, _: &Permit) -> Result<u32, BoxError> {
        sleep(self.launches).await;
        Ok(1)
    }
}

fn slow(looks: u64, launches: u64) -> Slow {
    Slow {
        looks: seconds(looks),
        launches: seconds(launches),
        looking: Arc::default(),
        most_looking: Arc::default(),
    }
}

/// A gate on whose only attempt a backend was launched, which has yet to prove stable: a request may only look.
async fn gate_that_may_only_look(window: Duration) -> Gate {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, window))
        .stable_after(seconds(1000))
        .discover_timeout(seconds(3600))
        .build();
    assert!(gate.launch("key", slow(0, 0)).await.is_ok());
    gate
}

/// Its deadline holds for both flights together.
#[tokio::test(start_paused = true)]
async fn a_follower_of_a_second_flight_keeps_its_deadline() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(seconds(16))
        .launch_timeout(seconds(3600))
        .build();
    let permit = lead(&gate, "key").await;
    let began = Instant::now();
    let mut follower = task::spawn(gate.acquire("key"));
    let mut second = task::spawn(gate.acquire("key"));
    assert!(second.poll().is_pending());
    assert!(follower.poll().is_pending());
    sleep(seconds(15)).await;
    permit.refund().await;
    // It comes first, and leads.
    let Poll::Ready(Ok(Acquired::Led(_kept))) = second.poll() else {
        panic!("it does not lead");
    };
    let heard = timeout(seconds(100), follower).await.expect("hangs");
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(began.elapsed().as_secs(), 16);
}

/// A flight that may only look, longer than its window, keeps its place.
#[tokio::test(start_paused = true)]
async fn a_look_longer_than_its_window_is_the_only_flight() {
    let gate = gate_that_may_only_look(seconds(5)).await;
    let launcher = slow(500, 0);
    let mut requests = Vec::new();
    for _ in 0..20 {
        requests.push(tokio::spawn({
            let (gate, launcher) = (gate.clone(), launcher.clone());
            async move { gate.launch("key", launcher).await }
        }));
        sleep(seconds(7)).await;
        // Another key comes by, so that the tables are swept. Whether it may launch is not the point.
        drop(gate.launch("other", slow(0, 0)).await);
    }
    assert_eq!(gate.snapshot("key").await.flight.unwrap().waiting, 20);
    for request in requests {
        // An attempt is free again when the look is over.
        assert_eq!(request.await.unwrap().unwrap().value, 1);
    }
    assert_eq!(launcher.most_looking.load(Ordering::SeqCst), 1);
}

/// Of all callers that hear one refusal, one is told that it is the first.
#[tokio::test(start_paused = true)]
async fn of_those_who_hear_of_a_look_that_was_refused_one_hears_it_is_the_first() {
    let gate = gate_that_may_only_look(seconds(500)).await;
    let launcher = slow(5, 0);
    let (leader, follower) = tokio::join!(
        gate.launch("key", launcher.clone()),
        gate.launch("key", launcher.clone())
    );
    let is_first = |heard: Result<Launched<u32>, GateError>| match heard {
        Err(GateError::BudgetExhausted(refusal)) => refusal.first,
        other => panic!("{other:?}"),
    };
    assert_ne!(is_first(leader), is_first(follower));
    assert!(!is_first(gate.launch("key", launcher).await));
}

/// A caller that followed and then leads keeps its deadline.
#[tokio::test(start_paused = true)]
async fn a_follower_that_comes_to_lead_keeps_its_deadline() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .discover_timeout(seconds(10))
        .launch_timeout(seconds(100))
        .lock_timeout(seconds(1))
        .follow_timeout(seconds(200))
        .build();
    let permit = lead(&gate, "key").await;
    let began = Instant::now();
    let follower = tokio::spawn({
        let gate = gate.clone();
        async move { gate.launch("key", slow(0, 90)).await }
    });
    sleep(seconds(150)).await;
    permit.refund().await;
    let heard = follower.await.unwrap();
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(began.elapsed().as_secs(), 200);
}

/// It is too late to lead.
#[tokio::test(start_paused = true)]
async fn a_flight_that_is_given_back_at_a_followers_deadline_is_a_timeout() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(seconds(10))
        .build();
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert!(follower.poll().is_pending());
    tokio::time::advance(seconds(11)).await;
    permit.refund().await;
    let heard = follower.await;
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
}

/// A lock in memory, held by another gate from the begin.
async fn held_elsewhere() -> (InMemorySpawnLock<&'static str>, Permit) {
    let lock = InMemorySpawnLock::new();
    let permit = lead(&Gate::builder(lock.clone()).build(), "key").await;
    (lock, permit)
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for_as_long_as_another_look_and_launch_may_take_and_ten_seconds_more() {
    let (lock, _elsewhere) = held_elsewhere().await;
    let gate = Gate::builder(lock)
        .discover_timeout(seconds(5))
        .launch_timeout(seconds(30))
        .build();
    let began = Instant::now();
    let heard = gate.acquire("key").await;
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(began.elapsed().as_secs(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_never_ends_is_a_year() {
    const DAY: u64 = 24 * 60 * 60;
    for days in [364, 366] {
        let gate = Gate::builder(InMemorySpawnLock::new())
            .launch_timeout(Duration::MAX)
            .follow_timeout(Duration::MAX)
            .build();
        let heard = gate.launch("key", slow(0, days * DAY)).await;
        assert_eq!(heard.is_ok(), days == 364, "{heard:?}");
    }
}

/// Stable counts from when the launch succeeded, not from when the flight began.
#[tokio::test(start_paused = true)]
async fn stable_counts_from_the_success() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(3, seconds(5000)))
        .stable_after(seconds(60))
        .build();
    assert!(gate.launch("key", slow(0, 50)).await.is_ok());
    sleep(seconds(30)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 1);
    sleep(seconds(31)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
}

/// Begins the next flight when it hears of the end of the one before.
struct BeginsWhenWoken {
    gate: Gate,
    next: Mutex<Option<Acquired<&'static str, u32>>>,
}

impl Wake for BeginsWhenWoken {
    fn wake(self: Arc<Self>) {
        let mut request = task::spawn(self.gate.acquire("key"));
        if let Poll::Ready(Ok(led)) = request.poll() {
            *self.next.lock().unwrap() = Some(led);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_begun_while_the_last_one_ends_is_not_ended_with_it() {
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    let permit = lead(&gate, "key").await;
    let begins = Arc::new(BeginsWhenWoken {
        gate: gate.clone(),
        next: Mutex::default(),
    });
    let waker = Waker::from(Arc::clone(&begins));
    let mut follower = Box::pin(gate.acquire("key"));
    let mut context = Context::from_waker(&waker);
    assert!(follower.as_mut().poll(&mut context).is_pending());
    permit.refund().await;
    assert!(matches!(
        *begins.next.lock().unwrap(),
        Some(Acquired::Led(_))
    ));
    assert!(
        gate.snapshot("key").await.flight.is_some(),
        "it was ended by the one before"
    );
}

/// Some tables are closed by the first poll, and it is never polled again.
#[tokio::test]
async fn a_close_that_is_dropped_halfway_leaves_the_whole_gate_closed() {
    let gate: SpawnGate<String, u32> = SpawnGate::builder(InMemorySpawnLock::new()).build();
    tokio::spawn(async move {
        // Uses up most of what a task may do in one turn, so that the close has to wait for the next one.
        for _ in 0..120 {
            tokio::task::coop::consume_budget().await;
        }
        assert!(task::spawn(gate.close()).poll().is_pending());
        tokio::task::yield_now().await;
        for number in 0..200 {
            let heard = gate.acquire(format!("key-{number}")).await;
            assert!(matches!(heard, Err(GateError::Closed)), "{heard:?}");
        }
    })
    .await
    .unwrap();
}

/// Its leader's runtime is there but nobody drives it, so nothing goes on there, and nothing is told.
#[test]
fn a_follower_has_its_deadline_although_the_leaders_runtime_stands_still() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    };
    let (still, driven) = (runtime(), runtime());
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(seconds(1))
        .build();
    let mut leader = task::spawn(gate.launch("key", slow(0, 3600)));
    {
        let _context = still.enter();
        assert!(leader.poll().is_pending());
    }
    let follow = async { timeout(seconds(3600), gate.launch("key", slow(0, 0))).await };
    let heard = driven.block_on(follow);
    let heard = heard.unwrap().map(|_| ());
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
}

/// A value whose clone panics.
#[derive(Debug)]
struct Fragile;

impl Clone for Fragile {
    fn clone(&self) -> Self {
        panic!("scripted")
    }
}

/// A value's code is the user's.
#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_cloned_does_not_leave_its_flight_for_ever() {
    let gate: SpawnGate<&'static str, Fragile> =
        SpawnGate::builder(InMemorySpawnLock::new()).build();
    let permit = lead(&gate, "key").await;
    let settled = tokio::spawn(permit.succeed(Fragile)).await;
    assert!(settled.unwrap_err().is_panic());
    assert!(gate.snapshot("key").await.flight.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_a_window_without_end_is_told_like_any_other() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, Duration::MAX))
        .build();
    let error = lead(&gate, "key").await.fail("no such program").await;
    let years = error.retry_after().unwrap().as_secs() / (365 * 24 * 60 * 60);
    assert_eq!(years, 34, "as far as an error counts");
    let refused = gate.acquire("key").await;
    assert!(
        matches!(refused, Err(GateError::BudgetExhausted(_))),
        "{refused:?}"
    );
}

/// What is left is what is left when it is told.
#[tokio::test(start_paused = true)]
async fn a_failure_after_its_window_says_that_an_attempt_is_free() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, seconds(1)))
        .build();
    let permit = lead(&gate, "key").await;
    sleep(seconds(2)).await;
    let error = permit.fail("no such program").await;
    assert_eq!(error.retry_after(), None);
    let GateError::Launch(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.attempts_left().unwrap().remaining(), 1);
}
