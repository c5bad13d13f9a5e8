//! The library's main job, with real processes and sockets: brokers that share their backends, hundreds of clients, backends
//! that are slow, broken or gone, and brokers that are killed or stopped in the middle of a launch. Run it with
//! `cargo run --release --features process --example broker_storm`, on Unix.
//!
//! This program plays all the parts: it starts itself again as `broker`, `clients`, `backend` and `stopper`. The part to copy
//! for a broker of your own is `broker.rs`; `protocol.rs`, `client.rs`, `operator.rs` and `backend.rs` are
//! what they talk to. The rest directs and judges: `scenarios` on top of `scene.rs`, `cast.rs`, `stage.rs` and `report.rs`.
//!
//! The exit status is 0 if all was as expected, 1 if not, 130 after Ctrl-C.

mod backend;
mod broker;
mod cast;
mod client;
mod operator;
mod protocol;
mod report;
mod role;
mod scenarios;
mod scene;
mod stage;
mod stopper;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spawn_gate::BoxError;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::report::{Check, Report};
use crate::stage::Stage;

/// All scenarios together take no longer.
const RUN_LIMIT: Duration = Duration::from_secs(50);

/// The exit status that shells use for a program ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args[..] {
        [] => direct().await,
        _ => play_role(&args).await.map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

async fn play_role(args: &[&str]) -> Result<(), BoxError> {
    role::leave_ctrl_c_to_the_director();
    match args {
        ["broker", directory, window, lock_timeout] => {
            let window = Duration::from_millis(window.parse()?);
            let lock_timeout = Duration::from_millis(lock_timeout.parse()?);
            broker::run(Path::new(directory), window, lock_timeout).await
        }
        ["backend", directory, service] => backend::run(Path::new(directory), service).await,
        ["clients", brokers, services, count] => {
            let brokers: Result<Vec<_>, _> = brokers.split(',').map(str::parse).collect();
            let services: Vec<_> = services.split(',').map(str::to_owned).collect();
            client::run(&brokers?, &services, count.parse()?).await
        }
        ["stopper", pid] => stopper::run(pid.parse()?).await,
        _ => Err(format!("no such role: {args:?}; start it without arguments").into()),
    }
}

type Chapters = Arc<Mutex<Vec<(&'static str, Vec<Check>)>>>;

/// Plays all scenarios. However that ends, all processes are ended and all files removed after it.
async fn direct() -> Result<ExitCode, BoxError> {
    // First of all: from here on Ctrl-C no longer ends this process there and then.
    let interrupted = interruption()?;
    let report = Arc::new(Report::new());
    let directory = tempfile::Builder::new().prefix("broker_storm-").tempdir()?;
    let stage = Arc::new(Stage::new(directory.path(), Arc::clone(&report)));
    let chapters = Chapters::default();

    // In a task of its own, so that a panic ends only that. The processes that it keeps are let go with it.
    let mut play = tokio::spawn(play_all(Arc::clone(&stage), Arc::clone(&chapters)));
    let cut_short = tokio::select! {
        () = interrupted => {
            report.event("interrupted: ending all processes");
            None
        }
        ended = timeout(RUN_LIMIT, &mut play) => Some(match ended {
            Ok(Ok(())) => None,
            Ok(Err(panic)) => Some(panic.to_string()),
            Err(_) => Some(format!("stopped after {RUN_LIMIT:?}")),
        }),
    };
    if !play.is_finished() {
        play.abort();
        // It was aborted; what counts is that it is gone.
        let _ = play.await;
    }
    let mut afterwards = vec![
        stage.settle().await,
        stage.backends_gone().await,
        remove(directory),
    ];
    let Some(cut_short) = cut_short else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    afterwards.extend(cut_short.map(|why| Check::same("all scenarios are played", why)));

    let mut chapters =
        std::mem::take(&mut *chapters.lock().unwrap_or_else(PoisonError::into_inner));
    chapters.push(("afterwards", afterwards));
    Ok(match report.table(&chapters) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn play_all(stage: Arc<Stage>, chapters: Chapters) {
    for (index, scenario) in scenarios::ALL.iter().enumerate() {
        let directory = format!("scenario-{}", index + 1);
        let mut checks = scenario.play(&stage, &directory).await;
        // Its brokers and clients were let go with the scenario.
        let settled = stage.settle().await;
        if !settled.holds() {
            checks.push(settled);
        }
        let mut chapters = chapters.lock().unwrap_or_else(PoisonError::into_inner);
        chapters.push((scenario.title, checks));
    }
}

fn remove(directory: TempDir) -> Check {
    let path = directory.path().to_owned();
    let expected = "no file is left";
    match directory.close() {
        Ok(()) => Check::that(!path.exists(), expected, expected),
        Err(error) => Check::same(expected, format_args!("{}: {error}", path.display())),
    }
}

/// Catches Ctrl-C, and what `kill` sends, from the moment of the call. The future returns when one of them comes.
fn interruption() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
