//! The daemon: takes the seat, says where it listens, gets ready, and serves until it is stopped.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::{BoxError, SpawnLockError, SpawnLockGuard, acquire_spawn_lock};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::contact::{Address, Connection, POLL, SEAT};

/// The environment variable with the fencing token.
pub(crate) const LAUNCH: &str = "CLI_DAEMON_LAUNCH";

/// What it says when `CLI_DAEMON_FAIL` is set.
pub(crate) const FAILURE: &str = "its index is broken";

/// Who only looks whether the seat is taken holds it for a moment, and is waited for.
const SEAT_LIMIT: Duration = Duration::from_secs(1);

/// How long a client may take to say who it is.
const KNOCK_LIMIT: Duration = Duration::from_secs(10);

/// How often it looks whether it can still be found.
const LOOK_AFTER: Duration = Duration::from_secs(1);

struct Daemon {
    address: Address,
    is_ready: watch::Sender<bool>,
    stop: Notify,
}

pub(crate) async fn run(state: &Path) -> Result<(), BoxError> {
    let launch = std::env::var(LAUNCH).map_err(|_| "`ask` starts the daemon")?;
    let launch: u64 = launch.parse()?;
    // A session of its own: neither Ctrl-C nor the end of the terminal reaches it. That fails only for a process that a shell
    // started as a job, to try it out.
    #[cfg(unix)]
    let _ = rustix::process::setsid();
    log(format_args!("launch {launch} starts"));

    // Held until the process ends, whatever ends it: however daemons come to be started, one at a time serves this directory.
    let _seat = take_seat(state).await?;
    if let Some(newer) = Address::read(state)?.filter(|last| last.launch > launch) {
        // It comes late: its launcher was killed, and a later one has had its daemon, which somebody stopped.
        return Err(format!("launch {} was made since launch {launch}", newer.launch).into());
    }
    // First the address, then all that takes long: if the launching process is interrupted meanwhile, the next one finds a
    // daemon that is starting, and waits for it.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = Address::of_this_process(listener.local_addr()?.port(), launch);
    address.publish(state)?;
    let daemon = Arc::new(Daemon {
        address,
        is_ready: watch::Sender::new(false),
        stop: Notify::new(),
    });
    // Apart, so that clients are greeted meanwhile. (What blocks goes to `spawn_blocking`.)
    tokio::spawn(Arc::clone(&daemon).get_ready());
    let why = tokio::select! {
        never = daemon.serve(&listener) => match never {},
        () = daemon.stop.notified() => "stopped",
        () = daemon.lost(state) => "its address is gone: nobody can find it any more",
    };
    log(format_args!("launch {launch} ends: {why}"));
    // With the seat: that is free when there is nothing left of this process.
    std::process::exit(0)
}

async fn take_seat(state: &Path) -> Result<SpawnLockGuard, SpawnLockError> {
    let deadline = Instant::now() + SEAT_LIMIT;
    loop {
        match acquire_spawn_lock(state.join(SEAT)) {
            Err(error) if error.retry_helps() && Instant::now() < deadline => sleep(POLL).await,
            taken => return taken,
        }
    }
}

impl Daemon {
    /// Stands for whatever a daemon has to load before it can serve.
    async fn get_ready(self: Arc<Self>) {
        let millis = std::env::var("CLI_DAEMON_SLOW_MS").ok();
        let millis = millis.and_then(|millis| millis.parse().ok());
        sleep(Duration::from_millis(millis.unwrap_or(0))).await;
        if std::env::var_os("CLI_DAEMON_FAIL").is_some() {
            log(FAILURE);
            std::process::exit(3);
        }
        self.is_ready.send_replace(true);
    }

    async fn serve(self: &Arc<Self>, listener: &TcpListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(Arc::clone(self).answer(stream))),
                // Out of descriptors, most likely. That passes; clients wait in the listener's queue.
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Serves one client until it hangs up.
    async fn answer(self: Arc<Self>, stream: TcpStream) -> io::Result<()> {
        let mut client = Connection::new(stream, self.address);
        // All users of this machine can connect; a client of this one knows the secret.
        if timeout(KNOCK_LIMIT, client.hear()).await?? != self.address.knock() {
            return Ok(());
        }
        client.say(&self.address.to_string()).await?;
        let Address { pid, launch, .. } = self.address;
        loop {
            let line = client.hear().await?;
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("ready", _) => {
                    let mut is_ready = self.is_ready.subscribe();
                    // An error would say that nobody is left who could tell.
                    let _ = is_ready.wait_for(|is_ready| *is_ready).await;
                    client.say("ready").await?;
                }
                ("ask", text) => {
                    let text = text.to_uppercase();
                    let answer = format!("{text} (process {pid}, launch {launch})");
                    client.say(&answer).await?;
                }
                ("stop", _) => self.stop.notify_one(),
                _ => return Ok(()),
            }
        }
    }

    /// Returns when the address file is gone or another daemon's: somebody deleted the state directory, or files in it.
    async fn lost(&self, state: &Path) {
        loop {
            sleep(LOOK_AFTER).await;
            // An error says nothing about the file.
            if Address::read(state).is_ok_and(|found| found.as_ref() != Some(&self.address)) {
                return;
            }
        }
    }
}

/// Writes to the log, which standard error is.
fn log(line: impl Display) {
    // Not `eprintln`, which panics: a full disk would end the daemon.
    let _ = writeln!(io::stderr(), "process {}: {line}", std::process::id());
}
