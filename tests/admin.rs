//! The view and the means of an operator (promises 9, 10, 12, 13, 29): snapshots, refusals, reset, and how a budget forgets.

mod support;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, inspect_spawn_lock};
use spawn_gate::budget::WindowKind;
use spawn_gate::error::{BudgetExhausted, Stage};
use spawn_gate::{
    Acquired, FileSpawnLock, GateError, GateKey, How, InMemorySpawnLock, SpawnBudgetConfig,
    SpawnGate,
};
use tokio::time::{advance, sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::script::Script;
use crate::support::{fail_once, lead, refusal, seconds, until_waiting};

type Gate = SpawnGate<&'static str, u32>;

const WINDOW: Duration = Duration::from_secs(100);

/// A gate with a budget of its own.
fn gate(max_attempts: u32) -> Gate {
    Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(max_attempts, WINDOW))
        .build()
}

async fn refused(gate: &Gate) -> BudgetExhausted {
    refusal(gate.acquire("key").await)
}

// Snapshots.

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_the_budget_of_a_key_and_when_it_is_used_up_until_when() {
    let gate = gate(2);
    let untouched = gate.snapshot("key").await;
    assert!(untouched.flight.is_none());
    assert_eq!(
        (untouched.budget.attempts_used, untouched.budget.remaining),
        (0, 2)
    );
    fail_once(&gate, "key").await;
    let used = gate.snapshot("key").await.budget;
    assert_eq!(
        (used.key, used.attempts_used, used.remaining, used.in_flight),
        ("key", 1, 1, false)
    );
    assert_eq!(used.retry_after, None);
    advance(seconds(40)).await;
    fail_once(&gate, "key").await;
    let used_up = gate.snapshot("key").await.budget;
    assert_eq!((used_up.attempts_used, used_up.remaining), (2, 0));
    assert_eq!(used_up.retry_after, Some(seconds(60)));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_a_flights_stage_age_attempt_and_callers() {
    let gate = gate(3);
    fail_once(&gate, "key").await;
    let launcher = Script::launching(|_| async {
        sleep(seconds(10)).await;
        Ok(7)
    })
    .discovering(|_| async {
        sleep(seconds(5)).await;
        Ok(None)
    });
    let mut leader = task::spawn(gate.launch("key", launcher.clone()));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());

    let looks = |stage, age, attempt| (stage, seconds(age), attempt, 2);
    for (expected, used) in [
        (looks(Stage::Lock, 0, None), 1),
        (looks(Stage::Discover, 3, None), 1),
        (looks(Stage::Launch, 6, Some(2)), 2),
    ] {
        let snapshot = gate.snapshot("key").await;
        let flight = snapshot.flight.unwrap();
        assert_eq!(
            (
                flight.stage,
                flight.age,
                flight.attempt_number,
                flight.waiting
            ),
            expected
        );
        assert!(snapshot.budget.in_flight);
        assert_eq!(snapshot.budget.attempts_used, used);
        sleep(seconds(3)).await;
    }
    drop(leader);
    drop(follower);
    assert_eq!(gate.snapshot("key").await.flight.unwrap().waiting, 0);
    sleep(seconds(10)).await;
    let ended = gate.snapshot("key").await;
    assert!(ended.flight.is_none() && !ended.budget.in_flight);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_who_holds_the_lock_that_a_flight_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let elsewhere = lead(&Gate::builder(lock.clone()).build(), "key").await;
    let gate = Gate::builder(lock.clone()).build();
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { gate.acquire("key").await }
    });
    let holder = loop {
        let flight = gate.snapshot("key").await.flight;
        if let Some(holder) = flight.and_then(|flight| flight.waiting_for) {
            break holder;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (holder.pid, holder.path),
        (std::process::id(), lock.path_of(&"key"))
    );
    elsewhere.refund().await;
    let Acquired::Led(_permit) = waiter.await.unwrap().unwrap() else {
        panic!("joined nobody's flight");
    };
    let flight = gate.snapshot("key").await.flight.unwrap();
    assert_eq!((flight.stage, flight.waiting_for), (Stage::Launch, None));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_is_told_who_holds_the_lock_that_its_flight_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let _elsewhere = lead(&Gate::builder(lock.clone()).build(), "key").await;
    let gate = Gate::builder(lock)
        .lock_timeout(seconds(100))
        .follow_timeout(seconds(10))
        .build();
    let _leading = tokio::spawn({
        let gate = gate.clone();
        async move { gate.acquire("key").await }
    });
    tokio::task::yield_now().await;
    let Err(GateError::Timeout(error)) = gate.acquire("key").await else {
        panic!("it did not give up");
    };
    assert_eq!(error.stage, Stage::Follow);
    let holder = error.waiting_for.expect("a holder");
    assert_eq!(holder.pid, std::process::id());
}

