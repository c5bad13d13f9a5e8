//! The world around the gates: its chance, its clock, the backends that run, and who watches all that.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spawn_gate::budget::{BootReading, ClockReading, SharedClock};
use spawn_gate::{GateKey, LaunchPermit};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::checks::Checks;
use crate::config::Config;
use crate::leash::{Herd, Ticks, tick};
use crate::model::Millis;

/// A key that counts its copies: at the end, a gate has forgotten all of them.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) copies: Arc<()>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
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

pub(crate) type Permit = LaunchPermit<Key, u64>;

/// What goes wrong with a call of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Before,
    /// It is done, and its caller is told that it failed.
    After,
}

/// A backend that runs, named by the launch that started it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    pub(crate) key: &'static str,
    pub(crate) launch: u64,
    pub(crate) token: u64,
}

pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) ticks: Ticks,
    pub(crate) herd: Arc<Herd>,
    chance: Mutex<Chance>,
    is_calm: Mutex<bool>,
    pub(crate) backends: Mutex<Vec<Backend>>,
    checks: Mutex<Checks>,
}

impl World {
    pub(crate) fn new(config: Config, chance: &mut Chance) -> Arc<Self> {
        let ticks = Ticks::default();
        let herd = Arc::new(Herd::default());
        tokio::spawn(Arc::clone(&herd).drive());
        Arc::new(Self {
            herd,
            clock: Clock::new(),
            chance: Mutex::new(chance.fork()),
            is_calm: Mutex::new(false),
            backends: Mutex::default(),
            checks: Mutex::new(Checks::new(config.clone())),
            ticks,
            config,
        })
    }

    /// Tells those who watch. All that happens at one moment has a number of its own.
    pub(crate) fn see<V>(&self, event: impl FnOnce(&mut Checks) -> V) -> V {
        let now = self.clock.millis();
        // A panic elsewhere is told by its thread.
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.at(now, tick(&self.ticks));
        event(&mut checks)
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm_down(&self) {
        *self.is_calm.lock().unwrap() = true;
    }

    pub(crate) fn fault(&self) -> Fault {
        if *self.is_calm.lock().unwrap() {
            return Fault::None;
        }
        let mut chance = self.chance.lock().unwrap();
        match chance.percent(self.config.faults) {
            false => Fault::None,
            true => chance.pick(&[Fault::Before, Fault::After]),
        }
    }

    /// A call of the lock may be late.
    pub(crate) async fn dawdle(&self) {
        if *self.is_calm.lock().unwrap() {
            return;
        }
        let late = {
            let mut chance = self.chance.lock().unwrap();
            let is_late = chance.percent(self.config.slow);
            // Some take longer than any call may.
            is_late.then(|| match chance.percent(3) {
                true => 7_000,
                false => chance.below(900),
            })
        };
        if let Some(late) = late {
            sleep(Duration::from_millis(late)).await;
        }
    }

    /// The backend that a look finds.
    pub(crate) fn running(&self, key: &Key) -> Option<u64> {
        let backends = self.backends.lock().unwrap();
        let newest = backends
            .iter()
            .rev()
            .find(|backend| backend.key == key.name);
        newest.map(|backend| backend.launch)
    }

    pub(crate) fn stop(&self, launch: u64) {
        let mut backends = self.backends.lock().unwrap();
        backends.retain(|backend| backend.launch != launch);
    }
}

/// The runtime's clock, which all processes share. It can be read on threads that the runtime does not know.
#[derive(Clone)]
pub(crate) struct Clock {
    runtime: Handle,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let (runtime, start) = (Handle::current(), Instant::now());
        Self { runtime, start }
    }

    pub(crate) fn millis(&self) -> Millis {
        let _entered = self.runtime.enter();
        Millis::try_from(self.start.elapsed().as_millis()).unwrap()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl SharedClock for Clock {
    fn now(&self) -> ClockReading {
        let elapsed = Duration::from_millis(self.millis());
        ClockReading {
            unix: Duration::from_secs(1_800_000_000) + elapsed,
            boot: Some(BootReading {
                id: 7,
                elapsed: Duration::from_secs(5_000) + elapsed,
            }),
        }
    }
}
