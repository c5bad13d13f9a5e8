//! The roles that this test binary plays as a child: a backend that follows a list of steps, and a caller that launches one.

use std::env;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::thread::sleep;
use std::time::Duration;

use spawn_gate::process::{Backend, ProcessError, ProcessLauncher, Ready};
use spawn_gate::{GateError, error::LaunchError};

use crate::kit::{Gate, Scene, lives, role, sh};

/// In a backend: its steps, one a line.
const STEPS: &str = "PROCESS_TEST_STEPS";

/// In a caller: the outer directory of its scene.
const OUTER: &str = "PROCESS_TEST_OUTER";

/// In a caller: the shell script of its backend.
const SCRIPT: &str = "PROCESS_TEST_SCRIPT";

/// In a caller: whether its backend is attached.
const ATTACHED: &str = "PROCESS_TEST_ATTACHED";

/// In a caller: whether it stays after the launch.
const STAY: &str = "PROCESS_TEST_STAY";

/// No child lives longer, also if its test has failed.
const LONGEST_LIFE: Duration = Duration::from_secs(60);

pub(crate) fn play(role: &str) {
    match role {
        "steps" => play_steps(&env::var(STEPS).unwrap()),
        "caller" => play_caller(),
        "upgraded" => play_upgraded(),
        _ => {}
    }
}

/// A backend that follows these steps. Paths are relative to its working directory.
pub(crate) fn steps(steps: &[&str]) -> Command {
    let mut command = role("steps");
    command.env(STEPS, steps.join("\n"));
    command
}

fn play_steps(steps: &str) {
    let mut listeners: Vec<Box<dyn std::any::Any>> = Vec::new();
    for step in steps.lines() {
        let (verb, object) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "write" => write_whole(Path::new(object), &format!("{}\n", std::process::id())),
            "await" => until(|| Path::new(object).exists()),
            // `;` stands for the end of a line.
            "notify" => notify(object.replace(';', "\n").as_bytes()),
            "tcp" => {
                let address: SocketAddr = object.parse().unwrap();
                listeners.push(Box::new(TcpListener::bind(address).unwrap()));
            }
            "unix" => {
                let _ = fs::remove_file(object);
                listeners.push(Box::new(UnixListener::bind(object).unwrap()));
            }
            // Listens at a path that is not UTF-8, and says so.
            "ready-at-bytes" => {
                use std::os::unix::ffi::{OsStrExt, OsStringExt};

                let mut path = env::current_dir().unwrap().into_os_string().into_vec();
                path.extend(b"/s\xff.sock");
                let path = PathBuf::from(std::ffi::OsString::from_vec(path));
                listeners.push(Box::new(UnixListener::bind(&path).unwrap()));
                let mut message = b"READY=1\nX_SPAWN_GATE_ENDPOINT=unix:".to_vec();
                message.extend(path.as_os_str().as_bytes());
                notify(&message);
            }
            // Lets a child go on as the backend, and ends with it.
            "ready-as-child" => {
                let mut child = sh("exec sleep 60").spawn().unwrap();
                notify(format!("MAINPID={}", child.id()).as_bytes());
                notify(b"READY=1");
                child.wait().unwrap();
                exit(0);
            }
            "panic" => {
                let words = object.to_owned();
                let panicked = std::thread::spawn(move || panic!("{words}")).join();
                assert!(panicked.is_err());
                exit(101);
            }
            _ => panic!("no step: {step}"),
        }
    }
    sleep(LONGEST_LIFE);
}

fn notify(message: &[u8]) {
    let path = env::var_os("NOTIFY_SOCKET").unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(message, path).unwrap();
}

fn until(mut seen: impl FnMut() -> bool) {
    let mut left = LONGEST_LIFE.as_millis() / 5;
    while !seen() {
        left = left.checked_sub(1).expect("it did not happen in time");
        sleep(Duration::from_millis(5));
    }
}

/// Writes a file that is never seen half.
fn write_whole(path: &Path, text: &str) {
    let unfinished = path.with_extension("unfinished");
    let mut file = fs::File::create(&unfinished).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(unfinished, path).unwrap();
}

/// A process that launches the backend of `a`, a shell script that is ready once it writes `is ready`. It then writes `launched`
/// and the process id, or `failed` and why, to the scene's `outcome`.
pub(crate) struct Caller(Command);

impl Caller {
    pub(crate) fn new(scene: &Scene, script: &str) -> Self {
        let mut command = role("caller");
        command
            .env(OUTER, scene.temporary.path())
            .env(SCRIPT, script)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        Self(command)
    }

