//! What one test has: directories, a gate, a launcher, and an eye on the processes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate::process::{Backend, ProcessLauncher};
use spawn_gate::{FileSpawnLock, Launched, SpawnGate};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::program::{Program, free_address};

/// Long enough for any step on a busy machine. A test that runs into it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The key of the only backend of a scene. Short, since it is part of the path of the notify protocol's socket.
pub(crate) const KEY: &str = "it";

/// The log of the launches: a line for each.
const LAUNCHES: &str = "launches";

pub(crate) type Launcher = ProcessLauncher<String>;

/// A program with its directories. Dropping it kills every process that still has a file of them open.
pub(crate) struct Scene {
    pub(crate) place: Place,
    pub(crate) gate: SpawnGate<String, Backend>,
    pub(crate) launcher: Launcher,
    /// Dropped last: after the processes.
    _temporary: TempDir,
}

/// What a caller in another process has to know.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) program: Program,
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
}

impl Scene {
    /// Returns `None`, and says so, if the program is not installed.
    pub(crate) fn new(program: &Program) -> Option<Self> {
        Self::at(program, free_address().port())
    }

    pub(crate) fn at(program: &Program, port: u16) -> Option<Self> {
        if program.file().is_none() {
            let file = program.file_name();
            let is_required = std::env::var_os("REQUIRE_PROGRAMS").is_some_and(|it| it == "1");
            assert!(!is_required, "{file} is not installed, and is required");
            tell(&format!(
                "SKIPPED: {}: {file} is not installed",
                program.name
            ));
            return None;
        }
        let temporary = tempfile::tempdir().unwrap();
        // Another user has to get at the data in it.
        fs::set_permissions(temporary.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let directory = temporary.path().canonicalize().unwrap();
        let place = Place {
            program: *program,
            directory,
            port,
        };
        program.prepare(&place.data());
        let (gate, launcher) = place.gate();
        Some(Self {
            place,
            gate,
            launcher,
            _temporary: temporary,
        })
    }

    /// A launch of this process, which must succeed, and a request to the backend.
    pub(crate) async fn launch(&self) -> Launched<Backend> {
        let launching = self.gate.launch(KEY, self.launcher.clone());
        let launched = within(launching).await.unwrap_or_else(|error| {
            panic!("{}: {}", self.place.program.name, chain(&error));
        });
        self.place.use_it(&launched.value).await;
        launched
    }

    /// How many times a command was asked for.
    pub(crate) fn launches(&self) -> usize {
        let text = fs::read_to_string(self.place.directory.join(LAUNCHES));
        text.unwrap_or_default().lines().count()
    }

    /// The processes that have a file of the scene's directory open.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        processes_at(&self.place.directory)
    }

    /// The processes of the scene that no other one of them started.
    pub(crate) fn first_processes(&self) -> BTreeSet<u32> {
        let all = self.processes();
        let is_first = |pid: &u32| parent(*pid).is_some_and(|parent| !all.contains(&parent));
        all.iter().copied().filter(is_first).collect()
    }
}

impl Place {
    /// The directory of the gate and of the launcher. It is the tests' user's alone.
    fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    /// The program's own.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A gate and a launcher of their own, as each process makes them.
    pub(crate) fn gate(&self) -> (SpawnGate<String, Backend>, Launcher) {
        let locks = FileSpawnLock::new(self.files()).unwrap();
        let gate = SpawnGate::builder(locks).build();
        let place = self.clone();
        let launcher = Launcher::new(&gate, self.files(), move |launch| {
            note(&place.directory.join(LAUNCHES), launch.fencing_token);
            place.program.command(&place.data(), place.port)
        });
        (gate, launcher.start_timeout(LIMIT).grace(LIMIT / 2))
    }

    /// A request of the program's protocol, which must be answered.
    pub(crate) async fn use_it(&self, backend: &Backend) {
        let endpoint = backend.endpoint.as_ref().expect("it listens somewhere");
        let answer = within(self.program.request(endpoint, backend.pid)).await;
        answer.unwrap_or_else(|error| panic!("{}: {error}", self.program.name));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Unless the test failed there are none. Independent of what is tested.
        let until = Instant::now() + LIMIT / 6;
        while Instant::now() < until {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let pid = Pid::from_raw(pid as i32).unwrap();
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn note(path: &Path, launch: u64) {
    use std::io::Write;

    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    file.unwrap()
        .write_all(format!("{launch}\n").as_bytes())
        .unwrap();
}

fn processes_at(directory: &Path) -> BTreeSet<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&pid| is_at(pid, directory)).collect()
}

/// Whether a process has a file of the directory open, as has each that inherited the lock for its life. One that is ending has
/// none. Not counted are callers, which are killed when they are dropped, and children of this process that have not executed
/// their program yet: they have all that this process has open.
fn is_at(pid: u32, directory: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let is_program = fs::read_link(process.join("exe"))
        .is_ok_and(|program| std::env::current_exe().is_ok_and(|this| program != this));
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    let mut open = open.flatten().map(|entry| fs::read_link(entry.path()));
    is_program && open.any(|file| file.is_ok_and(|file| file.starts_with(directory)))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process lives. A zombie does not.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, fields)| fields);
    state.is_some_and(|fields| !fields.starts_with(['Z', 'X']))
}

pub(crate) fn kill_9(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

pub(crate) async fn until_gone(pid: u32) {
    within(async {
        while lives(pid) {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Writes a line at once, so that those of tests that run beside it are not mixed with it.
pub(crate) fn tell(line: &str) {
    let line = format!("\n{line}\n");
    eprint!("{line}");
}

/// A limit for what should not take long.
pub(crate) async fn within<F: Future>(step: F) -> F::Output {
    timeout(LIMIT, step).await.expect("it took too long")
}

/// An error with all its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<_> = sources.map(ToString::to_string).collect();
    texts.join(": ")
}
