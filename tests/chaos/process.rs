//! One asking process, as the driver sees it.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::asker;

pub(crate) struct Process {
    pub(crate) number: usize,
    child: Child,
    input: ChildStdin,
    said: Receiver<String>,
    pub(crate) is_stopped: bool,
}

impl Process {
    pub(crate) fn start(seed: u64, directory: &Path, number: usize, visits: bool) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["role", "--exact", "--nocapture"])
            .env(asker::SEED, seed.to_string())
            .env(asker::DIRECTORY, directory)
            .env(asker::NUMBER, number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if visits {
            command.env(asker::VISITS, "");
        }
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (saying, said) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, what)) = line.split_once(asker::MARK) {
                    let _ = saying.send(what.to_owned());
                }
            }
        });
        Self {
            number,
            child,
            input,
            said,
            is_stopped: false,
        }
    }

    /// It may have been killed.
    pub(crate) fn tell(&mut self, what: &str) {
        let _ = writeln!(self.input, "{what}");
    }

    /// The next thing that it says.
    pub(crate) fn says(&self, deadline: Instant) -> Result<String, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        let said = self.said.recv_timeout(left);
        said.map_err(|_| format!("process {} says nothing", self.number))
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.is_stopped = signal == Signal::STOP;
    }

    /// Ends it with SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ends(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("process {}: {status}", self.number)),
                None if Instant::now() >= deadline => {
                    return Err(format!("process {} does not end", self.number));
                }
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// What the process is doing: as the system sees it, and as its gate does.
    pub(crate) fn report(&mut self) -> String {
        // What it said before, and nobody waited for.
        while self.said.try_recv().is_ok() {}
        self.tell("report");
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State"));
        let flights = self.says(Instant::now() + Duration::from_secs(1));
        format!(
            "process {}: {}; {}",
            self.number,
            state.unwrap_or("no state"),
            flights.unwrap_or_else(|silent| silent)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended unless the round failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
