//! A host: a process with a gate. It does what it reads from standard input, and says how that went.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use spawn_gate::{Acquired, BoxError, GateError, Launch, SpawnGate, launcher_fn};
use spawn_gate_etcd::EtcdSpawnLock;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;

/// The backend that all hosts ask for.
pub(crate) const KEY: &str = "indexer";

/// While this file is in the scene, the backend's program is missing.
pub(crate) const BROKEN: &str = "broken";

/// Clients of each host.
pub(crate) const CLIENTS: usize = 50;

/// How long a lock holds without a renewal. A takeover takes as long.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

type Gate = SpawnGate<&'static str, String>;

#[derive(Clone)]
struct Host {
    gate: Gate,
    lock: EtcdSpawnLock,
    endpoints: String,
    scene: String,
}

pub(crate) async fn run(endpoints: &str, scene: &str) -> Result<(), BoxError> {
    let lock = EtcdSpawnLock::builder(endpoints.split(','))
        .expires_in(LEASE)
        .build()?;
    let host = Host {
        gate: SpawnGate::builder(lock.clone())
            .lock_timeout(Duration::from_secs(20))
            .build(),
        lock,
        endpoints: endpoints.to_owned(),
        scene: scene.to_owned(),
    };
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(command) = commands.next_line().await? {
        match &command[..] {
            "clients" => host.clients().await,
            "hold" => {
                host.hold(&mut commands).await?;
            }
            _ => return Err(format!("no such command: {command}").into()),
        }
    }
    Ok(())
}

impl Host {
    /// Clients that ask at once.
    async fn clients(&self) {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let host = self.clone();
            clients.spawn(async move { host.ask().await });
        }
        for answer in clients.join_all().await {
            match answer {
                Ok(address) => say(format_args!("served {address}")),
                Err(GateError::BudgetExhausted(refused)) => {
                    say(format_args!("refused {refused}"));
                }
                Err(error) => say(format_args!("failed {}", error.error_type())),
            }
        }
        say("done");
    }

    /// Asks until there is a backend or no attempt is left.
    async fn ask(&self) -> Result<String, GateError> {
        loop {
            let (of_look, of_launch) = (self.clone(), self.clone());
            let look = move |_key| {
                let host = of_look.clone();
                async move {
                    let registered = host.lock.registered(&KEY).await?;
                    Ok(registered.map(|registered| registered.value))
                }
            };
            let launch = move |launch: Launch<&'static str>| {
                let host = of_launch.clone();
                async move { host.start(launch.fencing_token).await }
            };
            match self.gate.launch(KEY, launcher_fn(look, launch)).await {
                Ok(launched) => return Ok(launched.value),
                Err(error @ GateError::BudgetExhausted(_)) => return Err(error),
                // A failed launch: the budget decides whether there is another.
                Err(GateError::Launch(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the backend with this fencing token. Returns its address once it is registered.
    async fn start(&self, token: u64) -> Result<String, BoxError> {
        if Path::new(&self.scene).join(BROKEN).exists() {
            std::fs::write(Path::new(&self.scene).join(format!("attempt-{token}")), "")?;
            return Err("no such program".into());
        }
        let mut child = Command::new(std::env::current_exe()?)
            .args(["backend", &self.endpoints, &self.scene, &token.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let address = format!("process {}", child.id().unwrap_or_default());
        let output = child.stdout.take().ok_or("no output")?;
        let said = BufReader::new(output).lines().next_line().await?;
        keep(child.stdin.take(), child);
        match said.as_deref() {
            Some("serves") => Ok(address),
            _ => Err("the backend of a younger launch serves".into()),
        }
    }

    /// Takes the permit, and does the rest when told to: late, perhaps, and without looking at the lock, as a process does that is
    /// paused right before it starts its backend.
    async fn hold(
        &self,
        commands: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
    ) -> Result<(), BoxError> {
        let permit = match self.gate.acquire(KEY).await? {
            Acquired::Led(permit) => permit,
            Acquired::Joined(_) => return Err("joined".into()),
        };
        say(format_args!("holds {}", permit.attempt_number()));
        let mut lost = Box::pin(permit.lost());
        let command = tokio::select! {
            error = &mut lost => {
                say(format_args!("lost {}", error.is_lost()));
                commands.next_line().await?
            }
            command = commands.next_line() => command?,
        };
        drop(lost);
        if command.as_deref() != Some("start") {
            return Err("expected: start".into());
        }
        match self.start(permit.fencing_token()).await {
            Ok(_) => say("backend serves"),
            Err(error) => say(format_args!("backend {error}")),
        }
        match permit.succeed("mine".to_owned()).await {
            Ok(()) => say("settled success"),
            Err(error) => say(format_args!("settled {}", error.error_type())),
        }
        Ok(())
    }
}

/// Keeps a backend and its standard input until this process ends.
fn keep(input: Option<ChildStdin>, mut child: Child) {
    tokio::spawn(async move {
        // How it ended is of no concern here.
        let _ = child.wait().await;
        drop(input);
    });
}

/// Says a line to the one who started this.
pub(crate) fn say(line: impl Display) {
    // If that is gone, this process ends soon.
    let _ = writeln!(std::io::stdout(), "{line}");
}