#[tokio::test(start_paused = true)]
async fn snapshots_list_every_key_that_is_charged_or_in_flight_and_no_other() {
    let gate = gate(3);
    let permit = lead(&gate, "in flight").await;
    fail_once(&gate, "failed").await;
    lead(&gate, "succeeded").await.succeed(7).await.unwrap();
    lead(&gate, "refunded").await.refund().await;
    lead(&gate, "discovered").await.discovered(7).await;
    drop(lead(&gate, "dropped").await);
    gate.snapshot("only looked at").await;
    let listed = || async {
        let mut listed: Vec<_> = gate
            .snapshots()
            .await
            .into_iter()
            .map(|of| (of.budget.key, of.budget.attempts_used, of.flight.is_some()))
            .collect();
        listed.sort_unstable();
        listed
    };
    assert_eq!(
        listed().await,
        [
            ("dropped", 1, false),
            ("failed", 1, false),
            ("in flight", 1, true)
        ]
    );
    // Failures go with their window; a flight stays, although its own has ended too.
    advance(WINDOW).await;
    assert_eq!(listed().await, [("in flight", 0, true)]);
    permit.succeed(7).await.unwrap();
    assert_eq!(listed().await, []);
}

/// A key that tells how many clones of it there are.
#[derive(Clone, Debug)]
struct CountedKey {
    number: u32,
    _clones: Arc<()>,
}

