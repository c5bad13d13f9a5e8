//! One seed: its world, the steps that its chance picks, and the quiet at its end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use spawn_gate::admin::BackendEnd;
use spawn_gate::budget::WindowKind;
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLease, SpawnLock, TryAcquire};
use spawn_gate::{FileSpawnLock, SpawnBudgetConfig};
use tempfile::TempDir;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::checks::Place;
use crate::leash::Leash;
use crate::lock::GateLock;
use crate::model::Millis;
use crate::requests::{Asker, Gate, Plan, acquire, launch};
use crate::store::Store;
use crate::world::{Config, Key, World};

/// What came of a seed.
pub(crate) struct Run {
    pub(crate) config: Config,
    pub(crate) broken: Option<String>,
    pub(crate) log: Vec<String>,
    pub(crate) digest: u64,
    pub(crate) launches: usize,
}

/// Where the locks are.
enum Locks {
    Scripted(Store),
    /// The directory is deleted with it.
    Real(FileSpawnLock, #[expect(dead_code)] TempDir),
}

struct Driver {
    world: Arc<World>,
    chance: Chance,
    locks: Locks,
    gates: Vec<Gate>,
    keys: Vec<Key>,
    leashes: Vec<(u64, Leash)>,
    last_request: u64,
    /// Somebody else holds it, who is no gate.
    stranger: Option<Box<dyn SpawnLease>>,
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
            digest: checks.digest,
            launches: checks.launches.len(),
        })
    })
}

