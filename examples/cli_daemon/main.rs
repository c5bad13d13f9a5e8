//! A template for a command-line tool with a daemon: the first invocation that needs the daemon starts it, and it stays.
//!
//! ```console
//! $ cargo run --example cli_daemon -- --state DIR ask TEXT   # answered by the daemon, which is started if need be
//! $ cargo run --example cli_daemon -- --state DIR stop
//! $ cargo run --example cli_daemon                           # a self-check with real processes (on Unix)
//! ```
//!
//! `contact.rs` is how the two find and recognise each other, `launcher.rs` how the tool starts the daemon, `daemon.rs` the
//! daemon; leave out `self_check.rs`. The exit status is 1 for an error, 75 if that says when to try again.

mod contact;
mod daemon;
mod launcher;
#[cfg(unix)]
mod self_check;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use spawn_gate::{BoxError, FileSpawnLock, GateError, SpawnGate, SpawnLockError};
use tokio::time::{sleep, timeout};

use crate::contact::{Address, POLL};
use crate::launcher::Launcher;

/// Names the daemon in messages and, hashed, its lock file.
const KEY: &str = "cli_daemon";

/// Longer than the slowest start: a daemon that takes longer is ended by its launcher.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A daemon that dies earlier than this has not proved that it works, so its launch stays charged.
const STABLE_AFTER: Duration = Duration::from_secs(10);

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The exit status that tells scripts to try again later.
const EX_TEMPFAIL: u8 = 75;

// Without threads of its own a tool starts faster, and it starts often.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let Err(error) = run(&args).await else {
        return ExitCode::SUCCESS;
    };
    // Not `eprintln`, which panics if nobody reads it any more.
    let _ = writeln!(io::stderr(), "error: {}", with_causes(&*error));
    match error.downcast_ref().and_then(GateError::retry_after) {
        Some(_) => ExitCode::from(EX_TEMPFAIL),
        None => ExitCode::FAILURE,
    }
}

async fn run(args: &[OsString]) -> Result<(), BoxError> {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(|word| &**word).collect();
    // Made for this user alone if there is none; one that others can write to is refused: what stands there is trusted.
    let state = || Ok::<_, SpawnLockError>(FileSpawnLock::new(&args[1])?.directory().to_owned());
    match words[..] {
        #[cfg(unix)]
        [] => self_check::run().await,
        ["--state", _, "ask", text] => ask(&state()?, text).await,
        ["--state", _, "stop"] => stop(&state()?).await,
        // Here it is not made: who deleted it meanwhile wants no daemon.
        ["--state", _, "daemon"] => daemon::run(Path::new(&args[1])).await,
        _ => Err("usage: cli_daemon --state DIR (ask TEXT | stop)".into()),
    }
}

async fn ask(state: &Path, text: &str) -> Result<(), BoxError> {
    // First without the gate: usually the daemon is up, and this connection then carries the question. The gate would find the
    // daemon too, without the lock, but returns its address only.
    let found = within(START_LIMIT, "find the daemon", contact::find(state)).await?;
    let (mut daemon, how) = match found {
        Some(daemon) => (daemon, "already running".to_owned()),
        None => {
            let launcher = Launcher {
                state: state.to_owned(),
            };
            let launched = gate(state)?.launch(KEY.to_owned(), launcher).await?;
            let daemon = within(START_LIMIT, "connect", launched.value.connect()).await?;
            let daemon = daemon.ok_or("the daemon is ready, and has ended already")?;
            (daemon, format!("{:?}", launched.how))
        }
    };
    // If it goes away now, that is an error and no reason for another try: it may have done what it was asked. A deadline for
    // the answer is for the tool to choose.
    let answer = daemon.ask(&format!("ask {text}")).await?;
    writeln!(io::stdout(), "{answer}\nthe daemon: {how}")?;
    Ok(())
}

async fn stop(state: &Path) -> Result<(), BoxError> {
    let end_it = async {
        let Some(mut daemon) = contact::connect(state).await? else {
            return Ok(None);
        };
        daemon.say("stop").await?;
        let address = Some(daemon.address);
        // Its place is free, or another one has it already.
        while contact::is_taken(state)? && Address::read(state)? == address {
            sleep(POLL).await;
        }
        Ok::<_, BoxError>(address)
    };
    let line = match within(STOP_LIMIT, "stop the daemon", end_it).await? {
        Some(Address { pid, .. }) => format!("stopped process {pid}"),
        None => "not running".to_owned(),
    };
    // To be stopped is no failure, and must not count against the next start.
    gate(state)?.reset(&KEY.to_owned()).await?;
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

async fn within<T, E: Into<BoxError>>(
    limit: Duration,
    what: &str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    match timeout(limit, step).await {
        Ok(done) => done.map_err(E::into),
        Err(_) => Err(format!("cannot {what}: no answer within {limit:?}; see daemon.log").into()),
    }
}

/// The gate that all invocations share, by way of its directory. It must be the same everywhere.
fn gate(state: &Path) -> Result<SpawnGate<String, Address>, SpawnLockError> {
    let locks = FileSpawnLock::new(state.join("locks"))?;
    Ok(SpawnGate::builder(locks)
        // Else a daemon that starts well and dies at once would be started again for ever.
        .stable_after(STABLE_AFTER)
        // To look for a daemon includes to wait for one that is starting.
        .discover_timeout(START_LIMIT)
        .launch_timeout(START_LIMIT)
        .build())
}

/// The outermost error alone seldom says what to mend.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: caused by {cause}");
        next = cause.source();
    }
    text
}
