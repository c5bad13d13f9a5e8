//! What the processes say to each other: one line each way, over TCP on this machine.
//!
//! | who | says | hears |
//! | --- | --- | --- |
//! | client to broker | `hello <service> <version>` | `negotiated <endpoint>` or `refused <code> retry after <ms>: <reason>` |
//! | operator to broker | `status <service> <version>` | `status used <attempts> waiting <clients> for <pid of another broker, or nobody>` |
//! | operator to broker | `reset <service> <version>` | `done`, or `refused` as above |
//! | client to backend | `ping` | `pong <service> <pid> <fencing token>` |
//! | anybody to backend | `crash` | nothing: it has crashed |

use std::fmt::{self, Display};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use spawn_gate::BoxError;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Longer lines are cut off, so that nobody can fill the memory of who listens.
const LONGEST_LINE: u64 = 8 * 1024;

/// How many clients may queue to be accepted. The usual 128 is too short for a storm: a client that finds the queue full is not
/// refused, but tries again a second later.
const BACKLOG: u32 = 1024;

/// Listens on a free port of this machine.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(BACKLOG)
}

/// A connection on which lines go to and fro.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(TcpStream::connect(address).await?))
    }

    pub(crate) async fn say(&mut self, line: impl Display) -> io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes()).await
    }

    /// Returns the next line; a connection that ends before it does is an error.
    pub(crate) async fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.0)
            .take(LONGEST_LINE)
            .read_line(&mut line)
            .await?;
        if line.pop() == Some('\n') {
            Ok(line)
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    /// Returns when the other side has hung up.
    pub(crate) async fn hung_up(&mut self) {
        // How it ended makes no difference: nobody is there any more.
        let _ = tokio::io::copy_buf(&mut self.0, &mut tokio::io::sink()).await;
    }
}

/// What is asked of a broker, about one backend.
pub(crate) struct Request {
    pub(crate) what: What,
    pub(crate) service: String,
    pub(crate) version: String,
}

#[derive(Clone, Copy)]
pub(crate) enum What {
    /// A client wants a backend.
    Hello,
    /// An operator wants to know how things stand.
    Status,
    /// An operator has mended the backend, and what it has used of its budget is to be forgotten.
    Reset,
}

impl Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.what {
            What::Hello => "hello",
            What::Status => "status",
            What::Reset => "reset",
        };
        write!(f, "{word} {} {}", self.service, self.version)
    }
}

impl FromStr for Request {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        let (what, service, version) = match line.split(' ').collect::<Vec<_>>()[..] {
            ["hello", service, version] => (What::Hello, service, version),
            ["status", service, version] => (What::Status, service, version),
            ["reset", service, version] => (What::Reset, service, version),
            _ => return Err(format!("not a request: {line:?}").into()),
        };
        Ok(Self {
            what,
            service: service.to_owned(),
            version: version.to_owned(),
        })
    }
}

/// What a broker answers.
pub(crate) enum Reply {
    Negotiated(SocketAddr),
    Refused(Refusal),
    Status(Status),
    /// It was reset.
    Done,
}

/// How a backend stands with a broker.
pub(crate) struct Status {
    /// Attempts used, by all brokers together.
    pub(crate) used: u32,
    /// Clients of this broker that wait for the backend.
    pub(crate) waiting: usize,
    /// The process that they wait for, if it is another broker's launch.
    pub(crate) holder: Option<u32>,
}

#[derive(Clone)]
pub(crate) struct Refusal {
    /// One word for programs.
    pub(crate) code: String,
    pub(crate) retry_after: Duration,
    /// A sentence for people.
    pub(crate) reason: String,
}

impl Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negotiated(address) => write!(f, "negotiated {address}"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Status(status) => status.fmt(f),
            Self::Done => f.write_str("done"),
        }
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status used {} waiting {} for ", self.used, self.waiting)?;
        match self.holder {
            Some(pid) => write!(f, "{pid}"),
            None => f.write_str("nobody"),
        }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: who waits as long as told must not be too early.
        let millis = self.retry_after.as_nanos().div_ceil(1_000_000);
        let reason = self.reason.replace(['\r', '\n'], " ");
        write!(f, "refused {} retry after {millis}: {reason}", self.code)
    }
}

impl FromStr for Reply {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["negotiated", address] => return Ok(Self::Negotiated(address.parse()?)),
            ["status", "used", used, "waiting", waiting, "for", holder] => {
                return Ok(Self::Status(Status {
                    used: used.parse()?,
                    waiting: waiting.parse()?,
                    holder: match holder {
                        "nobody" => None,
                        pid => Some(pid.parse()?),
                    },
                }));
            }
            ["done"] => return Ok(Self::Done),
            _ => {}
        }
        let refusal = || {
            let (code, rest) = line.strip_prefix("refused ")?.split_once(" retry after ")?;
            let (millis, reason) = rest.split_once(": ")?;
            Some(Refusal {
                code: code.to_owned(),
                retry_after: Duration::from_millis(millis.parse().ok()?),
                reason: reason.to_owned(),
            })
        };
        let refusal = refusal().ok_or_else(|| format!("not a broker's reply: {line:?}"))?;
        Ok(Self::Refused(refusal))
    }
}

/// One backend process: what it answers to `ping`, and what it writes in the journal when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendId {
    pub(crate) service: String,
    pub(crate) pid: u32,
    pub(crate) launch: u64,
}

impl Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.service, self.pid, self.launch)
    }
}

impl FromStr for BackendId {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [service, pid, launch] => Ok(Self {
                service: service.to_owned(),
                pid: pid.parse()?,
                launch: launch.parse()?,
            }),
            _ => Err(format!("not a backend: {line:?}").into()),
        }
    }
}

/// Asks a backend who it is.
pub(crate) async fn ping(backend: SocketAddr) -> io::Result<String> {
    let mut connection = Connection::open(backend).await?;
    connection.say("ping").await?;
    connection.hear().await
}
