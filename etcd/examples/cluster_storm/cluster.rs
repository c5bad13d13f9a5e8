//! Three members of etcd on loopback, their data on a tmpfs. They end with this value, and with this process.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use spawn_gate::BoxError;
use tempfile::TempDir;

pub(crate) struct Cluster {
    data: TempDir,
    members: Vec<Member>,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

pub(crate) const MEMBERS: usize = 3;

impl Cluster {
    pub(crate) fn start() -> Result<Self, BoxError> {
        let tmpfs = Path::new("/dev/shm");
        let parent = if tmpfs.is_dir() {
            tmpfs.to_owned()
        } else {
            std::env::temp_dir()
        };
        let data = tempfile::Builder::new()
            .prefix("cluster_storm-")
            .tempdir_in(parent)?;
        let mut cluster = Self {
            data,
            members: free_members()?,
        };
        for number in 0..MEMBERS {
            cluster.start_member(number)?;
        }
        Ok(cluster)
    }

    pub(crate) fn start_member(&mut self, number: usize) -> Result<(), BoxError> {
        let name = |(number, member): (usize, &Member)| format!("m{number}={}", url(member.peer));
        let cluster: Vec<String> = self.members.iter().enumerate().map(name).collect();
        let member = &mut self.members[number];
        // The kernel ends it with this process.
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "etcd",
                "--logger=zap",
                "--log-level=panic",
            ])
            .arg(format!("--name=m{number}"))
            .arg("--data-dir")
            .arg(self.data.path().join(format!("m{number}")))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            .arg(format!(
                "--initial-cluster-token={}",
                self.data.path().display()
            ))
            .arg(format!("--listen-client-urls={}", url(member.client)))
            .arg(format!("--advertise-client-urls={}", url(member.client)))
            .arg(format!("--listen-peer-urls={}", url(member.peer)))
            .arg(format!(
                "--initial-advertise-peer-urls={}",
                url(member.peer)
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start etcd: {error}"))?;
        member.child = Some(child);
        Ok(())
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.members[number].end();
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.client).collect()
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| url(member.client))
            .collect()
    }
}

impl Member {
    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended before.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::end);
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Ports that are free at the moment, below those that the kernel gives to outgoing connections.
fn free_members() -> Result<Vec<Member>, BoxError> {
    let first = 10_000 + u16::try_from(std::process::id() % 20_000)?;
    let mut ports = (first..).filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    let mut port = || ports.next().ok_or("no free port");
    (0..MEMBERS)
        .map(|_| {
            Ok(Member {
                client: port()?,
                peer: port()?,
                child: None,
            })
        })
        .collect()
}
