//! How the tool and its daemon find and recognise each other, and the lines they speak.
//!
//! In the state directory, the daemon holds the lock of `seat.lock` as long as it lives, and `address` says where it listens.
//! That file outlives a daemon that was killed, and its port may be another program's by now. So the tool knocks with a secret
//! from the file, and the daemon greets with all of it, which has a second one. Each knows then that the other can read the
//! file. Anybody else on this machine who connects, or listens at an old port, hears nothing by which to pass for one of them.
//!
//! | tool | daemon |
//! | --- | --- |
//! | `cli_daemon/1 <secret>` | `cli_daemon/1 <port> <pid> <fencing token> <secret> <second secret>` |
//! | `ready` | `ready`, once it is |
//! | `ask <text>` | the answer |
//! | `stop` | nothing: it ends |

use std::fmt;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use spawn_gate::admin::inspect_spawn_lock;
use spawn_gate::{BoxError, SpawnLockError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// With the version of the protocol.
const NAME: &str = "cli_daemon/1";

/// The lock file of the daemon's life, not to be confused with the spawn lock, which is held for a launch only.
pub(crate) const SEAT: &str = "seat.lock";

/// The pause between two looks at something that cannot tell when it changes.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Longer lines are refused, so that nobody can fill the memory of who listens.
const LONGEST_LINE: usize = 64 * 1024;

/// What stands in the address file, and what the daemon greets with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    port: u16,
    pub(crate) pid: u32,
    pub(crate) launch: u64,
    /// The tool's secret.
    knock: u64,
    /// The daemon's secret.
    reply: u64,
}

impl Address {
    pub(crate) fn of_this_process(port: u16, launch: u64) -> Self {
        // The standard library has no random numbers, but keys these hashers with some, each differently.
        let secret = || RandomState::new().hash_one(launch);
        Self {
            port,
            pid: std::process::id(),
            launch,
            knock: secret(),
            reply: secret(),
        }
    }

    /// Returns what stands in the file; nothing if there is none, or junk in it.
    pub(crate) fn read(state: &Path) -> io::Result<Option<Self>> {
        match fs::read(state.join("address")) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split(' ').collect::<Vec<_>>()[..] {
            [NAME, port, pid, launch, knock, reply] => Some(Self {
                port: port.parse().ok()?,
                pid: pid.parse().ok()?,
                launch: launch.parse().ok()?,
                knock: knock.parse().ok()?,
                reply: reply.parse().ok()?,
            }),
            _ => None,
        }
    }

    /// Writes the file. A reader sees the old one or the new one, never half of it.
    pub(crate) fn publish(&self, state: &Path) -> io::Result<()> {
        let unfinished = state.join("address.new");
        let mut options = for_this_user();
        let mut file = options.write(true).truncate(true).open(&unfinished)?;
        file.write_all(self.to_string().as_bytes())?;
        fs::rename(unfinished, state.join("address"))
    }

    pub(crate) fn knock(&self) -> String {
        format!("{NAME} {}", self.knock)
    }

    /// Connects to the daemon, ready or not. `None`: it is not there, or it is somebody else who is.
    pub(crate) async fn connect(&self) -> io::Result<Option<Connection>> {
        // Callers have a deadline; here, a daemon that is slow to answer is not dead.
        let greeted = async {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
            let mut daemon = Connection::new(stream, *self);
            let greeting = daemon.ask(&self.knock()).await?;
            Ok((greeting == self.to_string()).then_some(daemon))
        };
        none_if_gone(greeted.await)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            port,
            pid,
            launch,
            knock,
            reply,
        } = self;
        write!(f, "{NAME} {port} {pid} {launch} {knock} {reply}")
    }
}

/// Opens or makes a file that nobody else may read.
pub(crate) fn for_this_user() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Whether a daemon lives, be it starting, serving or about to end. It makes a few short blocking calls.
pub(crate) fn is_taken(state: &Path) -> Result<bool, SpawnLockError> {
    match inspect_spawn_lock(state.join(SEAT)) {
        Ok(report) => Ok(report.is_held),
        Err(SpawnLockError::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Connects to the daemon of a state directory, ready or not.
pub(crate) async fn connect(state: &Path) -> Result<Option<Connection>, BoxError> {
    match Address::read(state)? {
        // If nobody has the seat, the process at that port is not asked: a stranger might keep silent.
        Some(address) if is_taken(state)? => Ok(address.connect().await?),
        _ => Ok(None),
    }
}

/// Connects to the daemon of a state directory. If it is starting, this waits until it is ready.
pub(crate) async fn find(state: &Path) -> Result<Option<Connection>, BoxError> {
    let Some(mut daemon) = connect(state).await? else {
        return Ok(None);
    };
    let ready = daemon.ask("ready").await;
    Ok(none_if_gone(ready.map(|_| Some(daemon)))?)
}

/// Tells "it is not there" from what leaves that open.
fn none_if_gone<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
    use ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidData,
        UnexpectedEof,
    };
    match found.as_ref().map_err(io::Error::kind) {
        Err(ConnectionRefused | ConnectionReset | ConnectionAborted) => Ok(None),
        // `InvalidData` is what a stranger says that does not speak in lines of text.
        Err(BrokenPipe | UnexpectedEof | InvalidData) => Ok(None),
        _ => found,
    }
}

/// A connection on which lines go to and fro.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    pub(crate) address: Address,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, address: Address) -> Self {
        let stream = BufReader::new(stream);
        Self { stream, address }
    }

    pub(crate) async fn say(&mut self, line: &str) -> io::Result<()> {
        if line.contains('\n') || line.len() >= LONGEST_LINE {
            return Err(io::Error::other("that is not one line, or a very long one"));
        }
        self.stream.write_all(format!("{line}\n").as_bytes()).await
    }

    /// Returns the next line; a connection that ends before it does is an error.
    pub(crate) async fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(LONGEST_LINE as u64);
        limited.read_line(&mut line).await?;
        if line.pop() == Some('\n') {
            Ok(line)
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    pub(crate) async fn ask(&mut self, line: &str) -> io::Result<String> {
        self.say(line).await?;
        self.hear().await
    }
}
