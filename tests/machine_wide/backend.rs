//! A backend process, and the launcher that starts and finds it.
//!
//! It listens, tells its port on standard output, and serves only once its launcher says `go`; if the launcher dies before
//! that, it is gone. So a launch that was cut short leaves nothing behind, at whatever moment that was.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{BackendLauncher, LaunchPermit};
use tokio::task::spawn_blocking;

use crate::caller::Mode;
use crate::journal::Journal;

const LAUNCH: &str = "SPAWN_GATE_TEST_LAUNCH";
const DIRECTORY: &str = "SPAWN_GATE_TEST_BACKEND_DIRECTORY";

/// The process number of the backend.
pub(crate) type Backend = u32;

#[derive(Clone)]
pub(crate) struct Launcher {
    pub(crate) directory: PathBuf,
    pub(crate) mode: Mode,
}

type Boxed = Box<dyn Error + Send + Sync>;

#[async_trait]
impl BackendLauncher<&'static str, Backend> for Launcher {
    async fn discover(&self, _: &&'static str) -> Result<Option<Backend>, Boxed> {
        let directory = self.directory.clone();
        Ok(spawn_blocking(move || find(&directory)).await?)
    }

    async fn launch(&self, permit: &LaunchPermit<&'static str, Backend>) -> Result<Backend, Boxed> {
        let launch = permit.fencing_token();
        Journal::new(&self.directory).note("launch", launch);
        match self.mode {
            Mode::Fail => Err("it always fails".into()),
            Mode::Hang => std::future::pending().await,
            Mode::Launch | Mode::LaunchOnRequest | Mode::Impatient => {
                let launcher = self.clone();
                spawn_blocking(move || launcher.start(launch)).await?
            }
        }
    }
}

impl Launcher {
    fn start(&self, launch: u64) -> Result<Backend, Boxed> {
        if self.mode == Mode::LaunchOnRequest {
            crate::caller::wait_to_go_on();
        }
        let mut child = Command::new(std::env::current_exe()?)
            .args(["role", "--exact", "--nocapture"])
            .env_remove(crate::caller::MODE)
            .env(DIRECTORY, &self.directory)
            .env(LAUNCH, launch.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        let port = loop {
            line.clear();
            if output.read_line(&mut line)? == 0 {
                return Err("the backend ended before it was ready".into());
            }
            if let Some((_, port)) = line.trim().split_once("port ") {
                break port.to_owned();
            }
        };
        // Found before it serves: whoever finds it asks, and is answered once it does.
        std::fs::write(self.directory.join("port.new"), port)?;
        std::fs::rename(self.directory.join("port.new"), self.directory.join("port"))?;
        child.stdin.take().ok_or("no input")?.write_all(b"go")?;
        let pid = child.id();
        // It is to outlive this process, and another one ends it; until then nobody waits for it.
        drop(child);
        Ok(pid)
    }
}

/// Asks the backend at the port that was written down last for its process number.
fn find(directory: &Path) -> Option<Backend> {
    let port = std::fs::read_to_string(directory.join("port")).ok()?;
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().ok()?)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.parse().ok()
}

pub(crate) fn play_if_asked() {
    let (Ok(directory), Ok(launch)) = (std::env::var(DIRECTORY), std::env::var(LAUNCH)) else {
        return;
    };
    let journal = Journal::new(Path::new(&directory));
    let launch = launch.parse().unwrap();
    journal.note("start", launch);
    // It takes a while to become ready.
    std::thread::sleep(Duration::from_millis(3));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    let mut go = String::new();
    let told = std::io::stdin().read_to_string(&mut go);
    if told.is_err() || go != "go" {
        journal.note("gone", launch);
        std::process::exit(0);
    }
    journal.note("live", launch);
    // A backend that the test forgets ends by itself.
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(120));
        std::process::exit(1);
    });
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        // The caller may be gone.
        let _ = write!(stream, "{}", std::process::id());
    }
}
