//! The budget (promises 1, 5, 8-13, for the synchronous core), by example and against a model that keeps every event.

mod support;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use spawn_gate::budget::WindowKind;
use spawn_gate::{SpawnBeginError, SpawnBudgetConfig, SpawnCoordinator, SpawnOutcome};

use crate::support::seconds;

const WINDOW: Duration = Duration::from_secs(10);

fn coordinator(max_attempts: u32) -> SpawnCoordinator<&'static str> {
    SpawnCoordinator::with_config(SpawnBudgetConfig::new(max_attempts, WINDOW))
}

/// Begins an attempt and lets it fail at once.
fn fail_once(coordinator: &mut SpawnCoordinator<&'static str>, now: Instant) {
    coordinator.try_begin("key", now).unwrap();
    coordinator.finish(&"key", SpawnOutcome::Failed, now);
}

fn retry_after(coordinator: &mut SpawnCoordinator<&'static str>, now: Instant) -> Duration {
    match coordinator.try_begin("key", now) {
        Err(SpawnBeginError::BudgetExhausted {
            retry_after,
            remaining: 0,
        }) => retry_after,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn zero_attempts_mean_one_and_a_zero_window_means_a_millisecond_however_they_are_given() {
    let literal = SpawnBudgetConfig {
        max_attempts: 0,
        window: Duration::ZERO,
    };
    let mut coordinator = SpawnCoordinator::with_config(literal);
    let now = Instant::now();
    fail_once(&mut coordinator, now);
    assert_eq!(retry_after(&mut coordinator, now), Duration::from_millis(1));
    assert!(
        coordinator
            .try_begin("key", now + Duration::from_millis(1))
            .is_ok()
    );
}

#[test]
fn a_launch_longer_than_its_window_admits_no_second_one() {
    let mut coordinator = coordinator(3);
    let now = Instant::now();
    coordinator.try_begin("key", now).unwrap();
    for windows in [1, 2, 1000] {
        let later = now + windows * WINDOW;
        assert_eq!(
            coordinator.try_begin("key", later),
            Err(SpawnBeginError::AlreadyInProgress)
        );
        assert!(coordinator.snapshot("key", later).in_flight);
    }
}

#[test]
fn a_window_begins_with_its_first_attempt_and_ends_as_a_whole() {
    let mut coordinator = coordinator(2);
    let now = Instant::now();
    fail_once(&mut coordinator, now);
    fail_once(&mut coordinator, now + seconds(9));
    assert_eq!(retry_after(&mut coordinator, now + seconds(9)), seconds(1));
    let permit = coordinator.try_begin("key", now + seconds(10)).unwrap();
    assert_eq!(
        (permit.attempt_number, permit.remaining_after_begin),
        (1, 1)
    );
}

#[test]
fn a_sliding_window_never_lets_through_more_than_the_maximum_in_any_span_of_its_length() {
    let mut coordinator = coordinator(2).with_window_kind(WindowKind::Sliding);
    let now = Instant::now();
    fail_once(&mut coordinator, now);
    fail_once(&mut coordinator, now + seconds(9));
    // A fixed window would give two more at 10 s: three within a second.
    fail_once(&mut coordinator, now + seconds(10));
    assert_eq!(retry_after(&mut coordinator, now + seconds(10)), seconds(9));
}

#[test]
fn success_counts_as_stable_only_after_its_time_when_that_is_asked_for() {
    let mut coordinator = coordinator(2).with_stable_after(seconds(5));
    let now = Instant::now();
    coordinator.try_begin("key", now).unwrap();
    coordinator.finish(&"key", SpawnOutcome::Success, now);
    assert_eq!(
        coordinator.snapshot("key", now + seconds(4)).attempts_used,
        1
    );
    assert_eq!(
        coordinator.snapshot("key", now + seconds(5)).attempts_used,
        0
    );

    // The backend that has to be launched again too soon was not stable.
    coordinator.try_begin("key", now + seconds(4)).unwrap();
    assert_eq!(
        coordinator.snapshot("key", now + seconds(6)).attempts_used,
        2
    );
    coordinator.finish(&"key", SpawnOutcome::Failed, now + seconds(6));
    assert_eq!(retry_after(&mut coordinator, now + seconds(6)), seconds(4));
}

#[test]
fn an_attempt_refunded_after_its_window_ended_takes_nothing_from_the_next() {
    let mut coordinator = coordinator(3);
    let now = Instant::now();
    coordinator.try_begin("key", now).unwrap();
    let attempt = coordinator.attempt_in_flight(&"key").unwrap();
    assert!(coordinator.refund(&"key", attempt, now + 2 * WINDOW));
    fail_once(&mut coordinator, now + 2 * WINDOW);
    assert!(!coordinator.refund(&"key", attempt, now + 2 * WINDOW));
    assert_eq!(
        coordinator.snapshot("key", now + 2 * WINDOW).attempts_used,
        1
    );
}

#[test]
fn a_clock_that_steps_back_inflates_no_wait_and_frees_no_attempt() {
    for kind in [WindowKind::Fixed, WindowKind::Sliding] {
        let mut coordinator = coordinator(2).with_window_kind(kind);
        let now = Instant::now() + seconds(100);
        fail_once(&mut coordinator, now);
        fail_once(&mut coordinator, now - seconds(50));
        assert_eq!(retry_after(&mut coordinator, now - seconds(50)), WINDOW);
    }
}

#[test]
fn keys_with_nothing_charged_or_in_flight_are_forgotten() {
    let mut coordinator = SpawnCoordinator::with_config(SpawnBudgetConfig::new(3, WINDOW));
    let now = Instant::now();
    for key in 0..1000 {
        coordinator.try_begin(key, now).unwrap();
        coordinator.finish(&key, SpawnOutcome::Failed, now);
    }
    assert_eq!(coordinator.snapshots(now).len(), 1000);
    coordinator.try_begin(1000, now + WINDOW).unwrap();
    assert_eq!(coordinator.snapshots(now + WINDOW).len(), 1);
    // Not only hidden: the text of a table that still held them would be long.
    assert!(format!("{coordinator:?}").len() < 1000);
}

#[test]
fn a_key_is_forgotten_at_once_when_its_last_attempt_succeeds_or_is_refunded() {
    let mut coordinator = coordinator(3);
    let now = Instant::now();
    let is_known =
        |coordinator: &SpawnCoordinator<&str>| format!("{coordinator:?}").contains("\"key\"");

    coordinator.try_begin("key", now).unwrap();
    assert!(is_known(&coordinator));
    coordinator.finish(&"key", SpawnOutcome::Success, now);
    assert!(!is_known(&coordinator));

    coordinator.try_begin("key", now).unwrap();
    let attempt = coordinator.attempt_in_flight(&"key").unwrap();
    assert!(coordinator.refund(&"key", attempt, now));
    assert!(!is_known(&coordinator));
}

/// What a caller can do, with the seconds that pass before it.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    Finish(SpawnOutcome),
    Refund,
    FinishStale(SpawnOutcome),
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let outcome = prop_oneof![Just(SpawnOutcome::Success), Just(SpawnOutcome::Failed)];
    let step = prop_oneof![
        6 => Just(Step::Begin),
        4 => outcome.clone().prop_map(Step::Finish),
        2 => Just(Step::Refund),
        1 => outcome.prop_map(Step::FinishStale),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec((0..7u64, step), 0..80)
}

/// Keeps the times of all charges that were not taken back, and counts them anew for each question.
#[derive(Default)]
struct Model {
    charges: Vec<u64>,
    in_flight: Option<u64>,
    up_since: Option<u64>,
}

impl Model {
    /// The charges that count at `now`.
    fn counting(&self, rules: &Rules, now: u64) -> Vec<u64> {
        let stable = match (self.up_since, rules.stable_after) {
            (Some(since), Some(after)) => self.in_flight.is_none() && now >= since + after,
            _ => false,
        };
        if stable {
            return Vec::new();
        }
        let window = WINDOW.as_secs();
        match rules.kind {
            WindowKind::Sliding => self
                .charges
                .iter()
                .copied()
                .filter(|at| at + window > now)
                .collect(),
            _ => {
                let mut current: Vec<u64> = Vec::new();
                for &at in &self.charges {
                    if current.first().is_some_and(|began| at >= began + window) {
                        current.clear();
                    }
                    current.push(at);
                }
                if current.first().is_some_and(|began| now >= began + window) {
                    current.clear();
                }
                current
            }
        }
    }

    fn settle(&mut self, outcome: SpawnOutcome, rules: &Rules, now: u64) {
        if self.in_flight.take().is_none() {
            return;
        }
        self.up_since = None;
        if outcome == SpawnOutcome::Success {
            match rules.stable_after {
                None => self.charges.clear(),
                Some(_) => self.up_since = Some(now),
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    max: u32,
    kind: WindowKind,
    stable_after: Option<u64>,
}

fn rules() -> impl Strategy<Value = Rules> {
    let kind = prop_oneof![Just(WindowKind::Fixed), Just(WindowKind::Sliding)];
    (1..5u32, kind, prop::option::of(1..15u64)).prop_map(|(max, kind, stable_after)| Rules {
        max,
        kind,
        stable_after,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_coordinator_agrees_with_a_model_that_counts_every_event_anew(
        rules in rules(),
        steps in steps(),
    ) {
        let start = Instant::now();
        let mut subject = coordinator(rules.max).with_window_kind(rules.kind);
        if let Some(after) = rules.stable_after {
            subject = subject.with_stable_after(seconds(after));
        }
        let mut model = Model::default();
        let mut stale = None;
        let mut now = 0;
        for (pause, step) in steps {
            now += pause;
            let at = start + seconds(now);
            match step {
                Step::Begin => {
                    let counting = model.counting(&rules, now);
                    match subject.try_begin("key", at) {
                        Ok(permit) => {
                            prop_assert!(model.in_flight.is_none());
                            prop_assert!(counting.len() < rules.max as usize);
                            prop_assert_eq!(permit.attempt_number as usize, counting.len() + 1);
                            prop_assert_eq!(permit.remaining_after_begin, rules.max - permit.attempt_number);
                            if counting.is_empty() {
                                model.up_since = None;
                            }
                            model.charges = counting;
                            model.charges.push(now);
                            model.in_flight = Some(now);
                        }
                        Err(SpawnBeginError::AlreadyInProgress) => {
                            prop_assert!(model.in_flight.is_some());
                        }
                        Err(SpawnBeginError::BudgetExhausted { retry_after, remaining }) => {
                            prop_assert!(model.in_flight.is_none());
                            prop_assert_eq!(remaining, 0);
                            prop_assert!(counting.len() >= rules.max as usize);
                            prop_assert!(retry_after <= WINDOW);
                            // Exactly then, and not a moment sooner, an attempt is free.
                            let free_at = now + retry_after.as_secs();
                            prop_assert!(model.counting(&rules, free_at).len() < rules.max as usize);
                            let mut asleep = model.counting(&Rules { stable_after: None, ..rules }, free_at - 1);
                            asleep.truncate(rules.max as usize);
                            prop_assert_eq!(asleep.len(), rules.max as usize);
                        }
                    }
                }
                Step::Finish(outcome) => {
                    stale = subject.attempt_in_flight(&"key").or(stale);
                    subject.finish(&"key", outcome, at);
                    model.settle(outcome, &rules, now);
                }
                Step::Refund => {
                    if let Some(attempt) = subject.attempt_in_flight(&"key") {
                        stale = Some(attempt);
                        prop_assert!(subject.refund(&"key", attempt, at));
                        model.in_flight = None;
                        model.charges.pop();
                    }
                }
                Step::FinishStale(outcome) => {
                    if let Some(attempt) = stale {
                        prop_assert!(!subject.finish_attempt(&"key", attempt, outcome, at));
                    }
                }
                Step::Reset => {
                    subject.reset(&"key");
                    model.charges.clear();
                    model.up_since = None;
                }
            }
            let snapshot = subject.snapshot("key", at);
            let used = model.counting(&rules, now).len();
            prop_assert_eq!(snapshot.attempts_used as usize, used);
            prop_assert_eq!(snapshot.remaining as usize, (rules.max as usize).saturating_sub(used));
            prop_assert_eq!(snapshot.in_flight, model.in_flight.is_some());
            prop_assert_eq!(snapshot.retry_after.is_some(), snapshot.remaining == 0);
        }
    }
}