impl Driver {
    fn new(world: Arc<World>, chance: Chance) -> Self {
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

    fn inner(&self) -> Arc<dyn SpawnLock<Key>> {
        match &self.locks {
            Locks::Scripted(store) => Arc::new(store.clone()),
            Locks::Real(lock, _) => Arc::new(lock.clone()),
        }
    }

    fn gate(&self, gate: usize) -> Gate {
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

    fn is_broken(&self) -> bool {
        self.world.see(|checks| checks.broken.is_some())
    }

    async fn steps(&mut self) {
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
    async fn pass(&mut self) {
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

    async fn step(&mut self) {
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

    fn any_key(&mut self) -> Key {
        let place = self.chance.below(self.world.config.keys as u64);
        self.keys[usize::try_from(place).unwrap()].clone()
    }

    fn any_gate(&mut self) -> usize {
        usize::try_from(self.chance.below(self.gates.len() as u64)).unwrap()
    }

    fn ask(&mut self, gate: usize, key: &Key) {
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
    fn pull(&mut self) {
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

    /// Takes a lock from its holder.
    fn lose(&mut self) {
        let key = self.any_key();
        match &self.locks {
            Locks::Scripted(store) => {
                if let Some(token) = store.revoke(&key) {
                    self.world.see(|checks| checks.lost(key.name, token));
                }
            }
            Locks::Real(lock, _) => {
                self.world.see(|checks| checks.deleted(key.name));
                let _ = std::fs::remove_file(lock.path_of(&key));
            }
        }
    }

    fn stop_backend(&mut self) {
        let running = self.world.backends.lock().unwrap().clone();
        if running.is_empty() {
            return;
        }
        let backend = self.chance.pick(&running);
        self.world.stop(backend.launch);
        let gate = self.any_gate();
        let (is_told, is_orderly) = (self.chance.percent(70), self.chance.percent(50));
        self.world
            .see(|checks| checks.stopped((gate, backend.key), backend.launch, is_told));
        let key = self
            .keys
            .iter()
            .find(|key| key.name == backend.key)
            .cloned();
        let (Some(key), true) = (key, is_told) else {
            return;
        };
        let end = match is_orderly {
            true => BackendEnd::orderly(backend.token),
            false => BackendEnd::failed(backend.token, "it died"),
        };
        let place = (gate, backend.key);
        let (gate, world) = (self.gates[gate].clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            world.see(|checks| checks.reports_end(place, backend.token));
            let _ = gate.backend_ended(key, end).await;
            world.see(|checks| checks.ended(place, backend.token));
        });
    }

    fn reset(&mut self) {
        let (gate, key) = (self.any_gate(), self.any_key());
        let place: Place = (gate, key.name);
        self.world.see(|checks| checks.resets_at(place));
        let (gate, world) = (self.gates[gate].clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            let _ = gate.reset(key).await;
            world.see(|checks| checks.is_reset(place));
        });
    }

    fn abort(&mut self) {
        let (number, key) = (self.any_gate(), self.any_key());
        let (gate, world) = (self.gates[number].clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            world.see(|checks| checks.aborts((number, key.name), true));
            gate.abort(key).await;
        });
    }

    fn close(&mut self) {
        let number = self.any_gate();
        let (gate, world) = (self.gates[number].clone(), Arc::clone(&self.world));
        self.world.see(|checks| checks.closes(number));
        tokio::spawn(async move {
            // What has not drained in time may still have to settle.
            if gate.close().await.is_err() {
                return;
            }
            let shown = ready(gate.snapshots());
            let is_idle = shown.iter().all(|shown| shown.flight.is_none());
            world.see(|checks| checks.is_closed(number, is_idle));
        });
    }

    /// Somebody else takes a lock, or lets it go.
    async fn hold(&mut self) {
        if self.stranger.take().is_some() {
            return;
        }
        let key = self.any_key();
        self.stranger = self.take(&key).await;
    }

    async fn take(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        let request = LockRequest::new(LedgerUpdate::none(), Instant::now());
        match self.inner().try_acquire(key, request).await {
            Ok(TryAcquire::Acquired(lease)) => Some(lease),
            _ => None,
        }
    }

    fn look_at_gates(&self) {
        for (number, gate) in self.gates.iter().enumerate() {
            let shown: Vec<_> = ready(gate.snapshots())
                .into_iter()
                .filter_map(|shown| {
                    let flight = shown.flight?;
                    let age = Millis::try_from(flight.age.as_millis()).unwrap();
                    Some((shown.budget.key.name, flight.stage, age))
                })
                .collect();
            self.world.see(|checks| checks.shown(number, &shown));
        }
    }

    /// Nothing goes wrong any more, and nobody asks: everything comes to an end, and is forgotten.
    async fn quiet(&mut self) {
        self.world.calm_down();
        self.wait_in_vain().await;
        self.stranger = None;
        self.leashes.iter().for_each(|(number, leash)| {
            leash.thaw();
            self.world.see(|checks| checks.frozen(*number, false));
        });
        let mut left = 1;
        for _ in 0..400 {
            sleep(Duration::from_millis(700)).await;
            self.look_at_gates();
            left = self.world.see(|checks| checks.left());
            if self.is_broken() || left == 0 {
                break;
            }
        }
        self.expect(left == 0, "a request, a flight or a lock is left");
        self.compare().await;
        sleep(Duration::from_secs(100)).await;
        for key in &self.keys[..self.world.config.keys] {
            let is_free = self.take(key).await.is_some();
            self.expect(is_free, "a lock is held");
        }
        let other = self.keys[2].clone();
        // One that is closed is never asked again, and keeps what it knows until it is dropped.
        let closed = self.world.see(|checks| checks.closed.clone());
        let mut numbers = 0..;
        self.gates
            .retain(|_| !closed.contains(&numbers.next().unwrap()));
        for gate in &self.gates {
            let shown = ready(gate.snapshots());
            self.expect(shown.is_empty(), "a key is in use");
            // A request sweeps up what is idle.
            drop(gate.acquire(other.clone()).await);
        }
        sleep(Duration::from_secs(61)).await;
        for gate in &self.gates {
            drop(gate.acquire(other.clone()).await);
        }
        for key in &self.keys[..self.world.config.keys] {
            let copies = Arc::strong_count(&key.copies);
            self.expect(copies == 1, "a key is not forgotten");
        }
    }

    /// Requests that wait for a stranger's lock are dropped, or freeze as they begin: no flight may wait for either.
    async fn wait_in_vain(&mut self) {
        let key = self.any_key();
        self.stranger = None;
        let is_held = self.chance.percent(50);
        if is_held {
            self.stranger = self.take(&key).await;
        }
        for gate in 0..self.gates.len() {
            self.ask(gate, &key);
        }
        let asked = self.leashes.len() - self.gates.len();
        if is_held {
            sleep(Duration::from_millis(20)).await;
            for (number, leash) in self.leashes.split_off(asked) {
                self.world.see(|checks| checks.dropped(number));
                leash.cut();
            }
        } else {
            // Polled once, so that a permit may come that nobody collects.
            yield_now().await;
            for (number, leash) in &self.leashes[asked..] {
                leash.freeze();
                self.world.see(|checks| checks.frozen(*number, true));
            }
        }
        for _ in 0..30 {
            sleep(Duration::from_millis(700)).await;
            self.look_at_gates();
        }
    }

    /// What the gates show as used is possible.
    async fn compare(&self) {
        for (number, gate) in self.gates.iter().enumerate() {
            for key in &self.keys[..self.world.config.keys] {
                let used = gate.snapshot(key.clone()).await.budget.attempts_used;
                self.world
                    .see(|checks| checks.uses((number, key.name), used));
            }
        }
    }

    fn expect(&self, holds: bool, broken: &str) {
        if !holds {
            self.world
                .see(|checks| checks.fail(format_args!("{broken}")));
        }
    }
}

/// What a future gives that has nothing to wait for.
fn ready<V>(future: impl Future<Output = V>) -> V {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // Tokio lets a task do only so much at once.
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
