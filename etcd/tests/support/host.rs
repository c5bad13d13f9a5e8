//! Hosts: processes of this test binary, each with a gate of its own. They say lines, and end with the value that holds them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::etcd::{Etcd, PATIENCE};

/// In a host: its role.
pub(crate) const ROLE: &str = "ETCD_TEST_ROLE";

/// In a host: the endpoints of the cluster, separated by commas.
const ENDPOINTS: &str = "ETCD_TEST_ENDPOINTS";

/// In a host: the directory that all hosts of a test share.
const SCENE: &str = "ETCD_TEST_SCENE";

/// What a host says begins with this; the rest is the test harness.
const MARK: &str = "host: ";

/// A process with a role.
pub(crate) struct Host {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Host {
    /// Starts this test binary again in this role.
    pub(crate) fn start(etcd: &Etcd, scene: &Path, role: &str) -> Self {
        Self::run(Command::new("setpriv"), etcd.endpoints(), scene, role)
    }

    /// Starts it in a network of its own, which has only these endpoints.
    pub(crate) fn start_in(
        network: &str,
        endpoints: Vec<String>,
        scene: &Path,
        role: &str,
    ) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", network, "setpriv"]);
        Self::run(command, endpoints, scene, role)
    }

    fn run(mut command: Command, endpoints: Vec<String>, scene: &Path, role: &str) -> Self {
        let mut child = command
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ENDPOINTS, endpoints.join(","))
            .env(SCENE, scene)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness may have begun the line.
                if let Some((_, said)) = line.split_once(MARK) {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Self {
            child,
            lines,
            heard: Vec::new(),
        }
    }

    /// Waits for a line that begins with this word. Returns the rest of it.
    pub(crate) fn says(&mut self, word: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let place = self
                .heard
                .iter()
                .position(|line| line.split(' ').next() == Some(word));
            if let Some(place) = place {
                let line = self.heard.remove(place);
                return line[word.len()..].trim_start().to_owned();
            }
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("not said in time: {word}, but {:?}", self.heard)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without {word}, with {:?}", self.heard)
                }
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its orderly end.
    pub(crate) fn ends(&mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}, {:?}", self.heard);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a host: says a line to its test.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // If the test is gone, so is this, soon.
    let _ = writeln!(out, "\n{MARK}{line}");
    let _ = out.flush();
}

/// The time since boot, which all processes of this machine read alike.
pub(crate) fn uptime() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)).unwrap()
}

/// In a host: the endpoints.
pub(crate) fn endpoints() -> Vec<String> {
    let endpoints = std::env::var(ENDPOINTS).unwrap();
    endpoints.split(',').map(str::to_owned).collect()
}

/// In a host: the directory that all hosts share.
pub(crate) fn scene() -> std::path::PathBuf {
    std::env::var_os(SCENE).unwrap().into()
}
