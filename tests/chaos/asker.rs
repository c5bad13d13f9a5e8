//! A process with a gate of its own, whose tasks ask for the keys until the driver tells them to finish.

use std::env;
use std::io::BufRead as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::{
    Acquired, FileSpawnLock, GateError, How, SpawnBudgetConfig, SpawnGate, SpawnLockError,
    acquire_spawn_lock,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::backends::Backends;
use crate::chance::Chance;
use crate::config::Config;
use crate::journal::Journal;
use crate::launcher::{Launcher, Plan};

pub(crate) const SEED: &str = "SPAWN_GATE_TEST_SEED";
pub(crate) const DIRECTORY: &str = "SPAWN_GATE_TEST_DIRECTORY";
pub(crate) const NUMBER: &str = "SPAWN_GATE_TEST_NUMBER";
/// Set: it asks once for each key, whose lock must be free.
pub(crate) const VISITS: &str = "SPAWN_GATE_TEST_VISITS";

/// Stands before what the process says. The test harness prints on the same output.
pub(crate) const MARK: &str = "@@ ";

type Gate = SpawnGate<&'static str, u64>;

/// What the driver told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Wait,
    Ask,
    Finish,
}

struct Process {
    config: Config,
    number: usize,
    gate: Gate,
    journal: Arc<Journal>,
    backends: Backends,
    requests: AtomicU64,
}

pub(crate) fn play_if_asked() {
    let (Ok(seed), Some(directory)) = (env::var(SEED), env::var_os(DIRECTORY)) else {
        return;
    };
    let directory = PathBuf::from(directory);
    let number: usize = env::var(NUMBER).unwrap().parse().unwrap();
    let (config, mut chance) = Config::chance_of(seed.parse().unwrap(), Some(number));
    let visits = env::var_os(VISITS).is_some();
    let lock = locks(&directory);
    if visits {
        config.keys.iter().for_each(|key| take(&lock, key));
    }
    let process = Arc::new(Process {
        gate: gate(lock, &config, chance.percent(30) && !visits, &mut chance),
        journal: Arc::new(Journal::open(&directory)),
        backends: Backends::new(&directory),
        requests: AtomicU64::new(0),
        config,
        number,
    });
    let runtime = runtime(&mut chance);
    if visits {
        runtime.block_on(process.visit(&mut chance));
    } else {
        runtime.block_on(ask(&process, listen(&process, &runtime), &mut chance));
    }
    std::process::exit(0);
}

