//! Runs a scenario under many schedules, or under one that failed.

use std::cell::Cell;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;
use std::{env, thread};

use shuttle::scheduler::{
    DataSource, PctScheduler, RandomDataSource, ReplayScheduler, Schedule, Scheduler, Task, TaskId,
};
use shuttle::{Config, MaxSteps, Runner};

use crate::stand_in::tokio::{task, time};

/// The schedules of each scenario, unless `SCHEDULES` says otherwise: all scenarios together then take some seconds.
const FEW: usize = 500;

/// A scenario takes some hundred steps. One that takes this many never ends.
const MAX_STEPS: usize = 50_000;

/// The preemptions of a schedule by priorities. Most bugs of order need one or two.
const PREEMPTIONS: usize = 3;

/// The task that moves the clock: the first that is spawned.
const CLOCK: usize = 1;

thread_local! {
    /// No other task can run.
    static IS_CLOCK_ALONE: Cell<bool> = const { Cell::new(false) };
    static IS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// When timers run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Once no task can run.
    Waits,
    /// In two schedules of three at any moment, as if the machine were busy.
    Rushes,
}

/// Runs `scenario` under as many schedules as `SCHEDULES` says, or under the one in `SCHEDULES_REPLAY`. Afterwards waits until
/// all tasks have ended. Panics if the scenario does, if a task hangs, or if a timer is left.
pub fn explore<F>(time: Time, scenario: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let name = thread::current().name().unwrap_or("?").to_owned();
    let replayed = env::var("SCHEDULES_REPLAY").ok();
    let director = match &replayed {
        Some(schedule) => Director::replays(schedule.trim()),
        None => Director::explores(time, &name),
    };
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    // The futures of a build without optimization need it.
    config.stack_size = 0x4_0000;
    let _hint = Hint(&name);
    let began = Instant::now();
    let schedules = Runner::new(director, config).run(move || run(scenario()));
    let seconds = began.elapsed().as_secs_f64();
    println!("{name}: {schedules} schedules in {seconds:.1} s");
}

fn run(scenario: impl Future<Output = ()>) {
    time::reset();
    task::reset();
    IS_OVER.set(false);
    let clock = shuttle::future::spawn(move_clock());
    shuttle::future::block_on(async {
        scenario.await;
        task::all_ended().await;
        assert_eq!(time::timers(), 0, "a timer is left");
        IS_OVER.set(true);
        clock.await.expect("the clock is not aborted");
    });
}

async fn move_clock() {
    assert_eq!(usize::from(shuttle::current::me()), CLOCK);
    loop {
        shuttle::future::yield_now().await;
        if IS_OVER.get() {
            return;
        }
        let is_alone = IS_CLOCK_ALONE.get();
        let has_moved = time::go_on();
        assert!(
            has_moved || !is_alone,
            "a hang: all tasks wait, and not for a timer"
        );
    }
}

/// Says how to replay if the scenario fails.
struct Hint<'a>(&'a str);

impl Drop for Hint<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "to replay: SCHEDULES_REPLAY='(the schedule above)' cargo test --release \
                 --manifest-path schedules/Cargo.toml --test schedules {} -- --exact",
                self.0
            );
        }
    }
}

/// Chooses the schedules. One of two is a walk by chance, which prefers the current task more or less; the other goes by
/// priorities that change a few times. On top of both, it decides when the clock moves.
struct Director {
    walk: Walk,
    left: usize,
    chance: Chance,
    time: Time,
    /// In how many of 100 steps the clock moves although other tasks can run.
    haste: u64,
    /// In how many of 100 steps a walk by chance may leave the current task.
    restlessness: u64,
    is_by_priorities: bool,
}

enum Walk {
    Explore {
        data: RandomDataSource,
        by_priorities: PctScheduler,
    },
    Replay(ReplayScheduler),
}

impl Director {
    fn explores(time: Time, name: &str) -> Self {
        let seed: u64 = number("SCHEDULES_SEED").unwrap_or(0);
        let mut hasher = DefaultHasher::new();
        (name, seed).hash(&mut hasher);
        let mut chance = Chance(hasher.finish());
        let walk = Walk::Explore {
            data: RandomDataSource::initialize(chance.next()),
            by_priorities: PctScheduler::new_from_seed(chance.next(), PREEMPTIONS, usize::MAX),
        };
        let left = number("SCHEDULES").map_or(FEW, |schedules| schedules.try_into().unwrap());
        Self::new(walk, left, chance, time)
    }

    fn replays(schedule: &str) -> Self {
        let replay = ReplayScheduler::new_from_encoded(schedule);
        Self::new(Walk::Replay(replay), 1, Chance(0), Time::Waits)
    }

    fn new(walk: Walk, left: usize, chance: Chance, time: Time) -> Self {
        Self {
            walk,
            left,
            chance,
            time,
            haste: 0,
            restlessness: 100,
            is_by_priorities: false,
        }
    }
}

/// A variable as a number.
fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value} is no number")),
    )
}

impl Scheduler for Director {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.left.checked_sub(1)?;
        self.haste = match self.time {
            Time::Waits => 0,
            Time::Rushes => self.chance.pick([0, 2, 10]),
        };
        self.restlessness = self.chance.pick([100, 50, 20, 5]);
        self.is_by_priorities = !self.is_by_priorities;
        match &mut self.walk {
            Walk::Replay(replay) => replay.new_execution(),
            Walk::Explore { by_priorities, .. } if self.is_by_priorities => {
                by_priorities.new_execution()
            }
            Walk::Explore { data, .. } => Some(Schedule::new(data.reinitialize())),
        }
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let is_clock = |task: &Task| usize::from(task.id()) == CLOCK;
        let others: Vec<&Task> = runnable
            .iter()
            .copied()
            .filter(|task| !is_clock(task))
            .collect();
        IS_CLOCK_ALONE.set(others.is_empty());
        let by_priorities = match &mut self.walk {
            Walk::Replay(replay) => return replay.next_task(runnable, current, is_yielding),
            Walk::Explore { by_priorities, .. } => by_priorities,
        };
        let can_clock_move = others.len() < runnable.len();
        if others.is_empty() || (can_clock_move && self.chance.percent(self.haste)) {
            return Some(TaskId::from(CLOCK));
        }
        if self.is_by_priorities {
            return by_priorities.next_task(&others, current, is_yielding);
        }
        let stays = !is_yielding && !self.chance.percent(self.restlessness);
        let stayed = others
            .iter()
            .find(|task| stays && Some(task.id()) == current);
        let next = stayed.unwrap_or_else(|| self.chance.pick_from(&others));
        Some(next.id())
    }

    fn next_u64(&mut self) -> u64 {
        match &mut self.walk {
            Walk::Replay(replay) => replay.next_u64(),
            Walk::Explore { by_priorities, .. } if self.is_by_priorities => {
                by_priorities.next_u64()
            }
            Walk::Explore { data, .. } => data.next_u64(),
        }
    }
}

/// The director's own chance (splitmix64): the scenario's comes from the schedule, which records it.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn percent(&mut self, times: u64) -> bool {
        times > 0 && self.next() % 100 < times
    }

    fn pick<const N: usize>(&mut self, from: [u64; N]) -> u64 {
        *self.pick_from(&from)
    }

    fn pick_from<'a, V>(&mut self, from: &'a [V]) -> &'a V {
        &from[usize::try_from(self.next() % from.len() as u64).unwrap()]
    }
}
