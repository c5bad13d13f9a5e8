//! One spawn lock between real processes, some of which are stopped or killed (promises 1, 14, 17, 19, 20, 22).
//!
//! The other processes are this test program again. They run only the ignored test `other_process`, which plays the role named in
//! its environment. It reports its progress in marked lines on its standard output and continues on a line of its standard input,
//! so no test waits for a time. It ends when that input ends, so when its test ends in any way.

mod support;

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{
    Acquired, BackendLauncher, FileSpawnLock, How, LaunchPermit, SpawnGate, SpawnLockError,
    acquire_spawn_lock,
};

use crate::support::lock_file::{locks, read_lock_holder, take, try_acquire};
use crate::support::scripted_lock::ScriptedLock;

const KEY: &str = "indexer";

/// How many callers each process has in the storms.
const CALLERS: usize = 50;

// The other process.

const ROLE: &str = "SPAWN_GATE_TEST_ROLE";
const DIRECTORY: &str = "SPAWN_GATE_TEST_DIRECTORY";

/// Stands before what the other process says. The test harness prints on the same output.
const MARK: &str = "@@ ";

#[test]
#[ignore = "the other process of the tests in this file"]
fn other_process() {
    let Ok(role) = env::var(ROLE) else { return };
    let directory = PathBuf::from(env::var_os(DIRECTORY).unwrap());
    match &*role {
        "hold" => hold(&directory),
        "linger" => linger(),
        "storm" => storm(&directory),
        other => panic!("no such role: {other}"),
    }
}

fn say(what: impl std::fmt::Display) {
    println!("{MARK}{what}");
}

/// The next line that this process is told; `None` at the end.
fn told() -> Option<String> {
    let mut line = String::new();
    let len = std::io::stdin().read_line(&mut line).unwrap();
    (len > 0).then(|| line.trim_end().to_owned())
}

/// Holds the lock of [`KEY`] and says its fencing token.
fn hold(directory: &Path) {
    let locks = FileSpawnLock::new(directory).unwrap();
    let mut held = Some(block_on(take(&locks, KEY)).unwrap());
    say(held.as_ref().unwrap().fencing_token());
    while let Some(order) = told() {
        match &*order {
            "release" => drop(held.take()),
            // It gets the same input and output as this process.
            "start a child" => drop(other("linger", directory).spawn().unwrap()),
            other => panic!("no such order: {other}"),
        }
    }
}

/// Says what it is told.
fn linger() {
    say("lingering");
    while let Some(line) = told() {
        say(line);
    }
}

/// Lets many callers ask a gate for a backend at once, then says how they came by it.
fn storm(directory: &Path) {
    let told = Once::new();
    let lock = ScriptedLock::new(FileSpawnLock::new(directory).unwrap())
        .on_found_held(move || told.call_once(|| say("waiting")));
    let gate: SpawnGate<&str, u32> = SpawnGate::builder(lock).build();
    let launcher = Arc::new(Launcher {
        directory: directory.to_owned(),
    });
    let outcomes = block_on(async {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (gate, launcher) = (gate.clone(), Arc::clone(&launcher));
                tokio::spawn(async move { gate.launch(KEY, launcher).await.unwrap() })
            })
            .collect();
        let mut outcomes = Vec::new();
        for caller in callers {
            outcomes.push(caller.await.unwrap());
        }
        outcomes
    });
    let count = |how| outcomes.iter().filter(|outcome| outcome.how == how).count();
    let backend = outcomes[0].value;
    assert!(outcomes.iter().all(|outcome| outcome.value == backend));
    say(Storm {
        led: count(How::Led),
        joined: count(How::Joined),
        discovered: count(How::Discovered),
        backend,
    });
}

/// How the callers of a storm came by their backend, and which it is.
struct Storm {
    led: usize,
    joined: usize,
    discovered: usize,
    backend: u32,
}

impl std::fmt::Display for Storm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "backend {}: led {}, joined {}, discovered {}",
            self.backend, self.led, self.joined, self.discovered
        )
    }
}

/// Starts no backend, but writes down that it would: its process in a journal, and the same as the endpoint.
struct Launcher {
    directory: PathBuf,
}

fn journal(directory: &Path) -> PathBuf {
    directory.join("journal")
}

