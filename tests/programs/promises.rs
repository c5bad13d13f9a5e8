//! What holds for each program.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant;

use spawn_gate::How;
use spawn_gate::process::{Presence, Stop, Stopped};

use crate::caller::{Answer, Caller};
use crate::program::Program;
use crate::scene::{KEY, Scene, chain, kill_9, tell, until_gone, within};

const CALLERS: usize = 20;

pub(crate) async fn twenty_processes_at_once_start_one_and_each_uses_it(program: &Program) {
    let Some(scene) = Scene::new(program) else {
        return;
    };
    let mut callers: Vec<_> = (0..CALLERS).map(|_| Caller::start(&scene.place)).collect();
    for caller in &mut callers {
        caller.at_the_gate().await;
    }
    let begun = Instant::now();
    for caller in &mut callers {
        caller.go_on().await;
    }
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.answer().await);
    }
    let took = begun.elapsed();
    let launches = scene.launches();
    let name = program.name;
    tell(&format!(
        "{name}: {CALLERS} processes: {took:.2?}, launches: {launches}"
    ));

    assert_eq!(launches, 1);
    assert_eq!(answers.iter().filter(|answer| answer.has_led).count(), 1);
    let first = &answers[0];
    let is_same = |it: &Answer| (it.pid, it.launch) == (first.pid, first.launch);
    assert!(answers.iter().all(is_same), "{answers:?}");
    // Its launcher has ended, and it has not.
    assert_eq!(scene.first_processes(), BTreeSet::from([first.pid]));
    let found = scene.launch().await;
    assert_eq!((found.how, found.value.pid), (How::Discovered, first.pid));

    stop(&scene, first.pid).await;
}

pub(crate) async fn after_kill_9_the_next_call_starts_another(program: &Program) {
    let Some(scene) = Scene::new(program) else {
        return;
    };
    let first = scene.launch().await.value;
    let of_first = scene.processes();
    kill_9(first.pid);
    until_gone(first.pid).await;
    // Without a wait for the processes that it started.
    let launched = scene.launch().await;
    assert_eq!(launched.how, How::Led);
    let second = launched.value;
    assert!(second.launch > first.launch);
    assert!(scene.processes().is_disjoint(&of_first));
    assert_eq!(scene.first_processes(), BTreeSet::from([second.pid]));
    assert_eq!(scene.launches(), 2);
    stop(&scene, second.pid).await;
}

pub(crate) async fn stop_ends_it_and_says_so(program: &Program) {
    let Some(scene) = Scene::new(program) else {
        return;
    };
    // It was launched by a process that has ended.
    let mut caller = Caller::start(&scene.place);
    caller.go_on().await;
    caller.at_the_gate().await;
    let pid = caller.answer().await.pid;
    stop(&scene, pid).await;
    let again = within(scene.launcher.stop(KEY, Stop::Orderly)).await;
    assert_eq!(again.unwrap(), Stopped::NotRunning);
}

pub(crate) async fn a_taken_port_is_a_failure_in_its_own_words(program: &Program) {
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let Some(scene) = Scene::at(program, stranger.local_addr().unwrap().port()) else {
        return;
    };
    let launching = scene.gate.launch(KEY, scene.launcher.clone());
    let error = chain(&within(launching).await.unwrap_err());
    assert!(
        error.contains("ended before it was ready: exit status: 1"),
        "{error}"
    );
    // Go writes it small.
    assert!(
        error.to_lowercase().contains("address already in use"),
        "{error}"
    );
    assert_eq!(scene.processes(), BTreeSet::new());

    // It is the port that was to blame.
    drop(stranger);
    let pid = scene.launch().await.value.pid;
    stop(&scene, pid).await;
}

/// Ends the backend in an orderly way, after which nothing is left of it.
pub(crate) async fn stop(scene: &Scene, pid: u32) {
    let stopped = within(scene.launcher.stop(KEY, Stop::Orderly)).await;
    assert_eq!(stopped.unwrap(), Stopped::Orderly { pid });
    assert_eq!(scene.processes(), BTreeSet::new());
    let found = within(scene.launcher.find(KEY)).await;
    assert_eq!(found.unwrap(), Presence::Gone);
}
