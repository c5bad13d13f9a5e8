//! The notify protocol of systemd, from the side of the one who starts: `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::net::UnixDatagram;

use crate::process::endpoint::Endpoint;
use crate::process::error::ProcessError;
use crate::process::files::Files;
use crate::process::notify::{Message, status};
use crate::process::record::Record;

/// The variable with the socket's path.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The variable of a message with the endpoint, as text. The protocol leaves names with `X_` to its users.
const ENDPOINT: &str = "X_SPAWN_GATE_ENDPOINT";

const LONGEST_MESSAGE: usize = 8 * 1024;

/// The socket that a starting backend sends its messages to. Dropping it removes the socket.
#[derive(Debug)]
pub(in crate::process) struct Notifications {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notifications {
    /// Binds the socket, in a directory that is this user's alone.
    pub(in crate::process) fn bind(files: &Files, _record: &Record) -> Result<Self, ProcessError> {
        let path = files.notify();
        if let Some(limit) = Endpoint::excess(&path) {
            return Err(ProcessError::SocketPathTooLong { path, limit });
        }
        // Left by a launcher that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ProcessError::file(&path, "remove", error));
            }
            _ => {}
        }
        let socket = UnixDatagram::bind(&path);
        let socket = socket.map_err(|error| ProcessError::file(&path, "bind", error))?;
        Ok(Self { socket, path })
    }

    /// Tells a command where to send its messages.
    pub(in crate::process) fn announce(&self, command: &mut Command) {
        command.env(VARIABLE, &self.path);
    }

    /// Keeps a command from sending messages to the one who started this process.
    pub(in crate::process) fn hide(command: &mut Command) {
        command.env_remove(VARIABLE);
    }

    /// Waits for the next message. Cancel safe.
    pub(in crate::process) async fn next(&self) -> Result<Message, ProcessError> {
        let mut buffer = [0; LONGEST_MESSAGE];
        let received = self.socket.recv(&mut buffer).await;
        let length = received.map_err(|error| ProcessError::file(&self.path, "read", error))?;
        Ok(Message::parse(&buffer[..length]))
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        // If that fails, the next launch removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Message {
    /// What [`parse`](Self::parse) reads.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(endpoint) = &self.endpoint {
            bytes.extend(endpoint_line(endpoint));
        }
        if let Some(status) = &self.status {
            bytes.extend(format!("STATUS={status}\n").bytes());
        }
        if let Some(pid) = self.main_pid {
            bytes.extend(format!("MAINPID={pid}\n").bytes());
        }
        if self.is_ready {
            bytes.extend(b"READY=1\n");
        }
        bytes
    }

    /// Unknown and broken lines are skipped, as the protocol wants it.
    fn parse(bytes: &[u8]) -> Self {
        let mut message = Self::default();
        for line in bytes.split(|&byte| byte == b'\n') {
            let text = String::from_utf8_lossy(line);
            let Some((name, value)) = text.split_once('=') else {
                continue;
            };
            match name {
                "READY" => message.is_ready |= value == "1",
                "STATUS" => message.status = Some(status(value)),
                "ERRNO" => {
                    let number: Option<i32> = value.parse().ok();
                    let error = number.map(io::Error::from_raw_os_error);
                    message.status = error.map(|error| error.to_string()).or(message.status);
                }
                "EXTEND_TIMEOUT_USEC" => {
                    message.extend = value.parse().ok().map(Duration::from_micros);
                }
                "MAINPID" => message.main_pid = value.parse().ok(),
                ENDPOINT => message.endpoint = endpoint(&line[ENDPOINT.len() + 1..]),
                _ => {}
            }
        }
        message
    }
}

/// Reads an endpoint. The path of a Unix socket may be any bytes.
fn endpoint(value: &[u8]) -> Option<Endpoint> {
    match value.strip_prefix(b"unix:") {
        Some(path) if !path.is_empty() => Some(Endpoint::Unix(OsStr::from_bytes(path).into())),
        _ => std::str::from_utf8(value).ok()?.parse().ok(),
    }
}

/// The line of a message that says where a backend listens.
fn endpoint_line(endpoint: &Endpoint) -> Vec<u8> {
    let value = match endpoint {
        Endpoint::Tcp(_) => endpoint.to_string().into_bytes(),
        Endpoint::Unix(path) => [b"unix:", path.as_os_str().as_bytes()].concat(),
    };
    match value.contains(&b'\n') {
        // It would end the line. The record says it, too.
        true => Vec::new(),
        false => [ENDPOINT.as_bytes(), b"=", &value, b"\n"].concat(),
    }
}

/// Sends a message to the one who started this process, if that one listens.
pub(in crate::process) fn send(message: &Message) {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let sent = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(&message.to_bytes(), path));
    // Nobody may be left to read it. What it says stands in the record, too.
    drop(sent);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_as_it_was_sent() {
        for endpoint in [
            Endpoint::Tcp(([127, 0, 0, 1], 80).into()),
            Endpoint::Unix(OsStr::from_bytes(b"/tmp/a b=\xff").into()),
        ] {
            let message = Message::parse(&endpoint_line(&endpoint));
            assert_eq!(message.endpoint, Some(endpoint));
        }
        assert_eq!(endpoint_line(&Endpoint::Unix("/tmp/a\nb".into())), b"");
    }

    #[test]
    fn a_status_has_no_control_characters() {
        let message = Message::parse(b"STATUS=\x1b[31mloading");
        assert_eq!(message.status.unwrap(), "\u{fffd}[31mloading");
    }

    #[test]
    fn a_message_is_read_line_by_line() {
        let text = "MAINPID=7\nSTATUS=a=b\nEXTEND_TIMEOUT_USEC=1500000\nREADY=1\n\
                    X_SPAWN_GATE_ENDPOINT=tcp:127.0.0.1:80\nWATCHDOG=1\njunk";
        let expected = Message {
            is_ready: true,
            status: Some("a=b".to_owned()),
            extend: Some(Duration::from_millis(1500)),
            main_pid: Some(7),
            endpoint: Some(Endpoint::Tcp(([127, 0, 0, 1], 80).into())),
        };
        assert_eq!(Message::parse(text.as_bytes()), expected);
        assert_eq!(Message::parse(b"READY=0\nMAINPID=-1\n"), Message::default());
        let unclear = Message::parse(b"STATUS=loading\nERRNO=x");
        assert_eq!(unclear.status.as_deref(), Some("loading"));
        assert!(
            Message::parse(b"ERRNO=2")
                .status
                .unwrap()
                .contains("No such")
        );
    }
}
