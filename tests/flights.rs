//! Flights that follow one another, take long, or are swept past: each caller keeps its deadline and hears its own outcome.
use spawn_gate::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
type Gate = SpawnGate<&'static str, u32>;
fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[derive(Clone)]
struct Slow {
    found: Option<u32>,
    looks: Duration,
    launches: Duration,
    n: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
}
#[async_trait]
impl BackendLauncher<&'static str, u32> for Slow {
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        let n = self.n.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(n, Ordering::SeqCst);
        sleep(self.looks).await;
        self.n.fetch_sub(1, Ordering::SeqCst);
        Ok(self.found)
    }
    async fn launch(&self, _: &LaunchPermit<&'static str, u32>) -> Result<u32, BoxError> {
        sleep(self.launches).await;
        Ok(1)
    }
}
fn slow(looks: u64, launches: u64) -> Slow {
    Slow {
        found: None,
        looks: secs(looks),
        launches: secs(launches),
        n: Arc::default(),
        most: Arc::default(),
    }
}

/// Its deadline holds for both flights together.
#[tokio::test(start_paused = true)]
async fn a_follower_of_a_second_flight_keeps_its_deadline() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(secs(16))
        .launch_timeout(secs(3600))
        .build();
    let Acquired::Led(p) = gate.acquire("key").await.unwrap() else {
        panic!()
    };
    let t = Instant::now();
    let mut follower = tokio_test::task::spawn(gate.acquire("key"));
    let mut second = tokio_test::task::spawn(gate.acquire("key"));
    assert!(second.poll().is_pending());
    assert!(follower.poll().is_pending());
    sleep(secs(15)).await;
    p.refund().await;
    // second is woken first and leads.
    let std::task::Poll::Ready(Ok(Acquired::Led(_kept))) = second.poll() else {
        panic!()
    };
    let heard = timeout(secs(100), follower).await.expect("hangs");
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(t.elapsed().as_secs(), 16);
}

/// A flight that may only look, longer than its window, keeps its slot.
#[tokio::test(start_paused = true)]
async fn a_look_longer_than_its_window_is_the_only_flight() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, secs(5)))
        .stable_after(secs(1000))
        .discover_timeout(secs(3600))
        .build();
    assert!(gate.launch("key", slow(0, 0)).await.is_ok());
    let launcher = slow(500, 0);
    let mut all = vec![];
    for _ in 0..20 {
        let (g, launcher) = (gate.clone(), launcher.clone());
        all.push(tokio::spawn(async move {
            g.launch("key", launcher).await.map(|_| ())
        }));
        sleep(secs(7)).await;
        // other keys come by, so that the tables are swept
        for k in [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "m", "n", "o", "p", "q",
        ] {
            let _ = gate.launch(k, slow(0, 0)).await;
        }
    }
    assert_eq!(gate.snapshot("key").await.flight.unwrap().waiting, 20);
    for t in all {
        let _ = t.await;
    }
    assert_eq!(launcher.most.load(Ordering::SeqCst), 1);
}

/// A follower of a refusal is not told it is the first.
#[tokio::test(start_paused = true)]
async fn of_a_look_that_was_refused_only_the_leader_hears_it_is_the_first() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, secs(500)))
        .stable_after(secs(1000))
        .discover_timeout(secs(3600))
        .build();
    assert!(gate.launch("key", slow(0, 0)).await.is_ok());
    let launcher = slow(5, 0);
    let (a, b) = tokio::join!(
        gate.launch("key", launcher.clone()),
        gate.launch("key", launcher.clone())
    );
    let first = |r: Result<Launched<u32>, GateError>| match r {
        Err(GateError::BudgetExhausted(e)) => e.first,
        o => panic!("{o:?}"),
    };
    assert_eq!((first(a), first(b)), (true, false));
}

/// A caller that followed and then leads keeps its deadline.
#[tokio::test(start_paused = true)]
async fn a_follower_that_comes_to_lead_keeps_its_deadline() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .discover_timeout(secs(10))
        .launch_timeout(secs(100))
        .lock_timeout(secs(1))
        .follow_timeout(secs(200))
        .build();
    let Acquired::Led(p) = gate.acquire("key").await.unwrap() else {
        panic!()
    };
    let t = Instant::now();
    let g = gate.clone();
    let follower = tokio::spawn(async move { g.launch("key", slow(0, 90)).await });
    sleep(secs(150)).await;
    p.refund().await;
    let heard = follower.await.unwrap();
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
    assert_eq!(t.elapsed().as_secs(), 200);
}

/// It is too late to lead.
#[tokio::test(start_paused = true)]
async fn a_flight_that_is_given_back_at_a_followers_deadline_is_a_timeout() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .follow_timeout(secs(10))
        .build();
    let Acquired::Led(p) = gate.acquire("key").await.unwrap() else {
        panic!()
    };
    let mut follower = tokio_test::task::spawn(gate.acquire("key"));
    assert!(follower.poll().is_pending());
    tokio::time::advance(secs(11)).await;
    p.refund().await;
    let heard = follower.await;
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
}

/// Stable counts from when the launch succeeded, not from when the flight began.
#[tokio::test(start_paused = true)]
async fn stable_counts_from_the_success() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(3, secs(5000)))
        .stable_after(secs(60))
        .build();
    assert!(gate.launch("key", slow(0, 50)).await.is_ok());
    sleep(secs(30)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 1);
    sleep(secs(31)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
}

/// A flight that is begun while the one before it tells its end is not ended with it.
struct BeginsWhenWoken {
    gate: Gate,
    next: std::sync::Mutex<Option<Acquired<&'static str, u32>>>,
}
impl std::task::Wake for BeginsWhenWoken {
    fn wake(self: Arc<Self>) {
        let mut ask = tokio_test::task::spawn(self.gate.acquire("key"));
        if let std::task::Poll::Ready(Ok(led)) = ask.poll() {
            *self.next.lock().unwrap() = Some(led);
        }
    }
}
#[tokio::test(start_paused = true)]
async fn a_flight_begun_while_the_last_one_ends_is_not_ended_with_it() {
    let gate = Gate::builder(InMemorySpawnLock::new()).build();
    let Acquired::Led(p) = gate.acquire("key").await.unwrap() else {
        panic!()
    };
    let begins = Arc::new(BeginsWhenWoken {
        gate: gate.clone(),
        next: Default::default(),
    });
    let g = gate.clone();
    let mut follower = Box::pin(async move {
        let _ = g.acquire("key").await;
    });
    let waker = std::task::Waker::from(begins.clone());
    assert!(
        std::future::Future::poll(
            follower.as_mut(),
            &mut std::task::Context::from_waker(&waker)
        )
        .is_pending()
    );
    p.refund().await;
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
        drop(tokio_test::task::spawn(gate.close()).poll());
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
        .follow_timeout(secs(1))
        .build();
    let mut leader = tokio_test::task::spawn(gate.launch("key", slow(0, 3600)));
    {
        let _context = still.enter();
        assert!(leader.poll().is_pending());
    }
    let follow = async { timeout(secs(3600), gate.launch("key", slow(0, 0))).await };
    let heard = driven.block_on(follow);
    let heard = heard.unwrap().map(|_| ());
    assert!(matches!(heard, Err(GateError::Timeout(_))), "{heard:?}");
}
