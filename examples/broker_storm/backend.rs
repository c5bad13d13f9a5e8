//! The backend: takes a while to start (or fails to), then answers. It stands for any server that a broker launches.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use spawn_gate::BoxError;
use spawn_gate::process::Instance;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::protocol::{BackendId, Connection, listen};

/// In its directory, a backend appends a line here when it starts: the count of launches that does not come from the gate.
pub(crate) const JOURNAL: &str = "journal";

/// While this file is there, backends are not done with starting.
pub(crate) const HOLD: &str = "hold";

/// If this file is there, backends fail to start.
pub(crate) const BROKEN: &str = "broken";

/// What a backend says then.
pub(crate) const BROKEN_SAYS: &str = "its index is broken";

const START_UP: Duration = Duration::from_millis(150);

pub(crate) async fn run(directory: &Path, service: &str) -> Result<(), BoxError> {
    let instance = Instance::from_env()?.ok_or("a broker starts the backends")?;
    let launch = instance.launch();
    let id = BackendId {
        service: service.to_owned(),
        pid: std::process::id(),
        launch,
    };
    // One write to a file opened for appending: lines of several processes do not mix.
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(directory.join(JOURNAL))?
        .write_all(format!("{id}\n").as_bytes())?;
    tokio::select! {
        why = instance.until_leave(None) => why.map(drop).map_err(Into::into),
        served = serve(directory, id, &instance) => served,
    }
}

async fn serve(directory: &Path, id: BackendId, instance: &Instance) -> Result<(), BoxError> {
    while directory.join(HOLD).exists() {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(START_UP).await;
    if directory.join(BROKEN).exists() {
        return Err(format!("{} cannot start: {BROKEN_SAYS}", id.service).into());
    }
    let listener = listen()?;
    instance.ready(listener.local_addr()?)?;
    loop {
        // As in the broker: what makes `accept` fail passes.
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, id.clone()))),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn answer(stream: TcpStream, id: BackendId) {
    let mut connection = Connection::new(stream);
    match connection.hear().await.as_deref() {
        Ok("ping") => drop(connection.say(format!("pong {id}")).await),
        Ok("crash") => std::process::exit(4),
        _ => {}
    }
}
