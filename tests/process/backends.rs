//! What children of these tests do: backends in Rust, a program that knows nothing of this crate, and callers.

use std::fs::{self, OpenOptions};
use std::future::poll_fn;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::Duration;

use spawn_gate::error::GateError;
use spawn_gate::process::{Backend, Endpoint, Instance, ProcessError, Ready};
use spawn_gate::{BoxError, FileSpawnLock, SpawnGate, SpawnLockError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use crate::kit::{Gate, LIMIT, Launcher, Scene, role, sh};

/// The scene's outer directory.
const OUTER: &str = "PROCESS_TEST_OUTER";

/// A file for which a backend waits before it is ready.
pub(crate) const WAIT_FOR: &str = "PROCESS_TEST_WAIT_FOR";

/// A file for which a backend waits before it reads its environment.
pub(crate) const COME_AFTER: &str = "PROCESS_TEST_COME_AFTER";

/// A file for which a backend with a port waits, once it is ready, before it waits for the request to leave.
pub(crate) const LEAVE_AFTER: &str = "PROCESS_TEST_LEAVE_AFTER";

/// Whether it has waited before, for a moment, and waits again then.
pub(crate) const LEAVE_AGAIN: &str = "PROCESS_TEST_LEAVE_AGAIN";

/// How long a backend may be idle, in milliseconds.
pub(crate) const IDLE: &str = "PROCESS_TEST_IDLE";

/// What a backend says about its start, right before it is ready.
pub(crate) const STATUS: &str = "PROCESS_TEST_STATUS";

/// Whether a backend starts a child that outlives it.
pub(crate) const WITH_CHILD: &str = "PROCESS_TEST_WITH_CHILD";

/// Whether a backend listens on a port.
pub(crate) const WITH_PORT: &str = "PROCESS_TEST_WITH_PORT";

/// Where a program listens, if not at `program.sock` in the outer directory.
pub(crate) const SOCKET: &str = "PROCESS_TEST_SOCKET";

/// What a caller launches: the name of a role, or `sh SCRIPT`.
const COMMAND: &str = "PROCESS_TEST_COMMAND";

/// When what a caller launches is ready: `notify`, `line WORDS`, or an endpoint.
const READY: &str = "PROCESS_TEST_READY";

/// How often a caller calls.
const CALLS: &str = "PROCESS_TEST_CALLS";

/// How a caller begins the line with what it got.
const RESULT: &str = "RESULT ";

/// Plays the role of a child process.
pub(crate) fn play(role: &str) {
    match role {
        "backend" => run(backend()),
        "backend without descriptors" => without_descriptors("backend"),
        "program without descriptors" => without_descriptors("program"),
        "fork and stay" => fork_and_stay(),
        "program" => program(),
        "asker" => run(caller()),
        "finder" => run(finder()),
        "stopper" => run(stopper()),
        "user" => run(user()),
        _ => return,
    }
    std::process::exit(0);
}

fn run(role: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(role);
}

/// This test binary as a backend in Rust.
pub(crate) fn backend_in(outer: &Path) -> Command {
    role_in("backend", outer)
}

pub(crate) fn role_in(name: &str, outer: &Path) -> Command {
    let mut command = role(name);
    command.env(OUTER, outer);
    command
}

/// A caller as a process.
pub(crate) fn caller_in(outer: &Path, command: &str, ready: &str) -> Command {
    let mut caller = role_in("asker", outer);
    caller
        .env(COMMAND, command)
        .env(READY, ready)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    caller
}

/// Waits for a role that prints a result, and returns that.
pub(crate) async fn result(child: Child) -> String {
    let output = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, result) = text
        .split_once(RESULT)
        .unwrap_or_else(|| panic!("no result: {text}"));
    result.lines().next().unwrap().to_owned()
}

fn print_result(result: &str) {
    println!("\n{RESULT}{result}");
}

