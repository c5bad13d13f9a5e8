//! What the tests share: a directory with a gate, commands, and waits with a limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use spawn_gate::process::{Backend, Presence, ProcessLauncher, Ready};
use spawn_gate::{BoxError, Launch, SpawnGate};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// The environment variable with the role of a child.
pub(crate) const ROLE: &str = "PROCESS_TEST_ROLE";

/// Long enough for any step on a busy machine. A test that runs into it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) type Gate = SpawnGate<String, Backend>;
pub(crate) type Launcher = ProcessLauncher<String>;

/// A directory of its own, with a gate.
pub(crate) struct Scene {
    pub(crate) temporary: TempDir,
    pub(crate) gate: Gate,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let gate = Gate::new(temporary.path().join("files")).unwrap();
        Self { temporary, gate }
    }

    /// The directory of the backends' files, and of the gate's locks.
    pub(crate) fn files(&self) -> PathBuf {
        self.temporary.path().join("files")
    }

    /// A launcher of what `command` returns.
    pub(crate) fn launcher(
        &self,
        command: impl Fn(&Launch<String>) -> Result<(Command, Ready), BoxError> + Send + Sync + 'static,
    ) -> Launcher {
        Launcher::new(&self.gate, self.files(), command)
    }

    /// The file with this suffix of the only backend: `.log`, say.
    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        let mut found = fs::read_dir(self.files())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        found
            .find(|path| path.to_string_lossy().ends_with(suffix))
            .unwrap_or_else(|| panic!("there is no file *{suffix}"))
    }

    /// What the backend wrote to a file of this name in the scene's outer directory, once it is there.
    pub(crate) async fn written(&self, name: &str) -> String {
        let path = self.temporary.path().join(name);
        eventually(|| {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| text.ends_with('\n'))
        })
        .await
    }
}

/// `sh -c SCRIPT`.
pub(crate) fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

/// This test binary in a role.
pub(crate) fn role(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["role", "--exact", "--nocapture"])
        .env(ROLE, role);
    command
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

/// Whether a process lives. A zombie does not.
pub(crate) fn lives(pid: u32) -> bool {
    match fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")) {
        Ok(stat) => !stat
            .rsplit_once(')')
            .unwrap()
            .1
            .trim_start()
            .starts_with(['Z', 'X']),
        Err(_) => false,
    }
}

pub(crate) async fn until_gone(pid: u32) {
    eventually(|| (!lives(pid)).then_some(())).await;
}
