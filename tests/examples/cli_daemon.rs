//! The template for command-line tools: many invocations, one daemon.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::system::{kill, lives};
use crate::{LIMIT, eventually, example};

const CROWD: usize = 20;

struct Tool {
    directory: TempDir,
    idle_ms: u64,
}

impl Tool {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            idle_ms: 600_000,
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(example("cli_daemon"));
        command.arg("--state").arg(self.state()).args(words);
        command.env("CLI_DAEMON_IDLE_MS", self.idle_ms.to_string());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs the tool to its end, with its outputs read as `$(tool ..)` does.
    async fn run(&self, words: &[&str]) -> Said {
        let output = timeout(LIMIT, self.command(words).output()).await;
        Said::new(&output.expect("the tool does not end").unwrap())
    }

    /// Runs as many at once.
    async fn crowd(&self) -> Vec<Said> {
        let mut running = JoinSet::new();
        for _ in 0..CROWD {
            running.spawn(self.command(&["ask", "hello"]).output());
        }
        let ended = timeout(LIMIT, running.join_all()).await.unwrap();
        ended
            .iter()
            .map(|output| Said::new(output.as_ref().unwrap()))
            .collect()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let mut stop = std::process::Command::new(example("cli_daemon"));
        stop.arg("--state")
            .arg(self.state())
            .args(["stop", "--force"]);
        let _ = stop.output();
    }
}

/// What an invocation printed.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn new(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// How the daemon was got, its process id and its launch.
    fn daemon(&self) -> (&str, u32, u64) {
        let line = self
            .out
            .lines()
            .nth(1)
            .unwrap_or_else(|| panic!("{self:?}"));
        let (how, rest) = line.split_once(": process ").unwrap();
        let (pid, launch) = rest.split_once(", launch ").unwrap();
        (how, pid.parse().unwrap(), launch.parse().unwrap())
    }
}

/// All have their answer from one daemon. Returns its process id and launch, and how many launched it.
fn one_daemon(crowd: &[Said]) -> (u32, u64, usize) {
    let (_, pid, launch) = crowd[0].daemon();
    for said in crowd {
        assert_eq!(
            (said.code, said.out.lines().next()),
            (Some(0), Some("HELLO")),
            "{said:?}"
        );
        assert_eq!((said.daemon().1, said.daemon().2), (pid, launch));
    }
    let led = crowd.iter().filter(|said| said.daemon().0 == "Led").count();
    (pid, launch, led)
}

#[tokio::test]
async fn a_crowd_of_invocations_shares_one_daemon_and_the_next_one_after_kill_9() {
    let tool = Tool::new();
    let (pid, launch, led) = one_daemon(&tool.crowd().await);
    assert_eq!(led, 1);
    assert_eq!(one_daemon(&tool.crowd().await), (pid, launch, 0));

    kill(pid);
    eventually(|| !lives(pid)).await;
    let (next, later, led) = one_daemon(&tool.crowd().await);
    assert_eq!(led, 1);
    assert!(next != pid && later > launch);
}

#[tokio::test]
async fn status_and_stop_say_how_things_stand() {
    let tool = Tool::new();
    assert!(tool.run(&["status"]).await.out.starts_with("not running\n"));
    assert_eq!(tool.run(&["stop"]).await.out, "not running\n");
    let said = tool.run(&["ask", "x"]).await;
    let (_, pid, launch) = said.daemon();
    let status = tool.run(&["status"]).await.out;
    let kind = if cfg!(unix) { "unix" } else { "tcp" };
    assert!(
        status.starts_with(&format!(
            "ready: process {pid} of launch {launch} at {kind}:"
        )),
        "{status}"
    );
    assert!(
        status.contains("1 of 3 attempts used") && status.contains("\nlog: "),
        "{status}"
    );

    assert_eq!(
        tool.run(&["stop"]).await.out,
        format!("stopped process {pid}\n")
    );
    assert!(!lives(pid));
    // An orderly end is not charged, however early it comes.
    for _ in 0..5 {
        assert_eq!(tool.run(&["ask", "x"]).await.daemon().0, "Led");
        assert_eq!(tool.run(&["stop"]).await.code, Some(0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_daemon_that_is_stopped_by_a_signal_is_named_and_ended_by_force() {
    use rustix::process::{Pid, Signal, kill_process};

    let tool = Tool::new();
    let said = tool.run(&["ask", "x"]).await;
    let (_, pid, _) = said.daemon();
    let process = Pid::from_raw(pid as i32).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    let stat = format!("/proc/{pid}/stat");
    eventually(|| std::fs::read_to_string(&stat).unwrap().contains(") T ")).await;
    let stopped = tool.run(&["ask", "x"]).await;
    assert_eq!(stopped.code, Some(1));
    assert!(
        stopped.err.contains(&format!("process {pid}")) && stopped.err.contains("SIGCONT"),
        "{stopped:?}"
    );
    assert_eq!(
        tool.run(&["stop", "--force"]).await.out,
        format!("killed process {pid}\n")
    );
    assert!(!lives(pid));
}

#[cfg(unix)]
#[tokio::test]
async fn a_daemon_that_cannot_start_is_told_in_its_own_words_until_the_budget_is_used_up() {
    use spawn_gate::lock::LockName;

    let tool = Tool::new();
    // In place of the socket, which the daemon then cannot bind.
    tool.run(&["status"]).await;
    let name = LockName::new(&"daemon");
    let hash = name.as_str().trim_start_matches("daemon-");
    std::fs::create_dir(tool.state().join(format!("{}.sock", &hash[..24]))).unwrap();
    for (code, words) in [
        (1, "cannot remove"),
        (1, "cannot remove"),
        (75, "cannot remove"),
        (75, "retry after"),
    ] {
        let said = tool.run(&["ask", "x"]).await;
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(
            said.err.contains(words) && said.err.contains(".sock"),
            "{said:?}"
        );
    }
    let status = tool.run(&["status"]).await.out;
    assert!(
        status.contains("3 of 3 attempts used")
            && status.contains("the last launch failed: process"),
        "{status}"
    );
}

#[tokio::test]
async fn an_idle_daemon_leaves_and_the_next_call_gets_a_new_one() {
    let mut tool = Tool::new();
    tool.idle_ms = 1;
    for _ in 0..5 {
        let said = tool.run(&["ask", "x"]).await;
        let (how, pid, _) = said.daemon();
        assert_eq!(how, "Led");
        eventually(|| !lives(pid)).await;
    }
}
