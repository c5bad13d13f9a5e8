//! What a scenario observes: launches in progress, how each ended, and what is left at the end.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use spawn_gate::stand_in::tokio::task::yield_now;
use spawn_gate::{GateKey, SpawnBudgetConfig, SpawnGate};

use crate::lock::Lock;

pub(crate) type Gate = SpawnGate<Key, u64>;

/// Longer than the timers of a schedule together, so that charges do not age.
const LONG: Duration = Duration::from_secs(7 * 24 * 60 * 60);

pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// Its mutex is the standard library's and not a step of the schedule: nothing runs while it is held.
#[derive(Clone, Debug, Default)]
pub(crate) struct World(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    launches: Vec<Record>,
    is_closed: bool,
    /// The keys that exist, by name.
    keys: HashMap<&'static str, usize>,
    /// The number of launches when the budget was last reset for certain.
    reset_at: usize,
}

#[derive(Debug)]
struct Record {
    key: &'static str,
    is_running: bool,
    end: End,
}

/// How a launch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Up,
    /// It failed, or was cut short.
    Charged,
    Refunded,
    /// A backend was running already.
    Found,
    /// Its caller was dropped while it settled.
    Unsure,
}

/// A launch in progress. Dropping it cuts it short.
#[derive(Debug)]
pub(crate) struct Running {
    world: World,
    pub(crate) id: u64,
}

impl World {
    /// A gate of this world with a budget that does not age.
    pub(crate) fn gate(&self, lock: Lock) -> Gate {
        SpawnGate::builder(lock).budget(Self::budget()).build()
    }

    pub(crate) fn budget() -> SpawnBudgetConfig {
        SpawnBudgetConfig::new(MAX_ATTEMPTS, LONG)
    }

    pub(crate) fn key(&self, name: &'static str) -> Key {
        *self.log().keys.entry(name).or_default() += 1;
        let world = self.clone();
        Key { name, world }
    }

    /// A launch begins: no other of its key is in progress, and the gate is open.
    pub(crate) fn begin(&self, key: &Key) -> Running {
        let mut log = self.log();
        assert!(!log.is_closed, "a launch began after the close");
        let mut others = log.launches.iter();
        let is_second = others.any(|other| other.key == key.name && other.is_running);
        assert!(!is_second, "two launches of {key:?} in progress");
        log.launches.push(Record {
            key: key.name,
            is_running: true,
            end: End::Charged,
        });
        let id = log.launches.len() as u64;
        drop(log);
        let world = self.clone();
        Running { world, id }
    }

    pub(crate) fn ended(&self, id: u64, end: End) {
        self.log().launches[id as usize - 1].end = end;
    }

    pub(crate) fn launches(&self) -> usize {
        self.log().launches.len()
    }

    pub(crate) fn ends(&self) -> Vec<End> {
        let log = self.log();
        log.launches.iter().map(|launch| launch.end).collect()
    }

    /// The gate was closed and has drained.
    pub(crate) fn closed(&self) {
        let mut log = self.log();
        log.is_closed = true;
        let is_running = log.launches.iter().any(|launch| launch.is_running);
        assert!(!is_running, "the close did not wait for a launch");
    }

    /// The budget was reset while nothing was in flight.
    pub(crate) fn reset(&self) {
        let mut log = self.log();
        log.reset_at = log.launches.len();
    }

    /// The number of keys of this name that the gate still has.
    pub(crate) fn keys(&self, name: &str) -> usize {
        self.log().keys.get(name).copied().unwrap_or(0)
    }

    /// A value comes from a launch that was up.
    pub(crate) fn check_value(&self, value: u64) {
        let end = self.log().launches[value as usize - 1].end;
        assert!(
            matches!(end, End::Up | End::Found | End::Unsure),
            "launch {value}: {end:?}"
        );
    }

    /// Nothing is in flight, and the charges are those of the launches since the last success.
    pub(crate) async fn check(&self, gate: &Gate, name: &'static str) {
        let snapshot = gate.snapshot(self.key(name)).await;
        assert!(snapshot.flight.is_none(), "in flight: {snapshot:?}");
        let used = snapshot.budget.attempts_used;
        let (least, most) = self.charges(name);
        let ends = self.ends();
        assert!(
            (least..=most).contains(&used),
            "{used} charges after {ends:?}"
        );
        assert!(used <= MAX_ATTEMPTS, "{used} charges");
    }

    fn charges(&self, name: &str) -> (u32, u32) {
        let log = self.log();
        let (mut least, mut most) = (0, 0);
        for launch in log.launches[log.reset_at..]
            .iter()
            .filter(|launch| launch.key == name)
        {
            assert!(!launch.is_running, "a launch is still in progress");
            match launch.end {
                End::Up => (least, most) = (0, 0),
                End::Charged => (least, most) = (least + 1, most + 1),
                End::Refunded | End::Found => {}
                End::Unsure => (least, most) = (0, most + 1),
            }
        }
        (least, most)
    }

    /// Ignores poisoning: a check that failed must not fail once more in a `Drop`.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Ends it. Returns its number, which is the value of a launch.
    pub(crate) fn end(self, end: End) -> u64 {
        self.world.ended(self.id, end);
        self.id
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.world.log().launches[self.id as usize - 1].is_running = false;
    }
}

/// A key that its world counts.
pub(crate) struct Key {
    name: &'static str,
    world: World,
}

impl Clone for Key {
    fn clone(&self) -> Self {
        self.world.key(self.name)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        *self.world.log().keys.get_mut(self.name).unwrap() -= 1;
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl GateKey for Key {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.name.as_bytes());
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// True in so many of 100 cases.
pub(crate) fn percent(times: u32) -> bool {
    thread_rng().gen_ratio(times, 100)
}

/// Gives other tasks some turns.
pub(crate) async fn pause() {
    for _ in 0..thread_rng().gen_range(0..3) {
        yield_now().await;
    }
}