#[async_trait]
impl BackendLauncher<&'static str, u32> for Launcher {
    async fn discover(
        &self,
        _: &&'static str,
    ) -> Result<Option<u32>, Box<dyn Error + Send + Sync>> {
        match fs::read_to_string(self.directory.join("endpoint")) {
            Ok(endpoint) => Ok(Some(endpoint.parse()?)),
            Err(_) => Ok(None),
        }
    }

    async fn launch(
        &self,
        _: &LaunchPermit<&'static str, u32>,
    ) -> Result<u32, Box<dyn Error + Send + Sync>> {
        let mut journal = File::options()
            .append(true)
            .create(true)
            .open(journal(&self.directory))?;
        writeln!(journal, "{}", process::id())?;
        say("launching");
        tokio::task::spawn_blocking(told).await?;
        fs::write(self.directory.join("endpoint"), process::id().to_string())?;
        Ok(process::id())
    }
}

// This process.

/// The command that runs this program again in a role.
fn other(role: &str, directory: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env(DIRECTORY, directory);
    command
}

/// Another process; it is killed when this is dropped.
struct Other {
    process: process::Child,
    /// Its standard input, until that is to end.
    input: Option<process::ChildStdin>,
    /// What it says; also what its children say.
    said: Receiver<String>,
}

impl Other {
    fn start(role: &str, directory: &Path) -> Self {
        let mut process = other(role, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (saying, said) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, what)) = line.split_once(MARK) {
                    let _ = saying.send(what.to_owned());
                }
            }
        });
        Self {
            process,
            input,
            said,
        }
    }

    /// The next thing that it says. The time turns a hang into a failure, and nothing else depends on it.
    #[track_caller]
    fn says(&self) -> String {
        self.said
            .recv_timeout(Duration::from_secs(60))
            .expect("the other process is gone or hangs")
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input.as_ref().unwrap(), "{what}").unwrap();
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it at once (with SIGKILL on Unix), and waits until it is gone.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the future on one thread, where tasks run in the order of their spawning: all callers of a storm have joined before
/// its flight takes its first step.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Takes the lock as a gate does and returns the fencing token; the lock must be free.
fn fencing_token(locks: &FileSpawnLock) -> u64 {
    block_on(try_acquire(locks, &KEY)).unwrap().fencing_token()
}

#[test]
fn a_lock_that_another_process_holds_is_refused_and_its_process_named() {
    let (directory, locks) = locks();
    let path = locks.path_of(&KEY);
    let mut holder = Other::start("hold", directory.path());
    let token: u64 = holder.says().parse().unwrap();
    assert!(matches!(
        acquire_spawn_lock(&path),
        Err(SpawnLockError::AlreadyLocked { path: named }) if named == path
    ));
    let named = read_lock_holder(&path).unwrap().unwrap();
    assert_eq!(named.pid, holder.pid());
    drop(holder.input.take());
    assert!(holder.process.wait().unwrap().success());
    assert_eq!(read_lock_holder(&path).unwrap(), None);
    assert!(fencing_token(&locks) > token);
}

#[test]
fn a_process_that_is_killed_lets_go_of_its_lock() {
    let (directory, locks) = locks();
    let path = locks.path_of(&KEY);
    let mut holder = Other::start("hold", directory.path());
    let token: u64 = holder.says().parse().unwrap();
    holder.kill();
    drop(acquire_spawn_lock(&path).unwrap());
    // It stays written until the next one comes, but is not taken for a holder.
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains(&format!("holder {} ", holder.pid()))
    );
    assert_eq!(read_lock_holder(&path).unwrap(), None);
    assert!(fencing_token(&locks) > token);
    assert_eq!(read_lock_holder(&path).unwrap(), None);
}