impl PartialEq for CountedKey {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for CountedKey {}

impl Hash for CountedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl GateKey for CountedKey {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(&self.number.to_le_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn the_gate_keeps_no_key_that_is_idle() {
    let gate = SpawnGate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(3, WINDOW))
        .build();
    let clones = Arc::new(());
    let key = |number| CountedKey {
        number,
        _clones: Arc::clone(&clones),
    };
    let launcher = Script::launching(|_| async { Ok(7) });
    for number in 0..10_000 {
        gate.launch(key(number), launcher.clone()).await.unwrap();
        lead(&gate, key(number)).await.succeed(7).await.unwrap();
    }
    // A few are kept for a while in case that they are asked for again.
    let kept = Arc::strong_count(&clones) - 1;
    assert!(kept < 10_000 / 4, "{kept}");
    assert!(gate.snapshots().await.is_empty());

    // All are forgotten after their window, when anybody asks for anything.
    for number in 0..1000 {
        fail_once(&gate, key(number)).await;
    }
    assert_eq!(gate.snapshots().await.len(), 1000);
    advance(WINDOW).await;
    gate.launch(key(0), launcher).await.unwrap();
    assert_eq!(Arc::strong_count(&clones), 1 + 1);
}

// Refusals.

#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_to_retry_which_shrinks_and_never_exceeds_the_window() {
    let gate = gate(1);
    fail_once(&gate, "key").await;
    for (elapsed, then) in [(0, 30), (30, 39), (69, 31)] {
        let refusal = refused(&gate).await;
        assert_eq!(refusal.retry_after, WINDOW - seconds(elapsed));
        assert_eq!(&*refusal.key, "key");
        advance(seconds(then)).await;
    }
    // Exactly then, it helps.
    assert_eq!(lead(&gate, "key").await.attempt_number(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_refusal_of_each_storm_is_marked_and_no_other() {
    let gate = gate(1);
    for storm in 1..=2 {
        fail_once(&gate, "key").await;
        let mut marked = Vec::new();
        for _ in 0..100 {
            marked.push(refused(&gate).await.first);
        }
        assert!(marked[0], "storm {storm}");
        assert!(!marked[1..].contains(&true), "storm {storm}");
        advance(WINDOW).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_is_a_new_one_after_a_charge_although_the_key_was_never_idle() {
    let gate = Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(2, WINDOW))
        .window_kind(WindowKind::Sliding)
        .build();
    fail_once(&gate, "key").await;
    for storm in 1..=3 {
        advance(WINDOW / 2).await;
        fail_once(&gate, "key").await;
        assert!(refused(&gate).await.first, "storm {storm}");
        assert!(!refused(&gate).await.first, "storm {storm}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_window_is_forgotten_as_a_whole_and_a_sliding_one_attempt_by_attempt() {
    for (kind, next_number) in [(WindowKind::Fixed, 1), (WindowKind::Sliding, 2)] {
        let gate = Gate::builder(InMemorySpawnLock::new())
            .budget(SpawnBudgetConfig::new(2, WINDOW))
            .window_kind(kind)
            .build();
        fail_once(&gate, "key").await;
        advance(seconds(90)).await;
        fail_once(&gate, "key").await;
        assert_eq!(refused(&gate).await.retry_after, seconds(10));
        advance(seconds(10)).await;
        let permit = lead(&gate, "key").await;
        assert_eq!(permit.attempt_number(), next_number, "{kind:?}");
        permit.fail("no such program").await;
        if kind == WindowKind::Sliding {
            assert_eq!(refused(&gate).await.retry_after, seconds(90));
        }
    }
}

// Reset.

#[tokio::test(start_paused = true)]
async fn reset_gives_one_key_its_budget_back() {
    let gate = gate(1);
    fail_once(&gate, "key").await;
    fail_once(&gate, "other").await;
    refused(&gate).await;
    gate.reset("key").await.unwrap();
    assert_eq!(lead(&gate, "key").await.attempt_number(), 1);
    refusal(gate.acquire("other").await);
    gate.reset("never seen").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reset_lets_a_flight_go_on_and_its_failure_does_not_count() {
    let gate = gate(1);
    let permit = lead(&gate, "key").await;
    let mut follower = task::spawn(gate.acquire("key"));
    assert_pending!(follower.poll());
    gate.reset("key").await.unwrap();
    let snapshot = gate.snapshot("key").await;
    assert!(snapshot.flight.is_some());
    assert_eq!(snapshot.budget.attempts_used, 0);
    let mut second = task::spawn(gate.acquire("key"));
    assert_pending!(second.poll());

    permit.fail("no such program").await;
    for follower in [&mut follower, &mut second] {
        let error = assert_ready!(follower.poll()).unwrap_err();
        assert!(matches!(error, GateError::Launch(_)), "{error:?}");
    }
    assert!(gate.snapshots().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refund_after_a_reset_gives_nothing_back_twice() {
    let gate = gate(2);
    fail_once(&gate, "key").await;
    let permit = lead(&gate, "key").await;
    gate.reset("key").await.unwrap();
    permit.refund().await;
    fail_once(&gate, "key").await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_is_kept_and_not_polled_keeps_the_lock_from_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let gates = [(); 2].map(|()| Gate::new(directory.path()).unwrap());
    let [operators, other] = gates;
    let mut kept = task::spawn(operators.reset("key"));
    assert_pending!(kept.poll());
    lead(&other, "key").await.succeed(1).await.unwrap();
    drop(kept);
}

#[tokio::test(start_paused = true)]
async fn a_reset_goes_on_when_its_caller_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let path = lock.path_of(&"key");
    let gate = Gate::builder(lock).build();
    fail_once(&gate, "key").await;
    let mut reset = task::spawn(gate.reset("key"));
    assert_pending!(reset.poll());
    drop(reset);
    let is_reset = async {
        while !matches!(
            inspect_spawn_lock(&path).unwrap().ledger,
            LedgerReading::Found(ledger) if ledger.attempts_charged() == 0
        ) {
            sleep(seconds(1)).await;
        }
    };
    timeout(seconds(3600), is_reset).await.unwrap();
}

// A success that has to prove stable.

const STABLE: Duration = Duration::from_secs(20);

fn gate_with_stable_after(max_attempts: u32) -> Gate {
    Gate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(max_attempts, WINDOW))
        .stable_after(STABLE)
        .build()
}

/// A launcher that always succeeds, and finds a backend or none.
fn starts_well(found: Option<u32>) -> Script {
    Script::launching(|_| async { Ok(7) }).discovering(move |_| async move { Ok(found) })
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_starts_well_and_dies_at_once_is_stopped_by_the_budget() {
    let gate = gate_with_stable_after(3);
    let launcher = starts_well(None);
    for _ in 0..3 {
        gate.launch("key", launcher.clone()).await.unwrap();
        advance(STABLE - seconds(1)).await;
    }
    let refusal = refusal(gate.launch("key", launcher.clone()).await);
    assert_eq!(refusal.retry_after, WINDOW - 3 * (STABLE - seconds(1)));
    assert!(refusal.first);
    assert_eq!(launcher.launches(), 3);
    // It was looked for once more, and is not again.
    assert_eq!(launcher.discover.calls(), 4);
    let again = gate.launch("key", launcher.clone()).await.unwrap_err();
    assert!(matches!(again, GateError::BudgetExhausted(again) if !again.first));
    assert_eq!(launcher.discover.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_running_backend_is_found_although_the_budget_is_used_up() {
    let gate = gate_with_stable_after(1);
    gate.launch("key", starts_well(None)).await.unwrap();
    for _ in 0..3 {
        let found = gate.launch("key", starts_well(Some(7))).await.unwrap();
        assert_eq!(found.how, How::Discovered);
    }
    // A bare permit would be for a launch, of which none is left.
    refused(&gate).await;
    // The one that only looks is no attempt, and is seen as such.
    let slow = starts_well(None).discovering(|_| async {
        sleep(seconds(5)).await;
        Ok(Some(7))
    });
    let asked = tokio::spawn({
        let (gate, slow) = (gate.clone(), slow.clone());
        async move { gate.launch("key", slow).await }
    });
    until_waiting(&gate, "key", 1).await;
    let snapshot = gate.snapshot("key").await;
    assert_eq!(snapshot.flight.unwrap().attempt_number, None);
    assert_eq!(
        (snapshot.budget.attempts_used, snapshot.budget.in_flight),
        (1, true)
    );
    assert_eq!(asked.await.unwrap().unwrap().how, How::Discovered);
    assert_eq!(slow.launches(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_running_backend_is_found_although_no_attempt_is_left_and_is_looked_for_once_a_second() {
    let gate = gate(1);
    fail_once(&gate, "key").await;
    let is_up = Arc::new(AtomicBool::new(false));
    let launcher = Script::launching(|_| async { panic!("no attempt is left") }).discovering({
        let is_up = Arc::clone(&is_up);
        move |_| {
            let found = is_up.load(Ordering::SeqCst).then_some(7);
            async move { Ok(found) }
        }
    });
    for looks in 1..=3 {
        for _ in 0..100 {
            refusal(gate.launch("key", launcher.clone()).await);
        }
        assert_eq!(launcher.discover.calls(), looks);
        advance(seconds(1)).await;
    }
    is_up.store(true, Ordering::SeqCst);
    // One that runs is found by each request.
    for _ in 0..3 {
        let found = gate.launch("key", launcher.clone()).await.unwrap();
        assert_eq!((found.value, found.how), (7, How::Discovered));
    }
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_had_to_look_first_counts_the_time_that_took() {
    let gate = gate_with_stable_after(1);
    gate.launch("key", starts_well(None)).await.unwrap();
    let gone = starts_well(None).discovering(|_| async {
        sleep(seconds(5)).await;
        Ok(None)
    });
    let refusal = refusal(gate.launch("key", gone).await);
    assert_eq!(refusal.retry_after, WINDOW - seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_up_for_its_time_gets_its_budget_back() {
    let gate = gate_with_stable_after(1);
    let launcher = starts_well(None);
    gate.launch("key", launcher.clone()).await.unwrap();
    advance(STABLE - seconds(1)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 1);
    advance(seconds(1)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
    assert!(gate.snapshots().await.is_empty());
    let launched = gate.launch("key", launcher.clone()).await.unwrap();
    assert_eq!(launched.how, How::Led);
    assert_eq!(launcher.launches(), 2);
}

#[tokio::test(start_paused = true)]
async fn finding_a_backend_does_not_put_off_when_it_counts_as_stable() {
    let gate = gate_with_stable_after(2);
    gate.launch("key", starts_well(None)).await.unwrap();
    advance(STABLE - seconds(1)).await;
    let found = gate.launch("key", starts_well(Some(7))).await.unwrap();
    assert_eq!(found.how, How::Discovered);
    advance(seconds(1)).await;
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
}
