//! One seed: its world, the steps that its chance picks, and the quiet at its end.

use std::sync::Arc;
use std::time::Duration;

use spawn_gate::budget::WindowKind;
use spawn_gate::lock::{SpawnLease, SpawnLock};
use spawn_gate::{FileSpawnLock, SpawnBudgetConfig};
use tempfile::TempDir;
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::chance::Chance;
use crate::config::Config;
use crate::leash::Leash;
use crate::lock::GateLock;
use crate::requests::{Asker, Gate, Plan, acquire, launch};
use crate::store::Store;
use crate::world::{Key, World};

/// What came of a seed.
pub(crate) struct Run {
    pub(crate) config: Config,
    pub(crate) broken: Option<String>,
    pub(crate) log: Vec<String>,
    pub(crate) launches: usize,
}

/// Where the locks are.
pub(crate) enum Locks {
    Scripted(Store),
    /// The directory is deleted with it.
    Real(FileSpawnLock, #[expect(dead_code)] TempDir),
}

pub(crate) struct Driver {
    pub(crate) world: Arc<World>,
    pub(crate) chance: Chance,
    pub(crate) locks: Locks,
    pub(crate) gates: Vec<Gate>,
    pub(crate) keys: Vec<Key>,
    pub(crate) leashes: Vec<(u64, Leash)>,
    pub(crate) last_request: u64,
    /// Somebody else holds it, who is no gate.
    pub(crate) stranger: Option<Box<dyn SpawnLease>>,
}

/// Runs a seed. Tokio's own chance has a seed only with `tokio_unstable`; `Herd` takes it out of what is woken, and nothing here
/// uses `select!`. With real lock files, the threads that read and write them have a schedule of their own.
pub(crate) fn run(is_real: bool, seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut chance = Chance::new(seed);
        let config = Config::new(is_real, &mut chance);
        let world = World::new(config.clone(), &mut chance);
        let mut driver = Driver::new(Arc::clone(&world), chance);
        driver.steps().await;
        if !driver.is_broken() {
            driver.quiet().await;
        }
        world.see(|checks| Run {
            config,
            broken: checks.broken.take(),
            log: checks.log.drain(..).collect(),
            launches: checks.launches.len(),
        })
    })
}

impl Driver {
    pub(crate) fn new(world: Arc<World>, chance: Chance) -> Self {
        let config = &world.config;
        let locks = match config.is_real {
            false => Locks::Scripted(Store::new(&world)),
            true => {
                let directory = tempfile::tempdir().unwrap();
                let lock = FileSpawnLock::new(directory.path()).unwrap();
                Locks::Real(lock, directory)
            }
        };
        let names = ["a", "b", "another"];
        let mut driver = Self {
            keys: names
                .map(|name| Key {
                    name,
                    copies: Arc::default(),
                })
                .into(),
            world: Arc::clone(&world),
            chance,
            locks,
            gates: Vec::new(),
            leashes: Vec::new(),
            last_request: 0,
            stranger: None,
        };
        driver.gates = (0..config.gates).map(|gate| driver.gate(gate)).collect();
        driver
    }

    pub(crate) fn inner(&self) -> Arc<dyn SpawnLock<Key>> {
        match &self.locks {
            Locks::Scripted(store) => Arc::new(store.clone()),
            Locks::Real(lock, _) => Arc::new(lock.clone()),
        }
    }

    pub(crate) fn gate(&self, gate: usize) -> Gate {
        let config = &self.world.config;
        let time = Duration::from_millis;
        let builder = Gate::builder(GateLock {
            inner: self.inner(),
            gate,
            world: Arc::clone(&self.world),
        });
        let builder = builder
            .budget(SpawnBudgetConfig::new(
                config.rules.max,
                time(config.rules.window),
            ))
            .window_kind(match config.rules.is_sliding {
                true => WindowKind::Sliding,
                false => WindowKind::Fixed,
            })
            .lock_timeout(time(config.lock))
            .discover_timeout(time(config.discover))
            .launch_timeout(time(config.launch))
            .follow_timeout(time(config.follow))
            .drain_timeout(time(config.drain))
            .clock(self.world.clock.clone());
        match config.rules.stable_after {
            Some(after) => builder.stable_after(time(after)).build(),
            None => builder.build(),
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.world.see(|checks| checks.broken.is_some())
    }

    pub(crate) async fn steps(&mut self) {
        for _ in 0..self.world.config.steps {
            self.step().await;
            self.pass().await;
            self.look_at_gates();
            if self.is_broken() {
                return;
            }
        }
    }

    /// Lets others run, and mostly lets time pass.
    pub(crate) async fn pass(&mut self) {
        match self.chance.below(4) {
            0 => {
                for _ in 0..self.chance.below(6) {
                    yield_now().await;
                }
            }
            1 => sleep(Duration::from_millis(1)).await,
            _ => {
                let stride = self.chance.below(self.world.config.stride);
                sleep(Duration::from_millis(stride)).await;
            }
        }
    }

    pub(crate) async fn step(&mut self) {
        let (losses, leashes) = (self.world.config.losses, self.world.config.leashes);
        if self.chance.percent(losses) {
            return self.lose();
        }
        if self.chance.percent(leashes) {
            return self.pull();
        }
        match self.chance.below(100) {
            0..70 => {
                let (key, gate) = (self.any_key(), self.any_gate());
                // A crowd now and then: most of it follows.
                for _ in 0..self.chance.pick(&[1, 1, 2, 4]) {
                    self.ask(gate, &key);
                }
            }
            70..80 => self.stop_backend(),
            80..84 => self.reset(),
            84..89 => self.abort(),
            89..95 => self.hold().await,
            95 => self.close(),
            _ => {}
        }
    }

    pub(crate) fn any_key(&mut self) -> Key {
        let place = self.chance.below(self.world.config.keys as u64);
        self.keys[usize::try_from(place).unwrap()].clone()
    }

    pub(crate) fn any_gate(&mut self) -> usize {
        usize::try_from(self.chance.below(self.gates.len() as u64)).unwrap()
    }

    pub(crate) fn ask(&mut self, gate: usize, key: &Key) {
        self.last_request += 1;
        let asker = Asker {
            number: self.last_request,
            place: (gate, key.name),
            key: key.clone(),
            plan: Plan::new(&self.world.config, &mut self.chance),
            world: Arc::clone(&self.world),
        };
        let leash = Leash::new(self.last_request, &self.world.ticks, &self.world.herd);
        let gate = self.gates[gate].clone();
        match self.chance.percent(60) {
            true => leash.run(launch(asker, gate, leash.clone())),
            false => leash.run(acquire(asker, gate, leash.clone())),
        }
        self.leashes.push((self.last_request, leash));
    }

    /// Freezes, drops or lets go on a request.
    pub(crate) fn pull(&mut self) {
        let alive = self
            .world
            .see(|checks| checks.requests.keys().copied().collect::<Vec<_>>());
        self.leashes.retain(|(number, _)| alive.contains(number));
        if self.leashes.is_empty() {
            return;
        }
        let place = usize::try_from(self.chance.below(self.leashes.len() as u64)).unwrap();
        let (number, leash) = &self.leashes[place];
        match self.chance.below(10) {
            0..3 => {
                // Before its drop is seen by anybody.
                self.world.see(|checks| checks.dropped(*number));
                leash.cut();
            }
            3..7 => {
                leash.freeze();
                self.world.see(|checks| checks.frozen(*number, true));
            }
            _ => {
                leash.thaw();
                self.world.see(|checks| checks.frozen(*number, false));
            }
        }
    }
}
