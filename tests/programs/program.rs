//! The programs: where they are, how they are started, what says that they are ready, and a request of their protocol.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use spawn_gate::BoxError;
use spawn_gate::process::{Endpoint, Ready};
use tokio::time::timeout;

use crate::data;
use crate::request;

/// One try of a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A program, with one of the signs of readiness.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// As the tests' output names it.
    pub(crate) name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    RedisByNotify,
    RedisByTcp,
    RedisByUnixSocket,
    Postgres,
    Etcd,
    HttpServer,
}

pub(crate) fn redis_by_notify() -> Program {
    Program {
        name: "redis by notify",
        kind: Kind::RedisByNotify,
    }
}

pub(crate) fn redis_by_tcp() -> Program {
    Program {
        name: "redis by TCP",
        kind: Kind::RedisByTcp,
    }
}

pub(crate) fn redis_by_unix_socket() -> Program {
    Program {
        name: "redis by Unix socket",
        kind: Kind::RedisByUnixSocket,
    }
}

pub(crate) fn postgres_by_line() -> Program {
    Program {
        name: "postgres",
        kind: Kind::Postgres,
    }
}

pub(crate) fn etcd_by_probe() -> Program {
    Program {
        name: "etcd",
        kind: Kind::Etcd,
    }
}

pub(crate) fn http_server_by_tcp() -> Program {
    Program {
        name: "http.server",
        kind: Kind::HttpServer,
    }
}

const ALL: [fn() -> Program; 6] = [
    redis_by_notify,
    redis_by_tcp,
    redis_by_unix_socket,
    postgres_by_line,
    etcd_by_probe,
    http_server_by_tcp,
];

impl Program {
    pub(crate) fn named(name: &str) -> Self {
        let mut all = ALL.iter().map(|program| program());
        all.find(|program| program.name == name).unwrap()
    }

    /// The name of its file.
    pub(crate) fn file_name(self) -> &'static str {
        match self.kind {
            Kind::RedisByNotify | Kind::RedisByTcp | Kind::RedisByUnixSocket => "redis-server",
            Kind::Postgres => "postgres",
            Kind::Etcd => "etcd",
            Kind::HttpServer => "python3",
        }
    }

    /// Its file; `None` if it is not installed.
    pub(crate) fn file(self) -> Option<PathBuf> {
        match self.kind {
            Kind::Postgres => data::postgres_file("postgres"),
            _ => in_path(self.file_name()),
        }
    }

    /// Makes what it needs to find in its directory.
    pub(crate) fn prepare(self, data: &Path) {
        match self.kind {
            Kind::Postgres => data::make_for_postgres(data),
            Kind::HttpServer => {
                std::fs::create_dir(data).unwrap();
                std::fs::write(data.join("page"), "the page").unwrap();
            }
            _ => std::fs::create_dir(data).unwrap(),
        }
    }

    /// What is run, and what says that it is ready.
    pub(crate) fn command(self, data: &Path, port: u16) -> Result<(Command, Ready), BoxError> {
        let mut command = Command::new(self.file().ok_or("it is not installed")?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let endpoint = Endpoint::Tcp(address);
        let port = port.to_string();
        let ready = match self.kind {
            Kind::RedisByNotify => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                command.args(["--supervised", "systemd"]);
                Ready::notify().at(endpoint)
            }
            Kind::RedisByTcp => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                Ready::accepts(endpoint)
            }
            Kind::RedisByUnixSocket => {
                let socket = data.join("redis.sock");
                command.args(["--port", "0", "--save", "", "--unixsocket"]);
                command.arg(&socket);
                Ready::accepts(socket)
            }
            Kind::Postgres => {
                // It refuses to run as root. The directory of the gate is another user's, so it cannot be its working directory.
                if let Some(user) = data::user_of_postgres() {
                    command.uid(user.uid).gid(user.gid);
                }
                command.current_dir(data).arg("-D").arg(data);
                command.args(["-p", &port, "-c", "listen_addresses=127.0.0.1"]);
                command.args(["-c", "unix_socket_directories="]);
                // It accepts connections before it can serve them.
                Ready::line("database system is ready to accept connections").at(endpoint)
            }
            Kind::Etcd => {
                let (clients, peers) = (url(address), url(free_address()));
                command.arg("--data-dir").arg(data);
                command.args(["--listen-client-urls", &clients]);
                command.args(["--advertise-client-urls", &clients]);
                command.args(["--listen-peer-urls", &peers]);
                command.args(["--initial-advertise-peer-urls", &peers]);
                command.args(["--initial-cluster", &format!("default={peers}")]);
                // It elects itself: no need to wait a second for others.
                command.args(["--heartbeat-interval", "10", "--election-timeout", "50"]);
                let of = endpoint.clone();
                let probe = move || {
                    let of = of.clone();
                    async move {
                        let health = timeout(PROBE_LIMIT, request::etcd_health(&of)).await;
                        Ok(matches!(health, Ok(Ok(()))))
                    }
                };
                Ready::probe(probe).at(endpoint)
            }
            Kind::HttpServer => {
                command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
                command.arg(data).arg(&port);
                Ready::accepts(endpoint)
            }
        };
        Ok((command, ready))
    }

    /// A request of its protocol. An error if the answer is not the right one.
    pub(crate) async fn request(self, endpoint: &Endpoint, pid: u32) -> Result<(), BoxError> {
        match self.kind {
            Kind::RedisByNotify | Kind::RedisByTcp | Kind::RedisByUnixSocket => {
                request::redis_ping(endpoint, pid).await
            }
            Kind::Postgres => {
                let mut client = request::PostgresClient::connect(endpoint).await?;
                let answer = client.query("select 6 * 7").await?;
                (answer == "42").then_some(()).ok_or_else(|| answer.into())
            }
            Kind::Etcd => request::etcd_health(endpoint).await,
            Kind::HttpServer => {
                let body = request::http_get(endpoint, "/page").await?;
                (body == "the page")
                    .then_some(())
                    .ok_or_else(|| body.into())
            }
        }
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// The packages' directories first: a wrapper of the same name may stand before them in `PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let packages = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
    let directories = packages.into_iter().chain(std::env::split_paths(&path));
    let mut files = directories.map(|directory| directory.join(name));
    files.find(|file| file.is_file())
}
