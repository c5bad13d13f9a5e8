//! An HTTP broker that starts backends on demand: a template to copy, on Unix.
//!
//! ```console
//! $ cargo run --features process,tracing --example broker -- DIRECTORY 127.0.0.1:7200
//! $ curl -L http://127.0.0.1:7200/indexer/1.0        # starts the backend, or finds it
//! $ curl http://127.0.0.1:7200/admin                 # keys, budgets, flights
//! $ curl http://127.0.0.1:7200/metrics               # counters and durations, for Prometheus
//! $ curl -X POST http://127.0.0.1:7200/admin/indexer/1.0/reset    # or abort, or stop
//! ```
//!
//! Brokers with the same directory share their backends; a backend ends with the broker that launched it. This program is also
//! the backends: `indexer` and `search` serve, `broken` fails to start, `slow` is never ready.

mod metrics;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header::RETRY_AFTER};
use axum::response::Redirect;
use axum::routing::{get, post};
use spawn_gate::error::LaunchError;
use spawn_gate::process::{Instance, ProcessError, ProcessLauncher, Ready, Stop};
use spawn_gate::{BackendKey, BoxError, BrokerInstanceKey, FileSpawnLock, GateError, SpawnGate};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

const SERVICES: [&str; 4] = ["indexer", "search", "broken", "slow"];

type Launcher = ProcessLauncher<BackendKey>;

/// An error as a response.
type Failure = (StatusCode, Option<[(HeaderName, String); 1]>, String);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [role, service] if role == "backend" => backend(&service.to_string_lossy()).await,
        [directory, address] => {
            let address = address.to_str().ok_or("not an address")?.parse()?;
            broker(directory.into(), address).await
        }
        _ => Err("usage: broker DIRECTORY ADDRESS:PORT".into()),
    }
}

async fn broker(directory: PathBuf, address: SocketAddr) -> Result<(), BoxError> {
    // Shows what the gate records with the feature `tracing`.
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let gate = SpawnGate::builder(FileSpawnLock::new(&directory)?)
        // A backend that dies earlier than this has not proved that it works.
        .stable_after(Duration::from_secs(10))
        .build();
    let start_timeout = std::env::var("BROKER_START_TIMEOUT_MS").ok();
    let start_timeout = start_timeout.and_then(|limit| limit.parse().ok());
    let launcher = Launcher::new(&gate, directory, |launch| {
        let mut backend = Command::new(std::env::current_exe()?);
        backend.args(["backend", &launch.key.service_name]);
        Ok((backend, Ready::notify()))
    })
    .attached()
    .start_timeout(Duration::from_millis(start_timeout.unwrap_or(30_000)));
    let routes = Router::new()
        .route("/{service}/{version}", get(find_or_start))
        .route("/admin", get(overview))
        .route("/metrics", get(metrics))
        .route("/admin/{service}/{version}/{action}", post(operate))
        .with_state(Arc::new(launcher));
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Waiting requests get an answer, then the server ends, and with this process its backends.
        let _ = gate.close().await.inspect_err(|error| eprintln!("{error}"));
    };
    let server = axum::serve(listener, routes);
    Ok(server.with_graceful_shutdown(stop).await?)
}

/// Sends the client to the backend.
async fn find_or_start(
    State(launcher): State<Arc<Launcher>>,
    Path((service, version)): Path<(String, String)>,
) -> Result<Redirect, Failure> {
    let key = key(service, version)?;
    // If the client hangs up, the launch goes on; the next client finds its backend.
    let backend = launcher.get_or_launch(key).await.map_err(failure)?.value;
    match backend.endpoint.and_then(|endpoint| endpoint.tcp()) {
        Some(address) => Ok(Redirect::temporary(&format!("http://{address}/"))),
        None => Err(plain(StatusCode::BAD_GATEWAY, "the backend has no address")),
    }
}

