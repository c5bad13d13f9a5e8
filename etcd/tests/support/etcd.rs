//! Real etcd: members on loopback with free ports, their data on a tmpfs. They end with the value that holds them, and with this
//! process, however it ends.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate_etcd::{EtcdSpawnLock, EtcdSpawnLockBuilder};
use tempfile::TempDir;

/// Fail instead of skipping, if etcd is not installed.
const REQUIRED: &str = "REQUIRE_ETCD";

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of etcd.
pub(crate) struct Etcd {
    members: Vec<Member>,
    data: TempDir,
    extra: Vec<String>,
    /// An address besides loopback, of a network that is only on this machine.
    also_at: Option<String>,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one member. `None`, said in words, if etcd is not installed.
    pub(crate) fn one() -> Option<Self> {
        Self::start(1, &[])
    }

    /// Starts so many members, with more arguments.
    pub(crate) fn start(members: usize, extra: &[&str]) -> Option<Self> {
        Self::start_at(None, members, extra)
    }

    /// Starts so many members that also listen at this address.
    pub(crate) fn start_at(also_at: Option<&str>, members: usize, extra: &[&str]) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let tmpfs = Path::new("/dev/shm");
        let parent = if tmpfs.is_dir() {
            tmpfs.to_owned()
        } else {
            std::env::temp_dir()
        };
        let mut etcd = Self {
            members: free_ports(members),
            data: tempfile::Builder::new()
                .prefix("etcd-")
                .tempdir_in(parent)
                .unwrap(),
            extra: extra.iter().map(ToString::to_string).collect(),
            also_at: also_at.map(str::to_owned),
        };
        for number in 0..members {
            etcd.start_member(number);
        }
        Some(etcd)
    }

    /// Starts a member that is not running, with the data that it has.
    pub(crate) fn start_member(&mut self, number: usize) {
        let scheme = if self.extra.iter().any(|it| it.starts_with("--cert-file")) {
            "https"
        } else {
            "http"
        };
        let url = |scheme, port| format!("{scheme}://127.0.0.1:{port}");
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("m{number}={}", url("http", member.peer)))
            .collect();
        let member = &mut self.members[number];
        let mut command = Command::new("setpriv");
        // The kernel ends it with this process.
        command.args(["--pdeathsig", "KILL", "etcd"]);
        let also_at = self.also_at.as_ref();
        let listen = match also_at {
            Some(address) => format!(
                "{},http://{address}:{}",
                url(scheme, member.client),
                member.client
            ),
            None => url(scheme, member.client),
        };
        let (client, peer) = (url(scheme, member.client), url("http", member.peer));
        for (name, value) in [
            ("--name", format!("m{number}")),
            (
                "--data-dir",
                self.data
                    .path()
                    .join(format!("m{number}"))
                    .display()
                    .to_string(),
            ),
            ("--listen-client-urls", listen),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", cluster.join(",")),
            // Two clusters never take each other's members for their own.
            (
                "--initial-cluster-token",
                self.data.path().display().to_string(),
            ),
            ("--log-level", "panic".to_owned()),
            ("--logger", "zap".to_owned()),
        ] {
            command.arg(format!("{name}={value}"));
        }
        command.args(&self.extra);
        let log = std::fs::File::create(self.data.path().join(format!("m{number}.log"))).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        member.child = Some(child);
    }

    /// The URLs of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let scheme = if self.extra.iter().any(|it| it.starts_with("--cert-file")) {
            "https"
        } else {
            "http"
        };
        let url = |member: &Member| format!("{scheme}://127.0.0.1:{}", member.client);
        self.members.iter().map(url).collect()
    }

    /// The URLs of all members at the address besides loopback.
    pub(crate) fn other_endpoints(&self) -> Vec<String> {
        let address = self.also_at.as_ref().unwrap();
        let url = |member: &Member| format!("http://{address}:{}", member.client);
        self.members.iter().map(url).collect()
    }

    /// The number of the leader.
    pub(crate) fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            for number in 0..self.members.len() {
                let status = self.try_ctl(number, &["endpoint", "status", "--write-out=simple"]);
                // The fifth field says whether it is the leader.
                if status.is_ok_and(|line| line.split(", ").nth(4) == Some("true")) {
                    return number;
                }
            }
            assert!(Instant::now() < until, "no leader");
        }
    }

    /// The builder of a lock with short times.
    pub(crate) fn builder(&self) -> EtcdSpawnLockBuilder {
        builder(self.endpoints())
    }

    /// A lock, once the cluster answers.
    pub(crate) async fn lock(&self) -> EtcdSpawnLock {
        let lock = self.builder().build().unwrap();
        lock.check(PATIENCE).await.unwrap();
        lock
    }

    /// Sends a signal to a member.
    pub(crate) fn signal(&self, number: usize, signal: Signal) {
        let child = self.members[number].child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Kills a member and waits for its end.
    pub(crate) fn kill(&mut self, number: usize) {
        end(&mut self.members[number]);
    }

    /// Removes the data of a member that is not running.
    pub(crate) fn forget(&self, number: usize) {
        std::fs::remove_dir_all(self.data.path().join(format!("m{number}"))).unwrap();
    }

    /// Runs etcdctl at this member. Returns what it prints.
    pub(crate) fn ctl(&self, number: usize, args: &[&str]) -> String {
        self.try_ctl(number, args)
            .unwrap_or_else(|complaint| panic!("{args:?}: {complaint}"))
    }

    /// Runs etcdctl at this member. Returns what it prints, or what it complains of.
    pub(crate) fn try_ctl(&self, number: usize, args: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints()[number]))
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// How many leases there are, by etcdctl.
    pub(crate) fn leases(&self) -> usize {
        // The first line is a title.
        self.ctl(0, &["lease", "list"]).lines().skip(1).count()
    }

    /// All keys, by etcdctl.
    pub(crate) fn keys(&self) -> Vec<String> {
        let printed = self.ctl(0, &["get", "", "--prefix", "--keys-only"]);
        let keys = printed.lines().filter(|line| !line.is_empty());
        keys.map(str::to_owned).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(end);
    }
}

/// The builder of a lock with short times.
pub(crate) fn builder(endpoints: Vec<String>) -> EtcdSpawnLockBuilder {
    EtcdSpawnLock::builder(endpoints).expires_in(Duration::from_secs(3))
}

fn end(member: &mut Member) {
    if let Some(mut child) = member.child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn is_installed() -> bool {
    let is_there = |program: &str| {
        let version = Command::new(program).arg("--version").output();
        let ctl = Command::new(program).arg("version").output();
        [version, ctl]
            .into_iter()
            .flatten()
            .any(|output| output.status.success())
    };
    let missing: Vec<_> = ["etcd", "etcdctl", "setpriv"]
        .into_iter()
        .filter(|it| !is_there(it))
        .collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os(REQUIRED).is_none_or(|it| it != "1"),
        "missing: {missing:?}"
    );
    println!("SKIPPED: not installed: {missing:?}");
    false
}

/// Ports that are free at the moment, below those that the kernel gives to outgoing connections.
fn free_ports(members: usize) -> Vec<Member> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test binaries that run at the same time begin at different ports.
        let port = 10_000 + (std::process::id() * 97 + next) % 20_000;
        u16::try_from(port).unwrap()
    })
    .filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    let mut port = || ports.next().unwrap();
    let member = |_| Member {
        client: port(),
        peer: port(),
        child: None,
    };
    (0..members).map(member).collect()
}