/// The lock directory may be removed at any moment, also right after it was made.
fn locks(directory: &std::path::Path) -> FileSpawnLock {
    loop {
        match FileSpawnLock::new(directory.join("locks")) {
            Ok(locks) => return locks,
            Err(SpawnLockError::Open { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Takes a lock that must be free. A child that a killed process was just starting has its descriptors, the lock's too, until it
/// executes its program; the driver has a deadline for this.
fn take(locks: &FileSpawnLock, key: &&'static str) {
    loop {
        match acquire_spawn_lock(locks.path_of(key)) {
            Ok(_) => return,
            Err(SpawnLockError::AlreadyLocked { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{key}: {error:?}"),
        }
    }
}

/// A patient process waits for ever, so a timeout in it is an error of the gate. An impatient one gives up all the time, also
/// while its try at the lock is on its way.
fn gate(lock: FileSpawnLock, config: &Config, is_impatient: bool, chance: &mut Chance) -> Gate {
    const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);
    let patience = match is_impatient {
        true => Duration::from_millis(chance.below(10)),
        false => FOR_EVER,
    };
    SpawnGate::builder(lock)
        .budget(SpawnBudgetConfig::new(config.max_attempts, config.window))
        .lock_timeout(patience)
        .discover_timeout(FOR_EVER)
        .launch_timeout(FOR_EVER)
        .follow_timeout(FOR_EVER)
        .drain_timeout(FOR_EVER)
        .build()
}

fn runtime(chance: &mut Chance) -> Runtime {
    let mut builder = match chance.percent(50) {
        true => Builder::new_current_thread(),
        false => Builder::new_multi_thread(),
    };
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// Follows what the driver says on the standard input.
fn listen(process: &Arc<Process>, runtime: &Runtime) -> watch::Receiver<Phase> {
    let (phases, phase) = watch::channel(Phase::Wait);
    let (process, runtime) = (Arc::clone(process), runtime.handle().clone());
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match &*line.unwrap() {
                "ask" => drop(phases.send_replace(Phase::Ask)),
                "finish" => drop(phases.send_replace(Phase::Finish)),
                "report" => {
                    let flights = runtime.block_on(process.gate.snapshots());
                    println!("{MARK}{flights:?}");
                }
                other => panic!("no such order: {other}"),
            }
        }
        // The driver is gone.
        std::process::exit(1);
    });
    println!("{MARK}ready");
    phase
}

async fn ask(process: &Arc<Process>, mut phase: watch::Receiver<Phase>, chance: &mut Chance) {
    phase.wait_for(|&it| it != Phase::Wait).await.unwrap();
    let tasks: Vec<_> = (0..process.config.tasks)
        .map(|_| {
            let (process, phase, mut chance) = (Arc::clone(process), phase.clone(), chance.fork());
            tokio::spawn(async move {
                while *phase.borrow() != Phase::Finish {
                    process.make_request(&mut chance).await;
                    sleep(Duration::from_micros(chance.below(6_000))).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // A launch whose callers are gone goes on, and the journal is to tell its end.
    process.gate.close().await.unwrap();
}

impl Process {
    fn request(&self, key: &'static str, chance: &mut Chance) -> Launcher {
        Launcher {
            journal: Arc::clone(&self.journal),
            backends: self.backends.clone(),
            process: self.number,
            key,
            request: self.requests.fetch_add(1, Ordering::Relaxed),
            plan: Plan::new(&self.config, chance),
        }
    }

    async fn visit(&self, chance: &mut Chance) {
        for &key in self.config.keys {
            let launcher = self.request(key, chance);
            launcher.note("ask", 0, "launch");
            let answer = self.launch(&launcher).await;
            note_answer(&launcher, &answer);
        }
    }

    async fn make_request(&self, chance: &mut Chance) {
        let key = chance.pick(self.config.keys);
        let launcher = self.request(key, chance);
        if chance.percent(2) {
            launcher.note("abort", 0, "-");
            self.gate.abort(key).await;
        }
        let acquires = chance.percent(30);
        let drops_permit = chance.percent(15);
        let patience = match chance.percent(25) {
            true => Duration::from_micros(chance.below(3_000)),
            false => Duration::MAX,
        };
        launcher.note("ask", 0, if acquires { "acquire" } else { "launch" });
        let answer = async {
            match acquires {
                true => self.acquire(&launcher, drops_permit).await,
                false => self.launch(&launcher).await,
            }
        };
        match timeout(patience, answer).await {
            Ok(answer) => {
                note_answer(&launcher, &answer);
                // Backends do not live long, so there is always something to launch.
                if let (Ok((_, token)), true) = (answer, chance.percent(30)) {
                    self.backends.end(key, token);
                }
            }
            Err(_) => launcher.note("gone", 0, "-"),
        }
    }

    async fn launch(&self, launcher: &Launcher) -> Result<(&'static str, u64), GateError> {
        let launched = self.gate.launch(launcher.key, launcher.clone()).await?;
        let how = match launched.how {
            How::Led => "led",
            How::Joined => "joined",
            How::Discovered => "discovered",
            other => panic!("{other:?}"),
        };
        Ok((how, launched.value))
    }

    async fn acquire(
        &self,
        launcher: &Launcher,
        drops_permit: bool,
    ) -> Result<(&'static str, u64), GateError> {
        let permit = match self.gate.acquire(launcher.key).await? {
            Acquired::Led(permit) => permit,
            Acquired::Joined(token) => return Ok(("joined", token)),
        };
        if let Some(found) = self.backends.newest(launcher.key) {
            permit.discovered(found).await;
            return Ok(("discovered", found));
        }
        let token = permit.fencing_token();
        if drops_permit {
            launcher.begin(token).end("dropped");
            drop(permit);
            return Ok(("dropped", 0));
        }
        match launcher.work(token).await {
            Ok(token) => {
                let settled = permit.succeed(token).await;
                if settled.is_err() {
                    self.backends.end(launcher.key, token);
                }
                settled.map(|()| ("led", token))
            }
            Err(error) => Err(permit.fail(error).await),
        }
    }
}

fn note_answer(launcher: &Launcher, answer: &Result<(&'static str, u64), GateError>) {
    match answer {
        Ok((how, token)) => launcher.note("heard", *token, how),
        Err(error) => launcher.note("heard", 0, &told(error)),
    }
}

/// A word for each error that chaos may lead to, and the error itself for others.
fn told(error: &GateError) -> String {
    let word = match error {
        GateError::BudgetExhausted(_) => "refused",
        GateError::Launch(LaunchError::Failed { .. }) => "failed",
        GateError::Launch(LaunchError::FailedElsewhere { .. }) => "failed-elsewhere",
        GateError::Launch(LaunchError::Abandoned { .. }) => "abandoned",
        GateError::Launch(LaunchError::Aborted { .. }) => "aborted",
        GateError::Launch(LaunchError::LockLost { .. }) => "lost",
        GateError::Timeout(timeout) if timeout.stage == spawn_gate::error::Stage::Lock => "timeout",
        GateError::Lock(error) => match &*error.source {
            SpawnLockError::DeletedOrRecreated { .. } => "replaced",
            SpawnLockError::Unsafe { .. } => "unsafe",
            SpawnLockError::Open { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                "denied"
            }
            _ => return format!("{error:?}"),
        },
        _ => return format!("{error:?}"),
    };
    word.to_owned()
}
