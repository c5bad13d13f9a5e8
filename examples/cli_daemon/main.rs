//! A command-line tool with a daemon behind it: a template to copy. The first `ask` starts the daemon, later ones find
//! it; it leaves when it is idle.
//!
//! ```console
//! $ cargo run --features process --example cli_daemon -- --state DIR ask TEXT         # the daemon's answer
//! $ cargo run --features process --example cli_daemon -- --state DIR status           # how things stand
//! $ cargo run --features process --example cli_daemon -- --state DIR stop [--force]   # ends the daemon
//! ```
//!
//! The exit status is 1 for an error, and 75 for one that names the time after which to try again.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, LockReport, Waiting, inspect_spawn_lock};
use spawn_gate::error::with_sources;
use spawn_gate::process::{Endpoint, Instance, Leave, ProcessLauncher, Ready, Stop};
use spawn_gate::{BoxError, FileSpawnLock, GateError, SpawnGate};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

/// Names the daemon. A tool with a daemon for each project would use the project's path as text.
const KEY: &str = "daemon";

/// A daemon that fails earlier than this has not proved that it works, so its launch stays charged.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How long calls in progress get once the daemon is stopped: less than the grace time of `stop`.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The longest request.
const LONGEST_LINE: u64 = 64 * 1024;

/// The exit status that tells scripts to try again later.
const EX_TEMPFAIL: u8 = 75;

// Without threads of its own a tool starts faster, and it starts often.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Err(error) = run(&args).await else {
        return ExitCode::SUCCESS;
    };
    // Not `eprintln`, which panics if nobody reads it any more.
    let _ = writeln!(io::stderr(), "error: {}", with_sources(&*error));
    match error.downcast_ref().and_then(GateError::retry_after) {
        Some(_) => ExitCode::from(EX_TEMPFAIL),
        None => ExitCode::FAILURE,
    }
}

async fn run(args: &[OsString]) -> Result<(), BoxError> {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(|word| &**word).collect();
    let daemon = || launcher(Path::new(&args[1]));
    match words[..] {
        ["--state", _, "ask", text] => ask(&daemon()?, text).await,
        ["--state", _, "status"] => status(&daemon()?).await,
        ["--state", _, "stop"] => stop(&daemon()?, Stop::Orderly).await,
        ["--state", _, "stop", "--force"] => stop(&daemon()?, Stop::Force).await,
        ["--state", _, "daemon"] => serve().await,
        _ => Err("usage: cli_daemon --state DIR (ask TEXT | status | stop [--force])".into()),
    }
}

/// The gate and launcher that all invocations share, by way of the state directory.
fn launcher(state: &Path) -> Result<ProcessLauncher<String>, BoxError> {
    let gate = SpawnGate::builder(FileSpawnLock::new(state)?).stable_after(STABLE_AFTER);
    let gate = gate.on_wait(show_wait).build();
    let state = std::path::absolute(state)?;
    let launcher = ProcessLauncher::new(&gate, state.clone(), move |_launch| {
        let mut daemon = Command::new(std::env::current_exe()?);
        daemon.arg("--state").arg(&state).arg("daemon");
        Ok((daemon, Ready::notify()))
    });
    Ok(launcher.version(env!("CARGO_PKG_VERSION")))
}

/// Says to a person what a call that takes long waits for. A script reads standard error for errors alone.
fn show_wait(waiting: &Waiting) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "{waiting}");
    }
}

async fn ask(launcher: &ProcessLauncher<String>, text: &str) -> Result<(), BoxError> {
    // Until this is dropped, the daemon does not leave for being idle.
    let daemon = launcher.in_use(KEY).await?;
    let endpoint = daemon.endpoint.as_ref();
    let endpoint = endpoint.ok_or("the daemon does not say where it listens")?;
    // No second try if that fails: the daemon may have done what it was asked.
    let answer = timeout(ANSWER_LIMIT, call(endpoint, text)).await;
    let answer = answer.map_err(|_| format!("no answer within {ANSWER_LIMIT:?}"))??;
    let (how, pid, launch) = (daemon.how(), daemon.pid, daemon.launch);
    Ok(writeln!(
        io::stdout(),
        "{answer}{how:?}: process {pid}, launch {launch}"
    )?)
}

async fn call(endpoint: &Endpoint, text: &str) -> io::Result<String> {
    let mut stream = endpoint.connect().await?;
    let line = format!("{}\n", text.replace('\n', " "));
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

async fn status(launcher: &ProcessLauncher<String>) -> Result<(), BoxError> {
    let mut out = io::stdout();
    match launcher.find(KEY).await {
        Ok(presence) => writeln!(out, "{presence}")?,
        Err(error) => writeln!(out, "{}", with_sources(&error))?,
    }
    writeln!(out, "{}", launcher.gate().snapshot(KEY).await)?;
    let lock = FileSpawnLock::new(launcher.directory())?;
    let report = inspect_spawn_lock(lock.path_of(&KEY)).ok();
    if let Some(holder) = report.as_ref().and_then(LockReport::holder) {
        writeln!(out, "launching: {holder}")?;
    }
    if let Some(LedgerReading::Found(ledger)) = report.map(|report| report.ledger) {
        if let Some(failure) = ledger.last_outcome().and_then(|last| last.failure.clone()) {
            writeln!(out, "the last launch failed: {failure}")?;
        }
    }
    writeln!(out, "log: {}", launcher.log_path(KEY).display())?;
    Ok(())
}

async fn stop(launcher: &ProcessLauncher<String>, how: Stop) -> Result<(), BoxError> {
    let stopped = launcher.stop(KEY, how).await?;
    Ok(writeln!(io::stdout(), "{stopped}")?)
}

/// The daemon.
async fn serve() -> Result<(), BoxError> {
    let daemon = Instance::from_env()?.ok_or("`ask` starts the daemon")?;
    let idle = std::env::var("CLI_DAEMON_IDLE_MS").ok();
    let idle = idle.and_then(|idle| idle.parse().ok());
    let idle = Duration::from_millis(idle.unwrap_or(600_000));
    #[cfg(unix)]
    let (listener, endpoint) = (daemon.listen()?, daemon.socket());
    // There, a port has to do, which other users of the machine can connect to.
    #[cfg(windows)]
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    #[cfg(windows)]
    let endpoint = listener.local_addr()?;
    // Whatever takes long comes here, before it says that it is ready. A stop can come right after that.
    let leave = daemon.until_leave(Some(idle));
    daemon.ready(endpoint)?;
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let busy = daemon.busy();
                    tokio::spawn(async move { (answer(stream).await, drop(busy)) });
                }
                // Out of descriptors, most likely. That passes; callers wait in the listener's queue.
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let why = tokio::select! {
        why = leave => why?,
        () = accept => Leave::Stopped,
    };
    let _ = timeout(DRAIN_LIMIT, daemon.drained()).await;
    let _ = writeln!(io::stderr(), "leaves: {why:?}");
    Ok(())
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut line = String::new();
    let mut request = BufReader::new((&mut stream).take(LONGEST_LINE));
    request.read_line(&mut line).await?;
    let answer = format!("{}\n", line.trim_end().to_uppercase());
    stream.write_all(answer.as_bytes()).await
}
