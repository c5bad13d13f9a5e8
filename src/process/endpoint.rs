//! Where a backend listens.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::connection::Connection;

/// A local connection takes microseconds. A longer wait means that nobody accepts.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// How long the first try of a probe may take; each further one may take twice as long. While many callers connect at once, the
/// queue of a listener is full for a moment (Python's `http.server` has room for 5 connections), and the system itself tries
/// again only after a second.
const FIRST_TRY: Duration = Duration::from_millis(50);

/// The longest path of a Unix socket, without the final NUL: 107 bytes on Linux, 103 on macOS and the BSDs.
const LONGEST_SOCKET_PATH: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};

/// Where a backend listens: a TCP address or the path of a Unix socket.
///
/// As text: `tcp:127.0.0.1:7201` or `unix:/run/user/1000/indexer.sock`.
///
/// ```
/// use spawn_gate::process::Endpoint;
///
/// let endpoint: Endpoint = "tcp:127.0.0.1:7201".parse().unwrap();
/// assert_eq!(endpoint, Endpoint::Tcp("127.0.0.1:7201".parse().unwrap()));
/// assert_eq!(endpoint.to_string(), "tcp:127.0.0.1:7201");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket. Make it absolute: a relative one is another path in each working directory. On Windows, nothing
    /// can connect to one here.
    Unix(PathBuf),
}

impl Endpoint {
    /// Returns the TCP address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns the path of the Unix socket.
    pub fn unix(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }

    /// Connects. Makes one attempt, without a deadline of its own.
    ///
    /// # Errors
    ///
    /// The operating system's error. A backend that was found can be gone by now: a retry helps after another
    /// [`launch`](crate::SpawnGate::launch). [`Unsupported`](io::ErrorKind::Unsupported) for a Unix socket on Windows.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, there is no connection.
    ///
    /// # Examples
    ///
    /// ```
    /// use spawn_gate::process::Endpoint;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), spawn_gate::BoxError> {
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// # let endpoint = Endpoint::Tcp(listener.local_addr()?);
    /// # tokio::spawn(async move {
    /// #     let (mut caller, _) = listener.accept().await.unwrap();
    /// #     let (mut input, mut output) = caller.split();
    /// #     tokio::io::copy(&mut input, &mut output).await.unwrap();
    /// # });
    /// let mut connection = endpoint.connect().await?;
    /// connection.write_all(b"hello").await?;
    /// connection.shutdown().await?;
    /// let mut answer = String::new();
    /// connection.read_to_string(&mut answer).await?;
    /// # assert_eq!(answer, "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                match is_to_itself(&stream)? {
                    true => Err(io::ErrorKind::ConnectionRefused.into()),
                    false => Ok(stream.into()),
                }
            }
            #[cfg(unix)]
            Self::Unix(path) => Ok(UnixStream::connect(path).await?.into()),
            #[cfg(windows)]
            Self::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Connects, and hangs up. Tries again while the queue of the listener is full.
    pub(super) async fn probe(&self) -> io::Result<()> {
        let tries = async {
            let mut limit = FIRST_TRY;
            loop {
                let ends = Instant::now() + limit;
                match timeout_at(ends, self.connect()).await {
                    // A Unix socket says so at once.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        sleep_until(ends).await;
                    }
                    Ok(done) => return done.map(drop),
                    Err(_) => {}
                }
                limit *= 2;
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within a second");
        timeout(PROBE_LIMIT, tries).await.map_err(late)?
    }

    /// Why the socket can never be bound or connected to: its path is longer than the system allows.
    pub(super) fn excess(path: &Path) -> Option<usize> {
        (path.as_os_str().len() > LONGEST_SOCKET_PATH).then_some(LONGEST_SOCKET_PATH)
    }
}

/// A connection from a port of the system's choice to that same port connects to itself, although nobody listens.
fn is_to_itself(stream: &TcpStream) -> io::Result<bool> {
    Ok(stream.local_addr()? == stream.peer_addr()?)
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

/// A path that is not UTF-8 is shown with replacement characters.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an endpoint: {0:?} (expected tcp:ADDRESS:PORT or unix:PATH)")]
pub struct ParseEndpointError(String);

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseEndpointError(text.to_owned());
        match text.split_once(':') {
            Some(("tcp", address)) => Ok(Self::Tcp(address.parse().map_err(|_| error())?)),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(error()),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn a_connection_to_itself_is_none() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        let itself = socket.connect(address).await.unwrap();
        assert!(is_to_itself(&itself).unwrap());

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        endpoint.probe().await.unwrap();
        drop(listener);
        assert!(endpoint.probe().await.is_err());
    }

    /// A listener whose queue is full, and the connections in it.
    async fn full_listener() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            queue.push(connected.unwrap());
        }
        (listener, queue)
    }

    #[tokio::test]
    async fn a_queue_that_is_full_for_a_moment_is_no_failure() {
        let (listener, _queue) = full_listener().await;
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        let probe = tokio::spawn(async move { endpoint.probe().await });
        // It has tried, in vain, once it waits for a time.
        tokio::task::yield_now().await;
        let accept = tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        probe.await.unwrap().unwrap();
        accept.abort();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_queue_of_a_unix_socket_that_is_full_for_a_moment_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queue = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(connected) => queue.push(connected),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let endpoint = Endpoint::Unix(path);
        let mut probe = tokio_test::task::spawn(endpoint.probe());
        // It has tried, in vain, once it waits.
        tokio_test::assert_pending!(probe.poll());
        listener.accept().await.unwrap();
        probe.await.unwrap();
    }

    #[test]
    fn what_is_no_endpoint_is_named() {
        for text in ["", "tcp:", "tcp:localhost:80", "unix:", "http://127.0.0.1"] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("not an endpoint: {text:?}")));
        }
    }
}
