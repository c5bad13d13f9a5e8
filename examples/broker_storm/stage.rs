//! The stage: a directory, and the processes that the director starts. None outlives its lifeline.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use spawn_gate::BoxError;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::JOURNAL;
use crate::protocol::BackendId;
use crate::report::{Check, Report};
use crate::scene::POLL;

/// How long processes may take to end once they are asked to.
const END_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Stage {
    directory: PathBuf,
    /// One task for each process that runs. They return how many things the process had to complain about.
    processes: Mutex<JoinSet<usize>>,
    pub(crate) report: Arc<Report>,
}

/// A process runs as long as this is kept.
pub(crate) struct Lifeline {
    pub(crate) pid: u32,
    kill: Arc<Notify>,
    #[expect(dead_code, reason = "kept open, never written to")]
    stdin: ChildStdin,
}

impl Lifeline {
    /// Kills the process (SIGKILL on Unix). It has no time to put anything in order.
    pub(crate) fn kill(&self) {
        self.kill.notify_one();
    }
}

impl Stage {
    pub(crate) fn new(directory: &Path, report: Arc<Report>) -> Self {
        Self {
            directory: directory.to_owned(),
            processes: Mutex::default(),
            report,
        }
    }

    /// Makes a directory for one scenario.
    pub(crate) fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let directory = self.directory.join(name);
        std::fs::create_dir(&directory)?;
        Ok(directory)
    }

    /// Starts this program in another role. `lines` gets what it says on standard output.
    pub(crate) async fn start<S: AsRef<OsStr>>(
        &self,
        role: &'static str,
        args: impl IntoIterator<Item = S>,
        lines: mpsc::UnboundedSender<String>,
    ) -> Result<Lifeline, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let lifeline = Lifeline {
            pid: child.id().ok_or("the process is gone already")?,
            kill: Arc::default(),
            stdin: child.stdin.take().ok_or("no pipe to the process")?,
        };
        let kill = Arc::clone(&lifeline.kill);
        let watching = watch(role, child, kill, lines, Arc::clone(&self.report));
        self.processes.lock().await.spawn(watching);
        Ok(lifeline)
    }

    /// Waits until all processes are gone, whose lifelines were dropped before. Those that stay are killed.
    pub(crate) async fn settle(&self) -> Check {
        let mut processes = self.processes.lock().await;
        let mut complaints = 0;
        let all_gone = async {
            while let Some(ended) = processes.join_next().await {
                complaints += ended.unwrap_or(1);
            }
        };
        let _ = timeout(END_LIMIT, all_gone).await;
        let left = processes.len();
        processes.shutdown().await;
        let expected = "all processes end by themselves";
        let seen = match (left, complaints) {
            (0, 0) => expected.to_owned(),
            _ => format!("{left} had to be killed, {complaints} complaints"),
        };
        Check::same(expected, seen)
    }

    /// Waits until all backends are gone: they are tied to the brokers, which are gone by now.
    pub(crate) async fn backends_gone(&self) -> Check {
        let expected = "all backends end with their brokers";
        let pids = match backends(&self.directory) {
            Ok(pids) => pids,
            Err(error) => return Check::same(expected, error),
        };
        let lives = |pid: &&u32| {
            let pid = i32::try_from(**pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| test_kill_process(pid).is_ok())
        };
        let gone = async {
            while pids.iter().any(|pid| lives(&pid)) {
                sleep(POLL).await;
            }
        };
        let _ = timeout(END_LIMIT, gone).await;
        match pids.iter().filter(lives).count() {
            0 => Check::same(expected, expected),
            left => Check::same(expected, format_args!("{left} backends are left")),
        }
    }
}

/// The process ids in the journals of all scenarios' backends.
fn backends(directory: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for scenario in std::fs::read_dir(directory)? {
        let journal = std::fs::read_to_string(scenario?.path().join(JOURNAL));
        let lines = journal.unwrap_or_default();
        let backends = lines
            .lines()
            .filter_map(|line| line.parse::<BackendId>().ok());
        pids.extend(backends.map(|backend| backend.pid));
    }
    Ok(pids)
}

/// Passes on what a process says until it has ended.
async fn watch(
    role: &'static str,
    mut child: Child,
    kill: Arc<Notify>,
    lines: mpsc::UnboundedSender<String>,
    report: Arc<Report>,
) -> usize {
    let mut complaints = 0;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let was_killed = {
        // Nobody listens to the last lines of a process that is no longer wanted.
        let says = each_line(stdout, |line| drop(lines.send(line)));
        let complains = each_line(stderr, |line| {
            complaints += 1;
            report.event(format_args!("{role}: {line}"));
        });
        let mut both = pin!(async { tokio::join!(says, complains) });
        tokio::select! {
            _ = &mut both => false,
            () = kill.notified() => {
                let was_killed = child.start_kill().is_ok();
                both.await;
                was_killed
            }
        }
    };
    match child.wait().await {
        // How a process ends that was killed on purpose is no complaint; what it wrote before is.
        Ok(status) if status.success() || was_killed => {}
        Ok(status) => {
            complaints += 1;
            report.event(format_args!("{role}: {status}"));
        }
        Err(_) => complaints += 1,
    }
    complaints
}

async fn each_line(pipe: Option<impl AsyncRead + Unpin>, mut with: impl FnMut(String)) {
    let Some(pipe) = pipe else { return };
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        with(line);
    }
}
