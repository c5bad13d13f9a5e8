//! The crowd's backend: gets ready, says where it listens, and answers whoever connects with its process number.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::READY_AFTER;
use crate::other::READY;
use crate::paths::one_thread;

/// The role of a backend.
pub const BACKEND: &str = "crowd-backend";

/// Two connections of each process in the largest crowd: one that looks for the backend, and one that asks. If connections did
/// not fit, their first packet would be sent again a second later, and that is what would be measured.
const BACKLOG: u32 = 2_048;

/// Plays the role of a backend until its standard input ends.
pub fn play_backend(directory: &Path) {
    thread::spawn(|| {
        // However that ends: nobody is left to serve.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        exit(0)
    });
    thread::sleep(READY_AFTER);
    let Err(error) = one_thread().block_on(serve(directory));
    panic!("the backend cannot listen, or not say where: {error}");
}

async fn serve(directory: &Path) -> io::Result<Infallible> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let listener = socket.listen(BACKLOG)?;
    let record = record(directory);
    // Renamed, so that nobody ever reads half of it.
    let written = record.with_extension("new");
    std::fs::write(&written, listener.local_addr()?.port().to_string())?;
    std::fs::rename(written, record)?;
    println!("{READY}");
    let answer = std::process::id().to_string();
    loop {
        if let Ok((mut stream, _)) = listener.accept().await {
            // One that only looked whether somebody is here has hung up.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

/// Reads where the backend listens.
pub(super) fn port(directory: &Path) -> io::Result<u16> {
    let text = std::fs::read_to_string(record(directory))?;
    text.parse().map_err(io::Error::other)
}

pub(super) async fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
}

/// Connects to the backend, and returns its answer.
pub(super) async fn ask(port: u16) -> io::Result<String> {
    let mut answer = String::new();
    connect(port).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn record(directory: &Path) -> PathBuf {
    directory.join("backend")
}
