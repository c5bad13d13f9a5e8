//! What holds for postgres only: each of its sessions is a process, which may outlive it.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate::process::{Presence, ProcessError, Stop, Stopped};

use crate::program;
use crate::promises::stop;
use crate::request::PostgresClient;
use crate::scene::{KEY, Scene, chain, kill_9, until_gone, within};

#[tokio::test]
async fn a_session_that_outlives_it_keeps_another_from_starting() {
    let Some(scene) = Scene::new(&program::postgres_by_line()) else {
        return;
    };
    let first = scene.launch().await.value;
    let endpoint = first.endpoint.as_ref().unwrap();
    let mut client = within(PostgresClient::connect(endpoint)).await.unwrap();
    let session = within(client.query("select pg_backend_pid()")).await;
    let session: u32 = session.unwrap().parse().unwrap();
    // One that is stopped does not see that postgres is gone.
    signal(session, Signal::STOP);
    kill_9(first.pid);
    until_gone(first.pid).await;

    let launcher = scene.launcher.clone().look_timeout(Duration::from_secs(1));
    let launching = scene.gate.launch(KEY, launcher);
    let error = chain(&within(launching).await.unwrap_err());
    let expected = "its process is gone or unknown, but something holds";
    assert!(error.contains(expected), "{error}");
    assert!(error.contains(&first.pid.to_string()), "{error}");
    assert_eq!(scene.launches(), 1);

    signal(session, Signal::CONT);
    let second = scene.launch().await.value;
    assert_eq!(scene.first_processes(), BTreeSet::from([second.pid]));
    stop(&scene, second.pid).await;
    assert_eq!(shared_memory_of(&[first.pid, second.pid]), 0);
}

#[tokio::test]
async fn one_that_waits_for_its_clients_is_ended_by_force() {
    let Some(scene) = Scene::new(&program::postgres_by_line()) else {
        return;
    };
    let first = scene.launch().await.value;
    let endpoint = first.endpoint.as_ref().unwrap();
    let client = within(PostgresClient::connect(endpoint)).await.unwrap();
    let hasty = scene.launcher.clone().grace(Duration::from_millis(50));
    let stopped = within(hasty.stop(KEY, Stop::Orderly)).await;
    assert!(
        matches!(stopped, Err(ProcessError::NotEnded { pid, .. }) if pid == first.pid),
        "{stopped:?}"
    );
    let found = within(scene.launcher.find(KEY)).await.unwrap();
    assert!(matches!(found, Presence::Leaving(_)), "{found:?}");

    // Its sessions are in groups of their own, and have this time to see that it is gone.
    let firm = scene.launcher.clone().grace(Duration::from_secs(3));
    let stopped = within(firm.stop(KEY, Stop::Force)).await.unwrap();
    assert_eq!(stopped, Stopped::Forced { pid: first.pid });
    assert_eq!(scene.processes(), BTreeSet::new());
    drop(client);

    let second = scene.launch().await.value;
    stop(&scene, second.pid).await;
    assert_eq!(shared_memory_of(&[first.pid, second.pid]), 0);
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// How many segments of System V shared memory these processes made and left.
fn shared_memory_of(pids: &[u32]) -> usize {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let makers = table.lines().filter_map(|line| {
        let maker = line.split_whitespace().nth(4)?;
        maker.parse::<u32>().ok()
    });
    makers.filter(|maker| pids.contains(maker)).count()
}
