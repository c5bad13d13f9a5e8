//! What a launch costs in etcd, beside bare calls of `etcd-client` that do the least: three members on loopback, medians of one run.
//!
//! ```console
//! $ cargo run --release --manifest-path figures/Cargo.toml
//! ```

mod bare;
mod calls;
#[path = "../../examples/cluster_storm/cluster.rs"]
#[allow(dead_code, reason = "the example kills members")]
mod cluster;

use std::time::{Duration, Instant};

use spawn_gate::{Acquired, BoxError, LaunchPermit, SpawnGate};
use spawn_gate_etcd::EtcdSpawnLock;

use crate::bare::Bare;
use crate::cluster::Cluster;

/// Runs of each; the first tenth warms up.
const RUNS: usize = 300;

/// How long calls of a waiting host are counted.
const WAIT: Duration = Duration::from_secs(20);

type Gate = SpawnGate<&'static str, u64>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let cluster = Cluster::start()?;
    let lock = |first: usize| {
        let mut endpoints = cluster.endpoints();
        endpoints.rotate_left(first);
        EtcdSpawnLock::builder(endpoints).build()
    };
    // Three hosts, each with connections of its own, at the same members as the bare calls.
    let (one, other) = (lock(0)?, lock(1)?);
    one.check(Duration::from_secs(20)).await?;
    other.check(Duration::from_secs(20)).await?;
    let (one, other): (Gate, Gate) = (
        SpawnGate::builder(one).build(),
        SpawnGate::builder(other).build(),
    );
    let mut bare = Bare::connect(&cluster.endpoints()[0]).await?;
    let mut next = Bare::connect(&cluster.endpoints()[1]).await?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let began = Instant::now();
        let token = bare.acquire().await?;
        bare.settle(token).await?;
        theirs.push(began.elapsed());
        let began = Instant::now();
        let permit = led(&one).await?;
        permit.succeed(1).await?;
        ours.push(began.elapsed());
    }
    print("acquire + settle", ours, theirs);

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS / 3 {
        theirs.push(bare::hand_over(&mut bare, &mut next).await?);
        ours.push(hand_over(&one, &other).await?);
    }
    print("release → next permit", ours, theirs);

    let permit = led(&one).await?;
    let alone = calls::counted(&cluster, WAIT).await?;
    let waiting = tokio::spawn({
        let other = other.clone();
        async move {
            led(&other)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let both = calls::counted(&cluster, WAIT).await?;
    permit.succeed(1).await?;
    waiting.await??;
    let a_second = |calls: u64| calls as f64 / WAIT.as_secs_f64();
    println!(
        "calls a second: {:.2} of a holder, {:.2} with one that waits, so {:.2} of that",
        a_second(alone),
        a_second(both),
        a_second(both.saturating_sub(alone))
    );
    Ok(())
}

async fn led(gate: &Gate) -> Result<LaunchPermit<&'static str, u64>, BoxError> {
    match gate.acquire("indexer").await? {
        Acquired::Led(permit) => Ok(permit),
        Acquired::Joined(_) => Err("joined".into()),
    }
}

/// From the release by the one to the permit of the other, which waits.
async fn hand_over(one: &Gate, other: &Gate) -> Result<Duration, BoxError> {
    let permit = led(one).await?;
    let waiting = tokio::spawn({
        let other = other.clone();
        async move {
            let permit = led(&other).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((permit, Instant::now()))
        }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let began = Instant::now();
    permit.succeed(1).await?;
    let (permit, ended) = waiting.await??;
    permit.succeed(1).await?;
    Ok(ended - began)
}

fn print(what: &str, mut ours: Vec<Duration>, mut theirs: Vec<Duration>) {
    let median = |times: &mut Vec<Duration>| {
        times.drain(..times.len() / 10);
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "{what:<22} {ours:.2} ms, bare {theirs:.2} ms: {:.2}x",
        ours / theirs
    );
}
