//! Requests of the programs' protocols.

use std::io;

use spawn_gate::BoxError;
use spawn_gate::process::Endpoint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
    Ok(match (endpoint.tcp(), endpoint.unix()) {
        (Some(address), _) => Box::new(TcpStream::connect(address).await?),
        (_, Some(path)) => Box::new(UnixStream::connect(path).await?),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    })
}

/// Returns the body of a page.
pub(crate) async fn http_get(endpoint: &Endpoint, path: &str) -> Result<String, BoxError> {
    let mut stream = connect(endpoint).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let status = head.split_whitespace().nth(1);
    match status {
        Some("200") => Ok(body.to_owned()),
        _ => Err(answer.into()),
    }
}

pub(crate) async fn etcd_health(endpoint: &Endpoint) -> Result<(), BoxError> {
    let body = http_get(endpoint, "/health").await?;
    let is_healthy = body.contains(r#""health":"true""#);
    is_healthy.then_some(()).ok_or_else(|| body.into())
}

/// Pings redis, and asks which process it is.
pub(crate) async fn redis_ping(endpoint: &Endpoint, pid: u32) -> Result<(), BoxError> {
    let mut stream = connect(endpoint).await?;
    stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let is_right = answer.starts_with("+PONG\r\n")
        && answer.contains(&format!("\r\nprocess_id:{pid}\r\n"))
        && answer.ends_with("+OK\r\n");
    is_right.then_some(()).ok_or_else(|| answer.into())
}

/// A connection to postgres, by version 3.0 of its protocol.
pub(crate) struct PostgresClient(Box<dyn Stream>);

impl PostgresClient {
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let mut stream = connect(endpoint).await?;
        // SSLRequest: the answer is one byte.
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
        let answer = stream.read_u8().await?;
        if answer != b'N' {
            return Err(format!("SSLRequest was answered by {answer}").into());
        }
        let mut start = 196_608_u32.to_be_bytes().to_vec();
        start.extend(b"user\0postgres\0database\0postgres\0\0");
        let length = start.len() as u32 + 4;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&start).await?;
        let mut client = Self(stream);
        client.until_ready().await?;
        Ok(client)
    }

    /// Returns the first column of the last row.
    pub(crate) async fn query(&mut self, text: &str) -> Result<String, BoxError> {
        self.send(text).await?;
        self.until_ready().await
    }

    /// Sends a query without waiting for its answer.
    pub(crate) async fn send(&mut self, text: &str) -> Result<(), BoxError> {
        let length = text.len() as u32 + 5;
        self.0.write_u8(b'Q').await?;
        self.0.write_all(&length.to_be_bytes()).await?;
        self.0.write_all(text.as_bytes()).await?;
        self.0.write_u8(0).await?;
        Ok(())
    }

    async fn until_ready(&mut self) -> Result<String, BoxError> {
        let mut column = String::new();
        loop {
            let kind = self.0.read_u8().await?;
            let length = self.0.read_u32().await?;
            let mut body = vec![0; length as usize - 4];
            self.0.read_exact(&mut body).await?;
            match kind {
                b'E' => return Err(String::from_utf8_lossy(&body).into()),
                // Count of columns, length of the first one.
                b'D' => column = String::from_utf8_lossy(&body[6..]).into_owned(),
                b'Z' => return Ok(column),
                _ => {}
            }
        }
    }
}
