//! A host that is cut off from the cluster. Needs root, for a network of its own.

use std::process::Command;

use spawn_gate::SpawnGate;
use tempfile::TempDir;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::host::{Host, uptime};
use crate::support::{Gate, led};

/// A network with this machine and one host in it. It is removed with this value.
struct Network {
    name: String,
    outer: String,
    number: u32,
}

impl Network {
    /// `None`, said in words, without the right to make one.
    fn new() -> Option<Self> {
        let number = std::process::id() % 250;
        let network = Self {
            name: format!("gate{number}"),
            outer: format!("gate{number}a"),
            number,
        };
        let inner = format!("gate{number}b");
        let (here, there) = (
            format!("{}/30", network.address()),
            format!("10.213.{number}.2/30"),
        );
        let commands = [
            format!("netns add {}", network.name),
            format!("link add {} type veth peer name {inner}", network.outer),
            format!("link set {inner} netns {}", network.name),
            format!("addr add {here} dev {}", network.outer),
            format!("link set {} up", network.outer),
            format!("-n {} addr add {there} dev {inner}", network.name),
            format!("-n {} link set {inner} up", network.name),
        ];
        if !commands.iter().all(|command| ip(command)) {
            println!("SKIPPED: no right to make a network namespace");
            return None;
        }
        Some(network)
    }

    fn address(&self) -> String {
        format!("10.213.{}.1", self.number)
    }

    fn set(&self, state: &str) {
        assert!(ip(&format!("link set {} {state}", self.outer)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.outer));
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn a_holder_that_is_cut_off_learns_of_the_loss_before_another_host_has_the_lock() {
    let Some(network) = Network::new() else {
        return;
    };
    let Some(etcd) = Etcd::start_at(Some(&network.address()), 1, &[]) else {
        return;
    };
    let lock = etcd.lock().await;
    let scene = TempDir::new().unwrap();
    for _ in 0..3 {
        let mut holder = Host::start_in(
            &network.name,
            etcd.other_endpoints(),
            scene.path(),
            "holder",
        );
        holder.says("permit");
        network.set("down");
        let gate: Gate = SpawnGate::builder(lock.clone())
            .lock_timeout(PATIENCE)
            .build();
        let permit = led(&gate).await;
        let taken = uptime();
        let lost = holder.says("lost");
        let (is_lost, at) = lost.split_once(' ').unwrap();
        assert_eq!(is_lost, "true");
        let at: u128 = at.parse().unwrap();
        assert!(at < taken.as_millis(), "{at} {taken:?}");
        // It is told while it is cut off: it needs no answer for that.
        assert_eq!(holder.says("settled"), "as lock_lost");
        permit.succeed(1).await.unwrap();
        network.set("up");
    }
}