    pub(crate) fn attached(mut self) -> Self {
        self.0.env(ATTACHED, "");
        self
    }

    /// It stays until it is killed.
    pub(crate) fn that_stays(mut self) -> Self {
        self.0.env(STAY, "");
        self
    }

    pub(crate) fn command(self) -> Command {
        self.0
    }

    /// The caller started by a shell, which has its command line as `$@`.
    pub(crate) fn in_shell(self, script: &str) -> Command {
        self.through(Command::new("/bin/sh").args(["-c", script, "sh"]))
    }

    /// The caller started by another program, which gets its command line as arguments.
    pub(crate) fn through(self, wrapper: &Command) -> Command {
        let mut command = Command::new(wrapper.get_program());
        command.args(wrapper.get_args());
        command.arg(self.0.get_program()).args(self.0.get_args());
        for (name, value) in self.0.get_envs() {
            command.env(name, value.unwrap());
        }
        command.stdin(std::process::Stdio::null());
        command
    }
}

/// What a caller wrote, once it has.
pub(crate) async fn outcome(scene: &Scene) -> String {
    scene.written("outcome").await
}

/// The process id of the backend that a caller launched.
pub(crate) async fn launched(scene: &Scene) -> u32 {
    let outcome = outcome(scene).await;
    let pid = outcome.trim().strip_prefix("launched ");
    pid.unwrap_or_else(|| panic!("{outcome}")).parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn play_caller() {
    let outer = PathBuf::from(env::var_os(OUTER).unwrap());
    let script = env::var(SCRIPT).unwrap();
    let gate = Gate::new(outer.join("files")).unwrap();
    let mut launcher = ProcessLauncher::new(&gate, outer.join("files"), move |_| {
        Ok((sh(&script), Ready::line("is ready")))
    });
    launcher = launcher.grace(Duration::from_secs(1));
    if env::var_os(ATTACHED).is_some() {
        launcher = launcher.attached();
    }
    runtime().block_on(async {
        let outcome = match gate.launch("a", launcher).await {
            Ok(launched) => format!("launched {}\n", launched.value.pid),
            Err(error) => format!("failed {error:#}\n"),
        };
        write_whole(&outer.join("outcome"), &outcome);
        if env::var_os(STAY).is_some() {
            tokio::time::sleep(LONGEST_LIFE).await;
        }
    });
}

/// This program in the role of a tool that an upgrade has replaced on disk.
pub(crate) fn upgraded(scene: &Scene, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(role("upgraded").get_args());
    command
        .env(crate::kit::ROLE, "upgraded")
        .env(OUTER, scene.temporary.path());
    command
}

/// Deletes its own program, and launches itself as a backend four times.
fn play_upgraded() {
    let outer = PathBuf::from(env::var_os(OUTER).unwrap());
    let program = env::current_exe().unwrap();
    fs::remove_file(&program).unwrap();
    let gate = Gate::new(outer.join("files")).unwrap();
    let launcher = ProcessLauncher::new(&gate, outer.join("files"), |_| {
        Ok((steps(&[]), Ready::notify()))
    });
    runtime().block_on(async {
        // One more than the budget has attempts.
        for _ in 0..4 {
            let error = gate.launch("a", launcher.clone()).await.unwrap_err();
            assert!(!error.retry_helps());
            let ProcessError::Replaced { program: named } = cause(&error) else {
                panic!("{error:?}");
            };
            assert_eq!(*named, program);
        }
        let used = gate.snapshot("a").await.budget.attempts_used;
        write_whole(&outer.join("outcome"), &format!("attempts used: {used}\n"));
    });
}

/// The error of this module that a launch failed with.
#[track_caller]
pub(crate) fn cause(error: &GateError) -> &ProcessError {
    let source = match error {
        GateError::Launch(
            LaunchError::Failed { source, .. }
            | LaunchError::NotStarted { source, .. }
            | LaunchError::Discover { source, .. },
        ) => source,
        error => panic!("{error:?}"),
    };
    source
        .downcast_ref()
        .unwrap_or_else(|| panic!("{source:?}"))
}

/// Ends a test's backend by force.
pub(crate) async fn end(launcher: &crate::kit::Launcher, backend: &Backend) {
    launcher
        .stop("a", spawn_gate::process::Stop::Force)
        .await
        .unwrap();
    assert!(!lives(backend.pid));
}