async fn metrics(State(launcher): State<Arc<Launcher>>) -> String {
    metrics::page(&launcher.gate().statistics().await)
}

/// All services: budget, launch in progress, backend.
async fn overview(State(launcher): State<Arc<Launcher>>) -> String {
    let mut page = String::new();
    for service in SERVICES {
        let key = BackendKey::new(BrokerInstanceKey::Shared, service, "1.0");
        let snapshot = launcher.gate().snapshot(key.clone()).await;
        let found = launcher.find(key).await.map(|found| found.to_string());
        let backend = found.unwrap_or_else(|error| error.to_string());
        page.push_str(&format!("{snapshot}\n    {backend}\n"));
    }
    page
}

/// What an operator asks for.
async fn operate(
    State(launcher): State<Arc<Launcher>>,
    Path((service, version, action)): Path<(String, String, String)>,
) -> Result<String, Failure> {
    let key = key(service, version)?;
    let gate = launcher.gate();
    match &*action {
        "reset" => {
            gate.reset(key).await.map_err(failure)?;
            Ok("reset\n".to_owned())
        }
        "abort" => Ok(format!("aborted a launch: {}\n", gate.abort(key).await)),
        "stop" => match launcher.stop(key, Stop::Force).await {
            Ok(stopped) => Ok(format!("{stopped}\n")),
            Err(error) => Err(plain(StatusCode::SERVICE_UNAVAILABLE, error)),
        },
        _ => Err(plain(StatusCode::NOT_FOUND, "reset, abort or stop")),
    }
}

fn key(service: String, version: String) -> Result<BackendKey, Failure> {
    // Clients choose the key, and each key can start a process: only known ones.
    match SERVICES.contains(&&*service) && version == "1.0" {
        true => Ok(BackendKey::new(BrokerInstanceKey::Shared, service, version)),
        false => Err(plain(StatusCode::NOT_FOUND, "no such service")),
    }
}

fn plain(status: StatusCode, text: impl Display) -> Failure {
    (status, None, format!("{text}\n"))
}

fn failure(error: GateError) -> Failure {
    let retry_soon = error.retry_helps().then_some(Duration::from_secs(1));
    let retry_after = error.retry_after().or(retry_soon).map(|wait| {
        // Whole seconds, rounded up: a client that waits as long as told must not be too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        [(RETRY_AFTER, seconds.to_string())]
    });
    (status(&error), retry_after, format!("{error:#}\n"))
}

fn status(error: &GateError) -> StatusCode {
    match error {
        GateError::BudgetExhausted(_) => StatusCode::TOO_MANY_REQUESTS,
        GateError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        GateError::Launch(LaunchError::Failed { source, .. }) => match source.downcast_ref() {
            Some(ProcessError::NotReady { .. }) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        },
        GateError::Launch(LaunchError::FailedElsewhere { .. } | LaunchError::Panicked { .. }) => {
            StatusCode::BAD_GATEWAY
        }
        // It could not be tried: a shortage, a lock, a shutdown. Somebody else's turn, or a person's.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The backend: takes a free port, and says which.
async fn backend(service: &str) -> Result<(), BoxError> {
    let instance = Instance::from_env()?.ok_or("the broker starts the backends")?;
    match service {
        "broken" => return Err("its index is broken".into()),
        "slow" => std::future::pending().await,
        _ => {}
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (pid, launch) = (std::process::id(), instance.launch());
    let greeting = format!("{service}: process {pid}, launch {launch}\n");
    let routes = Router::new().route("/", get(|| async { greeting }));
    // A stop can come as soon as it is ready.
    let leave = instance.until_leave(None);
    instance.ready(listener.local_addr()?)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, routes);
    let server = server.with_graceful_shutdown(async { drop(stopped.await) });
    let told = async {
        let why = leave.await?;
        drop(stop);
        Ok(why)
    };
    tokio::try_join!(server.into_future(), told)?;
    Ok(())
}
