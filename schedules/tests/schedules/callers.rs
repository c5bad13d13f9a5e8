//! The callers of a scenario, and their launcher.

use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use spawn_gate::stand_in::tokio::{spawn, task::JoinHandle, time};
use spawn_gate::{Acquired, BackendLauncher, BoxError, GateError, LaunchPermit, async_trait};

use crate::world::{End, Gate, Key, Running, World, pause, percent};

/// What a caller was told: the number of a launch that is up, or why there is none.
pub(crate) type Heard = Result<u64, GateError>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Luck {
    /// How many launches of 100 fail.
    failures: u32,
    /// A launcher never returns.
    is_stuck: bool,
}

pub(crate) const GOOD: Luck = Luck::of(0);
pub(crate) const BAD: Luck = Luck::of(100);
pub(crate) const MIXED: Luck = Luck::of(40);
pub(crate) const STUCK: Luck = Luck {
    failures: 0,
    is_stuck: true,
};

impl Luck {
    const fn of(failures: u32) -> Self {
        let is_stuck = false;
        Self { failures, is_stuck }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) world: World,
    pub(crate) luck: Luck,
}

#[async_trait]
impl BackendLauncher<Key, u64> for Launcher {
    async fn discover(&self, _key: &Key) -> Result<Option<u64>, BoxError> {
        pause().await;
        Ok(None)
    }

    async fn launch(&self, permit: &LaunchPermit<Key, u64>) -> Result<u64, BoxError> {
        let running = self.world.begin(permit.key());
        if self.luck.is_stuck {
            std::future::pending::<()>().await;
        }
        work().await;
        match percent(self.luck.failures) {
            true => Err(format!("launch {}", running.id).into()),
            false => Ok(running.end(End::Up)),
        }
    }

    async fn discard(&self, _key: &Key, value: u64) {
        self.world.ended(value, End::Charged);
    }
}

/// The time that a launch takes.
async fn work() {
    pause().await;
    if percent(30) {
        time::sleep(Duration::from_secs(1)).await;
    }
}

/// A permit with the launch that is under way. The fields are in drop order: the launch ends before its lock is released.
struct Launching {
    running: Running,
    permit: LaunchPermit<Key, u64>,
}

/// Asks by `launch`.
pub(crate) async fn launch(gate: Gate, key: Key, world: World, luck: Luck) -> Heard {
    let launcher = Launcher { world, luck };
    gate.launch(key, launcher)
        .await
        .map(|launched| launched.value)
}

/// Asks by `acquire`, and drives the launch itself.
pub(crate) async fn acquire(gate: Gate, key: Key, world: World, luck: Luck) -> Heard {
    let permit = match gate.acquire(key).await? {
        Acquired::Joined(value) => return Ok(value),
        Acquired::Led(permit) => permit,
    };
    drive(permit, &world, luck).await
}

pub(crate) async fn drive(permit: LaunchPermit<Key, u64>, world: &World, luck: Luck) -> Heard {
    let running = world.begin(permit.key());
    let launching = Launching { running, permit };
    work().await;
    let Launching { running, permit } = launching;
    // Not in progress any more, and until it is settled nobody can tell how it ends.
    let id = running.end(End::Unsure);
    let (heard, end) = match percent(luck.failures) {
        true => (Err(permit.fail(format!("launch {id}")).await), End::Charged),
        false => match permit.succeed(id).await {
            Ok(()) => (Ok(id), End::Up),
            Err(error) => (Err(error), End::Charged),
        },
    };
    world.ended(id, end);
    heard
}

/// Asks one way or the other.
pub(crate) async fn ask(gate: Gate, key: Key, world: World, luck: Luck) -> Heard {
    match percent(50) {
        true => launch(gate, key, world, luck).await,
        false => acquire(gate, key, world, luck).await,
    }
}

/// Spawns callers that ask for the same key.
pub(crate) fn callers(
    count: usize,
    gate: &Gate,
    world: &World,
    name: &'static str,
    luck: Luck,
) -> Vec<JoinHandle<Heard>> {
    let ask = |_| spawn(ask(gate.clone(), world.key(name), world.clone(), luck));
    (0..count).map(ask).collect()
}

/// Joins callers that nobody drops.
pub(crate) async fn heard(callers: Vec<JoinHandle<Heard>>) -> Vec<Heard> {
    let mut heard = Vec::new();
    for caller in callers {
        heard.push(caller.await.expect("it is not dropped"));
    }
    heard
}

/// Drops some of the callers, each at some moment. Returns what the others heard.
pub(crate) async fn heard_by_survivors(callers: Vec<JoinHandle<Heard>>) -> Vec<Heard> {
    let spared = thread_rng().gen_range(0..callers.len());
    for (place, caller) in callers.iter().enumerate() {
        if place != spared && percent(70) {
            pause().await;
            caller.abort();
        }
    }
    let mut heard = Vec::new();
    for caller in callers {
        heard.extend(caller.await.ok());
    }
    heard
}
