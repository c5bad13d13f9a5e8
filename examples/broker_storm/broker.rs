//! The broker: a server in front of a spawn gate. This is the part to copy.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::process::{Backend, ProcessLauncher, Ready};
use spawn_gate::{
    BackendKey, BoxError, BrokerInstanceKey, DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW, FileSpawnLock,
    GateError, SpawnBudgetConfig, SpawnGate,
};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::protocol::{Connection, Refusal, Reply, Request, Status, What, listen};
use crate::role;

/// How long a client may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// When to ask again after a failure that has no time of its own.
const RETRY_SOON: Duration = Duration::from_millis(100);

/// When to ask again after a failure that somebody must mend first.
const RETRY_LATE: Duration = Duration::from_secs(60);

/// A backend that takes longer to start is ended. Longer than the slowest start.
const START_LIMIT: Duration = Duration::from_secs(20);

type Gate = SpawnGate<BackendKey, Backend>;

struct Broker {
    gate: Gate,
    launcher: ProcessLauncher<BackendKey>,
}

/// Serves until the parent process is gone. Brokers that are given the same directory share their backends.
pub(crate) async fn run(
    directory: &Path,
    window: Duration,
    lock_timeout: Duration,
) -> Result<(), BoxError> {
    let locks = FileSpawnLock::new(directory.join("locks"))?;
    let gate = SpawnGate::builder(locks)
        .budget(SpawnBudgetConfig::new(
            DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW,
            window,
        ))
        // How long to wait for another broker's launch. To outlast it, wait longer than a launch may take.
        .lock_timeout(lock_timeout)
        .drain_timeout(Duration::from_secs(1))
        .build();
    let launcher = launcher(&gate, directory);
    let broker = Arc::new(Broker { gate, launcher });
    let listener = listen()?;
    role::say(format_args!("listening {}", listener.local_addr()?));

    let parent_gone = role::parent_gone();
    tokio::pin!(parent_gone);
    loop {
        tokio::select! {
            () = &mut parent_gone => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&broker).serve(stream))),
                // Out of descriptors, most likely. That passes; the clients wait in the listener's queue.
                Err(_) => sleep(Duration::from_millis(20)).await,
            },
        }
    }

    // The backends are tied to this process, and end with it.
    let _ = broker.gate.close().await;
    Ok(())
}

/// Starts this program as the backend, which says itself when it is ready.
pub(crate) fn launcher(gate: &Gate, directory: &Path) -> ProcessLauncher<BackendKey> {
    let scene = directory.to_owned();
    let launcher =
        ProcessLauncher::<BackendKey>::new(gate, directory.join("locks"), move |launch| {
            let mut backend = Command::new(std::env::current_exe()?);
            backend
                .arg("backend")
                .arg(&scene)
                .arg(&launch.key.service_name);
            Ok((backend, Ready::notify()))
        });
    launcher.attached().start_timeout(START_LIMIT)
}

/// Names a backend: brokers that share backends must agree on it.
pub(crate) fn backend_key(service: &str, version: &str) -> BackendKey {
    BackendKey::new(BrokerInstanceKey::Shared, service, version)
}

impl Broker {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let mut client = Connection::new(stream);
        let Ok(Ok(line)) = timeout(HELLO_LIMIT, client.hear()).await else {
            return;
        };
        let reply = match line.parse() {
            Ok(request) => tokio::select! {
                reply = self.reply_to(request) => reply,
                // Nobody waits for the reply any more. Dropping the request is safe: a launch that it began goes on.
                () = client.hung_up() => return,
            },
            Err(error) => refused("bad-request", RETRY_LATE, error.to_string()),
        };
        // A client that has gone by now needs no reply.
        let _ = client.say(reply).await;
    }

    async fn reply_to(&self, request: Request) -> Reply {
        let key = backend_key(&request.service, &request.version);
        match request.what {
            What::Hello => self.backend_for(key).await,
            What::Status => self.status_of(key).await,
            What::Reset => match self.gate.reset(key).await {
                Ok(()) => Reply::Done,
                Err(error) => refused_by_gate(&error),
            },
        }
    }

    async fn backend_for(&self, key: BackendKey) -> Reply {
        let launched = match self.launcher.get_or_launch(key).await {
            Ok(launched) => launched.value,
            Err(error) => return refused_by_gate(&error),
        };
        match launched.endpoint.and_then(|endpoint| endpoint.tcp()) {
            Some(address) => Reply::Negotiated(address),
            None => refused("no-address", RETRY_LATE, launched.log.display().to_string()),
        }
    }

    async fn status_of(&self, key: BackendKey) -> Reply {
        let snapshot = self.gate.snapshot(key).await;
        let flight = snapshot.flight.as_ref();
        Reply::Status(Status {
            used: snapshot.budget.attempts_used,
            waiting: flight.map_or(0, |flight| flight.waiting),
            holder: flight.and_then(|flight| Some(flight.waiting_for.as_ref()?.pid)),
        })
    }
}

fn refused_by_gate(error: &GateError) -> Reply {
    let retry_after = match error.retry_after() {
        Some(known) => known,
        None if error.retry_helps() => RETRY_SOON,
        None => RETRY_LATE,
    };
    refused(code(error), retry_after, format!("{error:#}"))
}

fn refused(code: &str, retry_after: Duration, reason: String) -> Reply {
    Reply::Refused(Refusal {
        code: code.to_owned(),
        retry_after,
        reason,
    })
}

fn code(error: &GateError) -> &'static str {
    match error {
        GateError::BudgetExhausted(_) => "budget-exhausted",
        GateError::Lock(_) => "lock-failed",
        GateError::Launch(LaunchError::LockLost { .. }) => "lock-lost",
        GateError::Launch(_) => "launch-failed",
        GateError::Timeout(_) => "timeout",
        GateError::Closed => "closing",
        _ => "unavailable",
    }
}