#[test]
fn a_child_that_outlives_the_holder_does_not_keep_the_lock() {
    let (directory, locks) = locks();
    let path = locks.path_of(&KEY);
    let mut holder = Other::start("hold", directory.path());
    holder.says();
    holder.tell("start a child");
    assert_eq!(holder.says(), "lingering");
    acquire_spawn_lock(&path).unwrap_err();
    holder.kill();
    holder.tell("are you there?");
    assert_eq!(holder.says(), "are you there?");
    let held = acquire_spawn_lock(&path).unwrap();
    holder.tell("still there?");
    assert_eq!(holder.says(), "still there?");
    drop(held);
    // The child ends with its input; then its output, which is the last of this kind, ends too.
    drop(holder.input.take());
    let ended = holder.said.recv_timeout(Duration::from_secs(60));
    assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_child_does_not_keep_a_lock_that_its_parent_released() {
    let (directory, locks) = locks();
    let path = locks.path_of(&KEY);
    let held = acquire_spawn_lock(&path).unwrap();
    let mut child = Other::start("linger", directory.path());
    assert_eq!(child.says(), "lingering");
    drop(held);
    drop(acquire_spawn_lock(&path).unwrap());
    child.tell("still there?");
    assert_eq!(child.says(), "still there?");
}

/// A signal and what the other process has come to.
#[cfg(unix)]
mod stopped {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    use spawn_gate::GateError;
    use spawn_gate::error::Stage;

    use super::*;

    fn pid(other: &Other) -> Pid {
        Pid::from_raw(other.pid().try_into().unwrap()).unwrap()
    }

    /// Stops the process and waits until it has stopped.
    fn stop(other: &Other) {
        kill_process(pid(other), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(pid(other)), WaitOptions::UNTRACED)
            .unwrap()
            .unwrap();
        assert!(status.stopped());
    }

    #[test]
    fn a_process_that_is_stopped_keeps_its_lock_and_waiters_learn_whom_they_wait_for() {
        let (directory, locks) = locks();
        let path = locks.path_of(&KEY);
        let mut holder = Other::start("hold", directory.path());
        holder.says();
        stop(&holder);
        // It cannot heed that while it is stopped.
        holder.tell("release");

        let impatient: SpawnGate<&str, u32> = SpawnGate::builder(locks.clone())
            .lock_timeout(Duration::from_millis(50))
            .build();
        let error = block_on(impatient.acquire(KEY)).unwrap_err();
        let GateError::Timeout(timeout) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(timeout.stage, Stage::Lock);
        let waiting_for = timeout.waiting_for.as_ref().unwrap();
        assert_eq!((&waiting_for.path, waiting_for.pid), (&path, holder.pid()));
        let message = error.to_string();
        assert!(
            message.contains(&format!("process {}", holder.pid())),
            "{message}"
        );

        let patient: SpawnGate<&str, u32> = SpawnGate::builder(locks).build();
        block_on(async {
            let waiter = patient.acquire(KEY);
            let mut waiter = tokio_test::task::spawn(waiter);
            tokio_test::assert_pending!(waiter.poll());
            kill_process(pid(&holder), Signal::CONT).unwrap();
            let Acquired::Led(permit) = waiter.await.unwrap() else {
                panic!("joined");
            };
            permit.succeed(1).await.unwrap();
        });
    }
}

#[test]
fn a_waiter_takes_over_from_a_process_that_is_killed() {
    let (directory, locks) = locks();
    let mut holder = Other::start("hold", directory.path());
    holder.says();
    let gate: SpawnGate<&str, u32> = SpawnGate::builder(locks).build();
    block_on(async {
        let mut waiter = tokio_test::task::spawn(gate.acquire(KEY));
        tokio_test::assert_pending!(waiter.poll());
        holder.kill();
        assert!(matches!(waiter.await.unwrap(), Acquired::Led(_)));
    });
}

#[test]
fn many_callers_in_two_processes_come_to_one_launch() {
    let (directory, _) = locks();
    let mut first = Other::start("storm", directory.path());
    assert_eq!(first.says(), "launching");
    let second = Other::start("storm", directory.path());
    assert_eq!(second.says(), "waiting");
    first.tell("go on");

    let backend = first.pid();
    let (led, joined, discovered) = (1, CALLERS - 1, 0);
    let outcome = Storm {
        led,
        joined,
        discovered,
        backend,
    };
    assert_eq!(first.says(), outcome.to_string());
    let outcome = Storm {
        led: 0,
        joined,
        discovered: 1,
        backend,
    };
    assert_eq!(second.says(), outcome.to_string());
    let journal = fs::read_to_string(journal(directory.path())).unwrap();
    assert_eq!(journal, format!("{backend}\n"));
}

#[test]
fn a_launch_whose_process_is_killed_is_made_anew_by_the_process_that_waits() {
    let (directory, _) = locks();
    let mut first = Other::start("storm", directory.path());
    assert_eq!(first.says(), "launching");
    let mut second = Other::start("storm", directory.path());
    assert_eq!(second.says(), "waiting");
    first.kill();
    assert_eq!(second.says(), "launching");
    second.tell("go on");

    let outcome = Storm {
        led: 1,
        joined: CALLERS - 1,
        discovered: 0,
        backend: second.pid(),
    };
    assert_eq!(second.says(), outcome.to_string());
    let journal = fs::read_to_string(journal(directory.path())).unwrap();
    assert_eq!(journal, format!("{}\n{}\n", first.pid(), second.pid()));
}
