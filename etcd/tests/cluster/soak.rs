//! Three hosts that launch again and again, while hosts and members are killed and stopped at random. No two successes overlap.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::support::etcd::Etcd;
use crate::support::host::Host;

/// How long, in seconds.
const SECONDS: &str = "ETCD_SOAK_SECONDS";

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(()) % below
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn no_two_successes_overlap_whatever_is_killed() {
    let Some(mut etcd) = Etcd::start(3, &[]) else {
        return;
    };
    etcd.lock().await;
    let scene = TempDir::new().unwrap();
    let seconds = std::env::var(SECONDS)
        .ok()
        .and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(45));
    let start = |etcd: &Etcd| Host::start(etcd, scene.path(), "again");
    let mut hosts: Vec<Host> = (0..3).map(|_| start(&etcd)).collect();
    let (mut killed, mut stopped, mut members) = (0, 0, 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(200 + random(800))).await;
        let number = usize::try_from(random(3)).unwrap();
        match random(8) {
            0 | 1 => {
                hosts[number] = start(&etcd);
                killed += 1;
            }
            2..=5 => {
                hosts[number].signal(Signal::STOP);
                sleep(Duration::from_millis(2500 + random(2500))).await;
                hosts[number].signal(Signal::CONT);
                stopped += 1;
            }
            6 => {
                etcd.kill(number);
                sleep(Duration::from_millis(random(2000))).await;
                etcd.start_member(number);
                members += 1;
            }
            _ => {
                etcd.signal(number, Signal::STOP);
                sleep(Duration::from_millis(random(2000))).await;
                etcd.signal(number, Signal::CONT);
                members += 1;
            }
        }
    }
    drop(hosts);
    let journal = fs::read_to_string(scene.path().join("journal")).unwrap();
    let mut successes: Vec<[u128; 3]> = journal.lines().map(success).collect();
    successes.sort_unstable();
    println!(
        "{} successes, {killed} hosts killed, {stopped} stopped, {members} members killed or hung",
        successes.len()
    );
    for pair in successes.windows(2) {
        let ([_, ended, elder], [began, _, younger]) = (pair[0], pair[1]);
        assert!(elder < younger, "{pair:?}");
        assert!(ended <= began, "{pair:?}");
    }
    assert!(successes.len() > 10, "{}", successes.len());
}

fn success(line: &str) -> [u128; 3] {
    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
    std::array::from_fn(|_| numbers.next().unwrap())
}