/// Appends a line to a file of the outer directory, with one write.
pub(crate) fn note(outer: &Path, file: &str, line: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(outer.join(file))
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The lines of a file of the outer directory.
pub(crate) fn noted(outer: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(outer.join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The error of this crate's module that a gate's error came from.
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

/// An error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// A call of the backend over its Unix socket. Returns the process that answered.
pub(crate) async fn call(backend: &Backend) -> std::io::Result<u32> {
    let Some(Endpoint::Unix(path)) = &backend.endpoint else {
        panic!("no socket: {backend:?}");
    };
    let mut stream = UnixStream::connect(path).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let answer = answer.parse();
    answer.map_err(|_| std::io::Error::other("it hung up without an answer"))
}

impl Scene {
    pub(crate) fn outer(&self) -> PathBuf {
        self.temporary.path().to_owned()
    }

    /// A launcher of a backend in Rust.
    pub(crate) fn rust_launcher(&self) -> Launcher {
        let outer = self.outer();
        let launcher = self.launcher(move |_| Ok((backend_in(&outer), Ready::notify())));
        // A busy machine may take longer than the default.
        launcher.grace(LIMIT)
    }
}

/// A backend in Rust. It notes when it begins and ends, and why.
async fn backend() {
    let outer = outer();
    wait_for(COME_AFTER).await;
    let instance = match Instance::from_env() {
        Ok(instance) => instance.expect("it was launched"),
        Err(error) => {
            note(&outer, "journal", &format!("late {}", chain(&error)));
            std::process::exit(3);
        }
    };
    let pid = std::process::id();
    note(&outer, "journal", &format!("begin {pid}"));
    if std::env::var_os(WITH_CHILD).is_some() {
        let mut child = tokio::process::Command::new("sleep");
        child.arg("60").stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn().unwrap();
        note(&outer, "child", &child.id().unwrap().to_string());
    }
    wait_for(WAIT_FOR).await;
    if let Ok(status) = std::env::var(STATUS) {
        instance.status(&status).unwrap();
    }
    let idle = std::env::var(IDLE).ok();
    let idle = idle.map(|idle| Duration::from_millis(idle.parse().unwrap()));
    let leave = if std::env::var_os(WITH_PORT).is_some() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        let is_again = std::env::var_os(LEAVE_AGAIN).is_some();
        if is_again {
            let mut first = pin!(instance.until_leave(idle));
            let polled = poll_fn(|context| Poll::Ready(first.as_mut().poll(context)));
            assert!(polled.await.is_pending());
        }
        let leave = (!is_again).then(|| instance.until_leave(idle));
        instance.ready(endpoint).unwrap();
        wait_for(LEAVE_AFTER).await;
        let leave = leave.unwrap_or_else(|| instance.until_leave(idle));
        // Two that wait get the same request.
        let (leave, same) = tokio::join!(leave, instance.until_leave(idle));
        let leave = leave.unwrap();
        assert_eq!(same.unwrap(), leave);
        leave
    } else {
        let listener = instance.listen().unwrap();
        let leave = instance.until_leave(idle);
        if let Err(error) = instance.ready(instance.socket()) {
            note(&outer, "journal", &format!("late {}", chain(&error)));
            std::process::exit(3);
        }
        let serve = async {
            loop {
                let (mut caller, _) = listener.accept().await.unwrap();
                let _busy = instance.busy();
                // A caller may have hung up, as a look does.
                let _ = caller.write_all(pid.to_string().as_bytes()).await;
            }
        };
        tokio::select! {
            leave = leave => leave.unwrap(),
            () = serve => unreachable!(),
        }
    };
    note(&outer, "journal", &format!("end {pid} {leave:?}"));
    // With the instance, whose locks end with the process.
    std::process::exit(0);
}

/// Goes on as another role, whose inherited descriptors were closed.
fn without_descriptors(name: &str) {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    panic!("{}", role_in(name, &outer()).exec());
}

/// A program whose child, without descriptors, comes as a backend later.
fn fork_and_stay() {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let outer = outer();
    let mut late = backend_in(&outer);
    let late = late.env(COME_AFTER, outer.join("come")).spawn();
    println!("\nstays");
    late.unwrap().wait().unwrap();
}

/// A program that knows nothing of this crate and listens at a Unix socket, once it may.
fn program() {
    let outer = outer();
    note(&outer, "journal", &format!("begin {}", std::process::id()));
    let go = std::env::var_os(WAIT_FOR).map(PathBuf::from);
    while go.as_ref().is_some_and(|go| !go.exists()) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let socket = std::env::var_os(SOCKET).map_or_else(|| outer.join("program.sock"), PathBuf::from);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).unwrap();
    println!("\nit listens");
    for caller in listener.incoming() {
        drop(caller);
    }
}

/// Launches the backend, or finds it, and prints what it got.
async fn caller() {
    let (gate, launcher) = of_caller().unwrap();
    match gate.launch("a", launcher).await {
        Ok(launched) => print_result(&format!("{:?} {}", launched.how, launched.value.pid)),
        Err(error) => print_result(&format!("error {}", chain(&error))),
    }
}

/// Looks for the backend, launches it, and uses it, and prints what it got. It may not write to the directory.
async fn finder() {
    let written = fs::write(outer().join("files/new"), "");
    assert!(written.is_err(), "this user can write to the directory");
    let (gate, launcher) = match of_caller() {
        Ok(made) => made,
        Err(error) => return print_result(&format!("no gate: {}", chain(&error))),
    };
    let found = launcher.find("a").await;
    let launched = gate.launch("a", launcher.clone()).await;
    let used = launcher.in_use("a").await;
    let answer = match &used {
        Ok(used) => call(used).await.map_err(|error| error.to_string()),
        Err(error) => Err(chain(error)),
    };
    let found = found.map(|found| matches!(found, spawn_gate::process::Presence::Ready(_)));
    let found = found.map_err(|error| chain(&error));
    let launched = launched.map(|launched| (launched.how, launched.value.pid));
    let launched = launched.map_err(|error| chain(&error));
    print_result(&format!("{found:?} {launched:?} {answer:?}"));
}

/// Stops the backend, and prints how.
async fn stopper() {
    let (_, launcher) = of_caller().unwrap();
    let stopped = launcher.stop("a", spawn_gate::process::Stop::Orderly).await;
    let stopped = stopped.map_err(|error| chain(&error));
    print_result(&format!("{stopped:?}"));
}

/// Uses the backend again and again.
async fn user() {
    let gate = strict_gate(&outer().join("files"));
    let (_, launcher) = launcher_of(gate.unwrap());
    let calls = std::env::var(CALLS).unwrap().parse().unwrap();
    match use_it(&launcher, calls).await {
        Ok(()) => print_result("served"),
        Err(error) => print_result(&error),
    }
}

/// Calls the backend with pauses around the time that it may be idle.
pub(crate) async fn use_it(launcher: &Launcher, calls: u64) -> Result<(), String> {
    for number in 0..calls {
        let used = launcher.in_use("a").await;
        let used = used.map_err(|error| format!("call {number}: {}", chain(&error)))?;
        let answered = call(&used).await;
        let answered = answered.map_err(|error| format!("call {number}: {error}"))?;
        if answered != used.pid {
            return Err(format!("call {number}: another backend answered"));
        }
        drop(used);
        // Not to let things settle: the pace of the calls.
        tokio::time::sleep(Duration::from_micros(number * 997 % 11_000)).await;
    }
    Ok(())
}

pub(crate) fn user_in(outer: &Path, calls: u64) -> Command {
    let mut user = caller_in(outer, "backend", "notify");
    user.env(crate::kit::ROLE, "user")
        .env(CALLS, calls.to_string());
    user
}

/// A gate that counts what does not live long.
pub(crate) fn strict_gate(files: &Path) -> Result<Gate, SpawnLockError> {
    let builder = SpawnGate::builder(FileSpawnLock::new(files)?);
    Ok(builder.stable_after(Duration::from_secs(60)).build())
}

fn of_caller() -> Result<(Gate, Launcher), SpawnLockError> {
    let outer = outer();
    let gate = Gate::new(outer.join("files"))?;
    Ok(launcher_of(gate))
}

fn launcher_of(gate: Gate) -> (Gate, Launcher) {
    let outer = outer();
    let launcher = Launcher::new(&gate, outer.join("files"), move |_| command_of(&outer));
    (gate, launcher)
}

fn command_of(outer: &Path) -> Result<(Command, Ready), BoxError> {
    let command = std::env::var(COMMAND)?;
    let command = match command.strip_prefix("sh ") {
        Some(script) => sh(script),
        None => role_in(&command, outer),
    };
    let ready = std::env::var(READY)?;
    let ready = match (ready.as_str(), ready.strip_prefix("line ")) {
        ("notify", _) => Ready::notify(),
        (_, Some(words)) => Ready::line(words),
        (endpoint, None) => Ready::accepts(endpoint.parse::<Endpoint>()?),
    };
    Ok((command, ready))
}

fn outer() -> PathBuf {
    std::env::var_os(OUTER).unwrap().into()
}

async fn wait_for(variable: &str) {
    if let Some(path) = std::env::var_os(variable) {
        crate::kit::eventually(|| Path::new(&path).exists().then_some(())).await;
    }
}
