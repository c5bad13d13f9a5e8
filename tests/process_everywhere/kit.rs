//! What the tests share: a directory with a gate, launchers of this test binary in a role, and waits with a limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use spawn_gate::process::{Backend, Presence, ProcessError, ProcessLauncher, Ready};
use spawn_gate::{GateError, SpawnGate};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The environment variable with the role of a child.
pub(crate) const ROLE: &str = "EVERYWHERE_TEST_ROLE";

/// The scene's directory.
pub(crate) const SCENE: &str = "EVERYWHERE_TEST_SCENE";

/// Long enough for any step on a busy machine. A test that runs into it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) type Gate = SpawnGate<String, Backend>;
pub(crate) type Launcher = ProcessLauncher<String>;

/// A directory of its own, with a gate.
pub(crate) struct Scene {
    temporary: TempDir,
    pub(crate) gate: Gate,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let gate = Gate::new(temporary.path().join("files")).unwrap();
        Self { temporary, gate }
    }

    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// This test binary in a role.
    pub(crate) fn role(&self, role: &str) -> Command {
        role_in(self.path(), role)
    }

    /// A launcher of this test binary in a role, with one more variable in its environment.
    pub(crate) fn launcher(
        &self,
        role: &str,
        (name, value): (&str, &str),
        ready: Ready,
    ) -> Launcher {
        let (directory, role) = (self.path().to_owned(), role.to_owned());
        let (name, value) = (name.to_owned(), value.to_owned());
        let launcher = Launcher::new(&self.gate, self.path().join("files"), move |_| {
            let mut command = role_in(&directory, &role);
            command.env(&name, &value);
            Ok((command, ready.clone()))
        });
        // A busy machine may take longer than the default.
        launcher.grace(LIMIT)
    }

    /// A launcher of a backend in Rust.
    pub(crate) fn rust(&self) -> Launcher {
        self.launcher("backend", ("UNUSED", ""), Ready::notify())
    }

    /// A launcher of a program that knows nothing of this crate.
    pub(crate) fn program(&self) -> Launcher {
        self.launcher("program", ("UNUSED", ""), Ready::line("it listens"))
    }

    /// The file with this suffix of the only backend.
    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        let found = fs::read_dir(self.path().join("files")).unwrap();
        let mut paths = found.map(|entry| entry.unwrap().path());
        paths
            .find(|path| path.to_string_lossy().ends_with(suffix))
            .unwrap_or_else(|| panic!("there is no file *{suffix}"))
    }

    /// The lines of the journal.
    pub(crate) fn journal(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a line of the journal that begins like this, and returns the rest of it.
    pub(crate) async fn noted(&self, begin: &str) -> String {
        let found = || {
            let lines = self.journal();
            let mut ends = lines.iter().filter_map(|line| line.strip_prefix(begin));
            ends.next().map(str::to_owned)
        };
        eventually(found).await
    }
}

fn role_in(directory: &Path, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["role", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env(SCENE, directory);
    command
}

/// Starts a caller, whose result [`result`] returns.
pub(crate) fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// What a caller printed in the line that begins with `RESULT`.
pub(crate) async fn result(child: Child) -> String {
    let output = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("RESULT "));
    lines
        .next()
        .unwrap_or_else(|| panic!("no result: {text}"))
        .to_owned()
}

/// Polls for what another process does. It ends the test if that takes too long, and asserts no time otherwise.
pub(crate) async fn eventually<T>(mut seen: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(seen) = seen() {
                return seen;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait)
        .await
        .expect("it did not happen in time")
}

/// Waits until no backend is there after a launch that failed. A process that another test forked in that moment may have a copy of the
/// lock for the backend's life until it execs.
pub(crate) async fn until_nobody_is_there(launcher: &Launcher) {
    let wait = async {
        while launcher.find("a").await.unwrap() != Presence::Gone {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("somebody is there");
}

/// The listener of a child that the backend started, which is refused once that is gone.
pub(crate) async fn until_refused(address: &str) {
    let wait = async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait)
        .await
        .expect("it did not happen in time");
}

/// Waits until the backend of `a` is gone.
pub(crate) async fn until_gone(launcher: &Launcher) {
    let gone = async {
        while launcher.find("a").await.ok() != Some(Presence::Gone) {
            tokio::task::yield_now().await;
        }
    };
    let waited = timeout(LIMIT, gone).await;
    assert!(waited.is_ok(), "{:?}", launcher.find("a").await);
}

/// Lets a backend in Rust end without a word, as by a crash.
pub(crate) async fn crash(backend: &Backend) {
    let address = backend.endpoint.as_ref().unwrap().tcp().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"crash\n").await.unwrap();
}

/// The error of this crate's module that an error came from.
#[track_caller]
pub(crate) fn process_error(error: &GateError) -> &ProcessError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return found;
        }
        source = error.source();
    }
    panic!("not of a process: {error:?}")
}
