//! A process with a gate of its own and a number of tasks that ask it for the backend.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use spawn_gate::error::{LaunchError, Stage};
use spawn_gate::{BackendLauncher as _, FileSpawnLock, GateError, SpawnBudgetConfig, SpawnGate};

use crate::backend::{Backend, Launcher};

pub(crate) const KEY: &str = "indexer";
pub(crate) const MODE: &str = "SPAWN_GATE_TEST_MODE";
const DIRECTORY: &str = "SPAWN_GATE_TEST_DIRECTORY";
const TASKS: &str = "SPAWN_GATE_TEST_TASKS";
const MAX_ATTEMPTS: &str = "SPAWN_GATE_TEST_MAX_ATTEMPTS";

/// What the caller's launcher does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Starts a backend.
    Launch,
    /// Starts a backend once it is told to go on.
    LaunchOnRequest,
    /// Starts a backend, but does not wait for the lock.
    Impatient,
    /// Fails; the caller asks until it is refused.
    Fail,
    /// Never returns.
    Hang,
}

const MODES: [Mode; 5] = [
    Mode::Launch,
    Mode::LaunchOnRequest,
    Mode::Impatient,
    Mode::Fail,
    Mode::Hang,
];

/// What a caller's tasks heard.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) backends: BTreeSet<Backend>,
    pub(crate) failed: usize,
    pub(crate) refused: usize,
    pub(crate) timed_out_on: Option<u32>,
}

/// A running caller process. Dropping it ends it.
pub(crate) struct Caller {
    child: Child,
    input: Option<ChildStdin>,
}

impl Caller {
    pub(crate) fn start(directory: &Path, mode: Mode, tasks: usize, max_attempts: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["role", "--exact", "--nocapture"])
            .env(MODE, format!("{mode:?}"))
            .env(DIRECTORY, directory)
            .env(TASKS, tasks.to_string())
            .env(MAX_ATTEMPTS, max_attempts.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        Self { child, input }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn go_on(&self) {
        let mut input = self.input.as_ref().unwrap();
        input.write_all(b"go on\n").unwrap();
    }

    /// What it heard, if it has ended.
    pub(crate) fn finished(&mut self) -> Option<Tally> {
        self.child.try_wait().unwrap()?;
        Some(self.tally())
    }

    pub(crate) fn finish(mut self) -> Tally {
        let tally = self.tally();
        assert!(self.child.wait().unwrap().success());
        tally
    }

    fn tally(&mut self) -> Tally {
        let pipe = BufReader::new(self.child.stdout.take().unwrap());
        let mut tally = Tally::default();
        for line in pipe.lines().map(Result::unwrap) {
            let Some((_, heard)) = line.split_once("heard ") else {
                continue;
            };
            // On Windows its backend inherits the pipe, which has no end as long as that lives.
            if heard == "all" {
                break;
            }
            let (what, number) = heard.split_once(' ').unwrap();
            match what {
                "backend" => drop(tally.backends.insert(number.parse().unwrap())),
                "failed" => tally.failed += 1,
                "refused" => tally.refused += 1,
                "timeout" => tally.timed_out_on = Some(number.parse().unwrap()),
                other => panic!("{other}"),
            }
        }
        tally
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn wait_to_go_on() {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
}

pub(crate) fn play_if_asked() {
    let Ok(mode) = std::env::var(MODE) else {
        return;
    };
    let mode = *MODES.iter().find(|it| format!("{it:?}") == mode).unwrap();
    let variable = |name| std::env::var(name).unwrap();
    let directory = variable(DIRECTORY);
    let tasks: usize = variable(TASKS).parse().unwrap();
    let max_attempts = variable(MAX_ATTEMPTS).parse().unwrap();
    let gate = SpawnGate::builder(FileSpawnLock::new(&directory).unwrap())
        .budget(SpawnBudgetConfig::new(
            max_attempts,
            Duration::from_secs(3600),
        ))
        .lock_timeout(match mode {
            Mode::Impatient => Duration::from_millis(50),
            _ => Duration::from_secs(60),
        })
        .build();
    let launcher = Launcher {
        directory: directory.into(),
        mode,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let asking: Vec<_> = (0..tasks)
            .map(|_| tokio::spawn(ask(gate.clone(), launcher.clone())))
            .collect();
        for task in asking {
            println!("heard {}", task.await.unwrap());
        }
        println!("heard all");
    });
    std::process::exit(0);
}

async fn ask(gate: SpawnGate<&'static str, Backend>, launcher: Launcher) -> String {
    loop {
        let error = match gate.launch(KEY, launcher.clone()).await {
            Ok(launched) => {
                let found = launcher.discover(&KEY).await.unwrap();
                assert_eq!(
                    found,
                    Some(launched.value),
                    "what was launched does not answer"
                );
                return format!("backend {}", launched.value);
            }
            Err(error) => error,
        };
        match error {
            GateError::BudgetExhausted(_) => return "refused 0".to_owned(),
            GateError::Timeout(timeout) if timeout.stage == Stage::Lock => {
                let holder = timeout.waiting_for.map_or(0, |holder| holder.pid);
                return format!("timeout {holder}");
            }
            GateError::Launch(LaunchError::Failed { .. } | LaunchError::FailedElsewhere { .. })
                if launcher.mode == Mode::Fail => {}
            error => {
                eprintln!("{error:?}");
                return "failed 0".to_owned();
            }
        }
    }
}
