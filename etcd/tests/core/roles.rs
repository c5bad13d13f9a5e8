//! The roles that this test binary plays as a host.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::{GateError, SpawnGate, launcher_fn};
use spawn_gate_etcd::EtcdSpawnLock;
use tokio::task::JoinSet;

use crate::support::etcd::{PATIENCE, builder};
use crate::support::host::{endpoints, say, scene, uptime};
use crate::support::{Gate, KEY, led};

#[tokio::main]
pub(crate) async fn play(role: &str) {
    let (role, argument) = role.split_once(' ').unwrap_or((role, ""));
    let lock = builder(endpoints()).build().unwrap();
    let gate: Gate = SpawnGate::builder(lock.clone())
        .lock_timeout(PATIENCE)
        .build();
    match role {
        "callers" => callers(&gate, argument.parse().unwrap()).await,
        "failing" => failing(&gate, argument.parse().unwrap()).await,
        "holder" => holder(&gate).await,
        "again" => again(&gate).await,
        "tool" => tool(&gate).await,
        "asker" => asker(lock, argument.parse().unwrap()).await,
        _ => panic!("no such role: {role}"),
    }
}

/// So many tasks that ask for the backend at once. A launch leaves a line in the journal and a backend: a file.
async fn callers(gate: &Gate, count: usize) {
    let scene: Arc<Path> = scene().into();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let gate = gate.clone();
        let (of_look, of_launch) = (Arc::clone(&scene), Arc::clone(&scene));
        tasks.spawn(async move {
            let look = move |_key| {
                let value = fs::read_to_string(of_look.join("backend")).ok();
                async move { Ok(value.and_then(|text| text.parse().ok())) }
            };
            let launch = move |launch: spawn_gate::Launch<String>| {
                let token = launch.fencing_token;
                let of_launch = Arc::clone(&of_launch);
                async move {
                    journal(&of_launch, &format!("launch {token}"));
                    // Written whole, so that a look reads all or nothing.
                    fs::write(of_launch.join("starting"), token.to_string())?;
                    fs::rename(of_launch.join("starting"), of_launch.join("backend"))?;
                    Ok(token)
                }
            };
            gate.launch(KEY, launcher_fn(look, launch)).await
        });
    }
    let ended = tasks.join_all().await;
    let values: Vec<u64> = ended
        .into_iter()
        .map(|ended| ended.unwrap().value)
        .collect();
    say(format_args!("values {values:?}"));
}

/// So many tasks that ask for a backend that cannot be launched, until they are refused.
async fn failing(gate: &Gate, count: usize) {
    let scene: Arc<Path> = scene().into();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let gate = gate.clone();
        let scene = Arc::clone(&scene);
        tasks.spawn(async move {
            loop {
                let scene = Arc::clone(&scene);
                let launch = move |launch: spawn_gate::Launch<String>| {
                    journal(&scene, &format!("attempt {}", launch.attempt_number));
                    async { Err::<u64, _>("no such program".into()) }
                };
                let launcher = launcher_fn(|_key| async { Ok(None) }, launch);
                match gate.launch(KEY, launcher).await {
                    Err(error @ GateError::BudgetExhausted(_)) => return format!("{error:#}"),
                    Err(_) => {}
                    Ok(_) => return "launched".to_owned(),
                }
            }
        });
    }
    for reason in tasks.join_all().await {
        say(format_args!("refused {reason}"));
    }
}

/// Takes the permit and keeps it until the lock is lost, then reports a success all the same.
async fn holder(gate: &Gate) {
    let permit = led(gate).await;
    say(format_args!(
        "permit {} {}",
        permit.attempt_number(),
        permit.fencing_token()
    ));
    let lost = permit.lost().await;
    say(format_args!(
        "lost {} {}",
        lost.is_lost(),
        uptime().as_millis()
    ));
    match permit.succeed(1).await {
        Ok(()) => say("settled as a success"),
        Err(error) => say(format_args!("settled as {}", error.error_type())),
    }
}

/// Asks for a permit for so many seconds.
async fn asker(lock: EtcdSpawnLock, seconds: u64) {
    let limit = Duration::from_secs(seconds);
    let gate: Gate = SpawnGate::builder(lock).lock_timeout(limit).build();
    match gate.acquire(KEY).await {
        Ok(_) => say("asked and got it"),
        Err(error) => say(format_args!("asked {}", error.error_type())),
    }
}

/// Launches again and again. Each success leaves a line in the journal: when the permit came, when it was settled, and its token.
async fn again(gate: &Gate) {
    let scene = scene();
    loop {
        let Ok(spawn_gate::Acquired::Led(permit)) = gate.acquire(KEY).await else {
            continue;
        };
        let (began, token) = (uptime(), permit.fencing_token());
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Before it settles: this process may be stopped for long once the lock is free.
        let ended = uptime();
        if permit.succeed(1).await.is_ok() {
            let (began, ended) = (began.as_micros(), ended.as_micros());
            journal(&scene, &format!("{began} {ended} {token}"));
        }
    }
}

/// Launches, settles, and exits at once, without dropping anything.
async fn tool(gate: &Gate) {
    let permit = led(gate).await;
    permit.succeed(1).await.unwrap();
    std::process::exit(0);
}

/// Appends a line to the journal of all hosts.
fn journal(scene: &Path, line: &str) {
    let journal = OpenOptions::new()
        .create(true)
        .append(true)
        .open(scene.join("journal"));
    journal
        .unwrap()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}
