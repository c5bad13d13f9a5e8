//! The self-check: runs this program by the score, as processes of their own, and judges what they print. No part of the
//! template.

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use spawn_gate::BoxError;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::EX_TEMPFAIL;
use crate::contact::{Address, POLL, is_taken};
use crate::daemon::FAILURE;

/// Everything takes a few seconds, on a busy machine some more.
const RUN_LIMIT: Duration = Duration::from_secs(60);

const CROWD: usize = 20;

pub(crate) async fn run() -> Result<(), BoxError> {
    // First of all: from here on these do not end this process there and then.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let directory = tempfile::Builder::new().prefix("cli_daemon-").tempdir()?;
    let scene = |name| Scene {
        state: directory.path().join(name),
        differences: 0,
    };
    let scenes = async {
        let mut differences = crowd(scene("crowd")).await?;
        differences += interrupted(scene("interrupted")).await?;
        differences += broken(scene("broken")).await?;
        match differences {
            0 => Ok(()),
            _ => Err(BoxError::from(format!("{differences} lines differ"))),
        }
    };
    let ended = tokio::select! {
        played = timeout(RUN_LIMIT, scenes) => played.unwrap_or_else(|late| Err(late.into())),
        _ = interrupt.recv() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    };
    // Invocations that were under way have been killed. Until they are gone, and their daemons, these may still write.
    let gone = until(|| {
        // It may fail as long as they do. What counts is looked at next.
        let _ = fs::remove_dir_all(directory.path());
        let is_alone = waitpid(None, WaitOptions::NOHANG).is_err();
        Ok(is_alone && !directory.path().exists())
    });
    timeout(RUN_LIMIT, gone).await??;
    ended
}

async fn crowd(mut scene: Scene) -> Result<usize, BoxError> {
    let printed = scene.ask_at_once(CROWD).await?;
    let first = scene.daemon()?;
    scene.judge("20 at once, cold", &printed, &first, "Led", 1);
    let printed = scene.ask_at_once(CROWD).await?;
    scene.judge("20 more", &printed, &first, "already running", CROWD);
    kill(&first)?;
    until(|| Ok(!is_taken(&scene.state)?)).await?;
    let printed = scene.ask_at_once(CROWD).await?;
    let next = scene.daemon()?;
    scene.judge("20 after kill -9", &printed, &next, "Led", 1);
    scene.check("fencing token grows", true, next.launch > first.launch);
    scene.check_started(2)?;
    scene.stop().await
}

async fn interrupted(mut scene: Scene) -> Result<usize, BoxError> {
    let slow = ("CLI_DAEMON_SLOW_MS", "2000");
    let began = Instant::now();
    let mut invocation = scene.command("ask")?.envs([slow]).spawn()?;
    until(|| Ok(Address::read(&scene.state)?.is_some())).await?;
    let is_early = began.elapsed() < Duration::from_secs(2);
    scene.check("says where it is before it is ready", true, is_early);
    invocation.start_kill()?;
    let answered = invocation.wait().await?.success();
    scene.check("killed while its daemon starts: answered", false, answered);
    let daemon = scene.daemon()?;
    let printed = scene.ask_at_once(1).await?;
    scene.judge("the next", &printed, &daemon, "already running", 1);
    scene.check_started(1)?;
    scene.stop().await
}

async fn broken(mut scene: Scene) -> Result<usize, BoxError> {
    let fail = ("CLI_DAEMON_FAIL", "1");
    // The failure that uses up the budget says when to retry, as the refusal after it does.
    let last = (EX_TEMPFAIL, FAILURE);
    let early = (EX_TEMPFAIL, "retry after");
    for (code, says) in [(1, FAILURE), (1, FAILURE), last, early] {
        let output = scene.command("ask")?.envs([fail]).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        println!("        {}", stderr.trim_end());
        let seen = (output.status.code(), stderr.contains(says));
        let what = format!("exit status, and it says {says:?}");
        scene.check(&what, (Some(code.into()), true), seen);
    }
    scene.check_started(3)?;
    scene.check("a daemon is left", false, is_taken(&scene.state)?);
    Ok(scene.differences)
}

/// One state directory. Dropping it ends its daemon.
struct Scene {
    state: PathBuf,
    differences: usize,
}

impl Scene {
    /// An invocation: `ask hello`, or another command.
    fn command(&self, name: &str) -> Result<Command, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--state").arg(&self.state).arg(name);
        command.args((name == "ask").then_some("hello"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    async fn ask_at_once(&self, invocations: usize) -> Result<Vec<Output>, BoxError> {
        let mut running = JoinSet::new();
        for _ in 0..invocations {
            running.spawn(self.command("ask")?.output());
        }
        let ended = running.join_all().await.into_iter();
        Ok(ended.collect::<Result<_, _>>()?)
    }

    fn daemon(&self) -> Result<Address, BoxError> {
        Ok(Address::read(&self.state)?.ok_or("there is no daemon")?)
    }

    /// By what daemons say in their log before anything else.
    fn check_started(&mut self, expected: usize) -> Result<(), BoxError> {
        let log = fs::read_to_string(self.state.join("daemon.log"))?;
        let seen = log.lines().filter(|line| line.ends_with(" starts")).count();
        self.check("daemons started", expected, seen);
        Ok(())
    }

    async fn stop(mut self) -> Result<usize, BoxError> {
        let code = self.command("stop")?.output().await?.status.code();
        let seen = (code, is_taken(&self.state)?);
        self.check("stop: exit status, one is left", (Some(0), false), seen);
        Ok(self.differences)
    }

    /// All must have their answer from this daemon, and so many say that they came by it in this way.
    fn judge(&mut self, what: &str, printed: &[Output], of: &Address, how: &str, times: usize) {
        let answer = format!("HELLO (process {}, launch {})", of.pid, of.launch);
        let count = |what: &str| {
            let says = |output: &&Output| String::from_utf8_lossy(&output.stdout).contains(what);
            printed.iter().filter(says).count()
        };
        let seen = (count(&answer), count(how));
        let what = format!("{what}: answers of one daemon, {how:?}");
        self.check(&what, (printed.len(), times), seen);
    }

    fn check<T: Debug + PartialEq>(&mut self, what: &str, expected: T, seen: T) {
        let verdict = if seen == expected { "ok" } else { "DIFFERS" };
        self.differences += usize::from(seen != expected);
        println!("{verdict:7} {what}: expected {expected:?}, seen {seen:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let (Ok(true), Ok(daemon)) = (is_taken(&self.state), self.daemon()) {
            // An error says that it has ended.
            let _ = kill(&daemon);
        }
        // One that has not said yet where it is will find its directory gone within a second, and end.
    }
}

fn kill(daemon: &Address) -> Result<(), BoxError> {
    let pid = Pid::from_raw(daemon.pid.try_into()?);
    Ok(kill_process(pid.ok_or("not a process")?, Signal::KILL)?)
}

/// Callers have a deadline.
async fn until(mut holds: impl FnMut() -> Result<bool, BoxError>) -> Result<(), BoxError> {
    while !holds()? {
        sleep(POLL).await;
    }
    Ok(())
}
