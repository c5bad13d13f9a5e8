//! What children of these tests do: a backend in Rust, a program that knows nothing of this crate, and callers.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use spawn_gate::process::{Backend, Instance, ProcessLauncher, Ready};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::kit::{Gate, LIMIT, Launcher, ROLE, SCENE};

/// Whether a backend in Rust starts a child that outlives it.
pub(crate) const WITH_CHILD: &str = "EVERYWHERE_TEST_WITH_CHILD";

/// Whether a backend in Rust never gets ready.
pub(crate) const LOADS: &str = "EVERYWHERE_TEST_LOADS";

/// How long a backend may be idle, in milliseconds.
pub(crate) const IDLE: &str = "EVERYWHERE_TEST_IDLE";

pub(crate) fn play(role: &str) {
    // No child lives longer, also if its test has failed.
    std::thread::spawn(|| {
        std::thread::sleep(2 * LIMIT);
        std::process::exit(9);
    });
    match role {
        "backend" => run(backend()),
        "program" => program(),
        "program with child" => program_with_child(),
        "child" => child(),
        "fails" => fails(),
        "never ready" => never_ready(),
        "caller" => run(caller(false)),
        "attached caller" => run(caller(true)),
        "user" => run(user()),
        _ => panic!("no role: {role}"),
    }
}

fn run(role: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(role);
}

fn scene() -> PathBuf {
    std::env::var_os(SCENE).unwrap().into()
}

/// Appends a line to the journal, with one write.
fn note(line: &str) {
    let journal = scene().join("journal");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(journal)
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A backend in Rust, which answers with its process id.
async fn backend() {
    let instance = Instance::from_env().unwrap().expect("it was launched");
    note(&format!("begin {}", instance.launch()));
    if std::env::var_os(WITH_CHILD).is_some() {
        start_child();
    }
    instance.status("loading").unwrap();
    if std::env::var_os(LOADS).is_some() {
        note("loads");
        tokio::time::sleep(LIMIT).await;
    }
    let idle = std::env::var(IDLE).ok();
    let idle = idle.map(|idle| Duration::from_millis(idle.parse().unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let leave = instance.until_leave(idle);
    instance.ready(listener.local_addr().unwrap()).unwrap();
    let serve = async {
        loop {
            let (mut caller, _) = listener.accept().await.unwrap();
            let _busy = instance.busy();
            let mut line = String::new();
            let _ = BufReader::new(&mut caller).read_line(&mut line).await;
            if line == "crash\n" {
                std::process::exit(7);
            }
            // A caller may have hung up, as a look does.
            let pid = std::process::id().to_string();
            let _ = caller.write_all(pid.as_bytes()).await;
        }
    };
    let leave = tokio::select! {
        leave = leave => leave.unwrap(),
        () = serve => unreachable!(),
    };
    note(&format!("end {leave:?}"));
    // With the instance, whose locks end with the process.
    std::process::exit(0);
}

/// A program that listens at a port, once its input has ended.
fn program() {
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).unwrap();
    assert!(input.is_empty());
    note(&format!("begin {}", std::process::id()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\nit listens at {}", listener.local_addr().unwrap());
    stay(&listener);
}

/// Accepts connections.
fn stay(listener: &TcpListener) {
    for caller in listener.incoming() {
        drop(caller);
    }
}

/// A program with a child that would outlive it.
fn program_with_child() {
    start_child();
    program();
}

fn start_child() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["role", "--exact", "--nocapture"])
        .env(ROLE, "child")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = child.spawn().unwrap();
    note(&format!("child's process {}", child.id()));
    std::thread::spawn(move || child.wait());
}

fn child() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    note(&format!("child {}", listener.local_addr().unwrap()));
    stay(&listener);
}

fn fails() {
    println!("\nreads its index");
    eprintln!("the index is broken");
    std::process::exit(3);
}

fn never_ready() {
    note(&format!("begin {}", std::process::id()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    note(&format!("listens {}", listener.local_addr().unwrap()));
    stay(&listener);
}

fn launcher(gate: &Gate) -> Launcher {
    let scene = scene();
    ProcessLauncher::new(gate, scene.join("files"), move |_| {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command
            .args(["role", "--exact", "--nocapture"])
            .env(ROLE, "backend")
            .env(SCENE, &scene);
        Ok((command, Ready::notify()))
    })
}

/// Launches the backend and prints what it got. With an attached one it stays until it is killed.
async fn caller(is_attached: bool) {
    let gate = Gate::new(scene().join("files")).unwrap();
    let mut launcher = launcher(&gate);
    if is_attached {
        launcher = launcher.attached();
    }
    match gate.launch("a", launcher).await {
        Ok(launched) => println!("\nRESULT {:?} {}", launched.how, launched.value.pid),
        Err(error) => println!("\nRESULT {error:#}"),
    }
    if is_attached {
        note("launched");
        tokio::time::sleep(LIMIT).await;
    }
}

/// Uses the backend again and again.
async fn user() {
    let gate = Gate::new(scene().join("files")).unwrap();
    let launcher = launcher(&gate);
    match use_it(&launcher, 20).await {
        Ok(()) => println!("\nRESULT served"),
        Err(error) => println!("\nRESULT {error}"),
    }
}

/// Calls the backend with pauses around the time that it may be idle.
pub(crate) async fn use_it(launcher: &Launcher, calls: u64) -> Result<(), String> {
    for number in 0..calls {
        let used = launcher.in_use("a").await;
        let used = used.map_err(|error| format!("call {number}: {error:#}"))?;
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

/// A call of a backend in Rust. Returns the process that answered.
pub(crate) async fn call(backend: &Backend) -> io::Result<u32> {
    let address = backend.endpoint.as_ref().and_then(|found| found.tcp());
    let mut stream = TcpStream::connect(address.unwrap()).await?;
    stream.write_all(b"who\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.parse().map_err(io::Error::other)
}
