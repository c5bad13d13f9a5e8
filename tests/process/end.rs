//! Promise 9: ending a backend, whichever process launched it.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use spawn_gate::admin::inspect_spawn_lock;
use spawn_gate::budget::SpawnBudgetConfig;
use spawn_gate::process::{Endpoint, Presence, ProcessError, Ready, Stop, Stopped, Why};
use spawn_gate::{FileSpawnLock, How, SpawnGate, acquire_spawn_lock};
use tokio::time::timeout;

use crate::backends::{
    COME_AFTER, LEAVE_AFTER, LEAVE_AGAIN, WITH_CHILD, WITH_PORT, backend_in, caller_in, noted,
    process_error, result, role_in,
};
use crate::kit::{LIMIT, Launcher, Scene, eventually, lives, sh, until_gone};
use crate::life::{deaf_listener, freeze, kill};
use crate::roles::steps;
use crate::scenes::{AN_AGE, file_of_a, launching, number_in, signals, start_of};

/// A backend that notes SIGTERM and goes on.
const STUBBORN: &str = "trap 'echo told >>told' TERM; echo ready; while :; do sleep 0.01; done";

fn stubborn(scene: &Scene) -> Launcher {
    scene.launcher(|_| Ok((sh(STUBBORN), Ready::line("ready"))))
}

fn ordinary(scene: &Scene) -> Launcher {
    let launcher = scene.launcher(|_| Ok((sh("echo ready; exec sleep 60"), Ready::line("ready"))));
    // A busy machine may take longer than the default.
    launcher.grace(LIMIT)
}

#[tokio::test]
async fn a_stop_during_a_start_waits_for_it_and_ends_what_was_started() {
    let scene = Scene::new();
    let go = scene.outer().join("go");
    let script = format!(
        "sh echo begun >>begun; until [ -e {} ]; do sleep 0.01; done; echo ready; exec sleep 60",
        go.display()
    );
    let launching = caller_in(&scene.outer(), &script, "line ready")
        .spawn()
        .unwrap();
    eventually(|| fs::read(scene.files().join("begun")).ok()).await;
    let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
    // The time for a look is not that for a start.
    let launcher = launcher.look_timeout(Duration::ZERO);
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    // The stop looks again and again meanwhile.
    for _ in 0..100 {
        let presence = launcher.find("a").await.unwrap();
        assert!(
            matches!(presence, Presence::Starting { .. }),
            "{presence:?}"
        );
    }
    assert!(!stopping.is_finished());
    fs::write(&go, "").unwrap();
    let launched = result(launching).await;
    let pid: u32 = launched.strip_prefix("Led ").unwrap().parse().unwrap();
    assert_eq!(stopping.await.unwrap().unwrap(), Stopped::Orderly { pid });
    assert!(!lives(pid));
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_request_to_end_is_not_missed_from_the_call_of_until_leave_on() {
    const NOTHING: &str = "PROCESS_TEST_NOTHING";
    for again in [NOTHING, LEAVE_AGAIN] {
        let scene = Scene::new();
        let (outer, go) = (scene.outer(), scene.outer().join("go"));
        let launcher = scene.launcher({
            let (outer, go) = (outer.clone(), go.clone());
            move |_| {
                let mut backend = backend_in(&outer);
                backend.env(WITH_PORT, "").env(LEAVE_AFTER, &go);
                backend.env(again, "");
                Ok((backend, Ready::notify()))
            }
        });
        let launched = scene.gate.launch("a", launcher).await.unwrap();
        let pid = launched.value.pid;
        kill(pid, Signal::TERM);
        fs::write(&go, "").unwrap();
        until_gone(pid).await;
        let journal = noted(&outer, "journal");
        assert_eq!(journal.last(), Some(&format!("end {pid} Stopped")));
    }
}

#[tokio::test]
async fn a_stop_by_force_does_not_wait_for_the_start() {
    let scene = Scene::new();
    let launching = caller_in(
        &scene.outer(),
        "sh echo begun >>begun; exec sleep 60",
        "line never",
    );
    let launching = { launching }.spawn().unwrap();
    eventually(|| fs::read(scene.files().join("begun")).ok()).await;
    let launcher = ordinary(&scene);
    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    let Stopped::Orderly { pid } = stopped else {
        panic!("{stopped:?}");
    };
    assert!(!lives(pid));
    let launched = result(launching).await;
    assert!(
        launched.contains("was stopped before it was ready"),
        "{launched}"
    );
    // What was asked for is not charged.
    let budget = scene.gate.snapshot("a").await.budget;
    assert_eq!(budget.attempts_used, 0);
    let again = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(again.how, How::Led);
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn one_that_becomes_ready_after_it_was_told_to_end_is_leaving_all_the_same() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "trap 'echo is ready' TERM; echo $$ >pid; while :; do sleep 0.01; done";
        Ok((sh(script), Ready::line("is ready")))
    });
    let launcher = launcher.grace(LIMIT);
    let launching = launching(&scene.gate, &launcher);
    let pid = number_in(&scene, "pid").await;
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Force).await }
    });
    assert_eq!(launching.await.unwrap().unwrap().value.pid, pid);
    let found = launcher.find("a").await.unwrap();
    assert!(matches!(found, Presence::Leaving(_)), "{found:?}");
    kill(pid, Signal::KILL);
    let stopped = stopping.await.unwrap().unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid });
}

#[tokio::test]
async fn stop_says_which_of_the_three_it_was() {
    let scene = Scene::new();
    let launcher = ordinary(&scene);
    for how in [Stop::Orderly, Stop::Force] {
        assert_eq!(launcher.stop("a", how).await.unwrap(), Stopped::NotRunning);
        let pid = scene
            .gate
            .launch("a", launcher.clone())
            .await
            .unwrap()
            .value
            .pid;
        assert_eq!(
            launcher.stop("a", how).await.unwrap(),
            Stopped::Orderly { pid }
        );
        assert!(!lives(pid));
    }
    let launcher = stubborn(&scene).grace(Duration::from_millis(100));
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    let error = launcher.stop("a", Stop::Orderly).await.unwrap_err();
    assert!(matches!(error, ProcessError::NotEnded { pid: named, .. } if named == pid));
    // It goes on, and is still leaving.
    assert!(lives(pid));
    let found = launcher.find("a").await.unwrap();
    assert!(matches!(found, Presence::Leaving(_)), "{found:?}");
    assert_eq!(
        launcher.stop("a", Stop::Force).await.unwrap(),
        Stopped::Forced { pid }
    );
    assert!(!lives(pid));
    assert_eq!(
        launcher.stop("a", Stop::Force).await.unwrap(),
        Stopped::NotRunning
    );
}

#[tokio::test]
async fn stop_never_says_not_running_or_ended_of_one_that_is_there() {
    let scene = Scene::new();
    let launcher = ordinary(&scene).look_timeout(Duration::from_millis(100));
    scene.gate.launch("a", launcher.clone()).await.unwrap();
    launcher.stop("a", Stop::Orderly).await.unwrap();
    // Something has the lock, and is no backend that can be found.
    let life = scene.file(".life");
    let held = eventually(|| acquire_spawn_lock(&life).ok()).await;
    let record = fs::read_to_string(scene.file(".backend")).unwrap();
    for text in ["junk", "", &record] {
        fs::write(scene.file(".backend"), text).unwrap();
        if text != record {
            fs::write(&life, "junk").unwrap();
        }
        for how in [Stop::Orderly, Stop::Force] {
            let launcher = launcher.clone().grace(Duration::from_millis(50));
            let stopped = launcher.stop("a", how).await;
            assert!(stopped.is_err(), "{text:?}: {stopped:?}");
        }
    }
    drop(held);
    assert_eq!(
        launcher.stop("a", Stop::Orderly).await.unwrap(),
        Stopped::NotRunning
    );
}

#[tokio::test]
async fn one_in_another_container_cannot_be_ended_and_that_is_said() {
    let scene = Scene::new();
    // No wait changes that.
    let launcher = ordinary(&scene).look_timeout(AN_AGE);
    let backend = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let (pid, record) = (backend.value.pid, scene.file(".backend"));
    let here = fs::read_to_string(&record).unwrap();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
    let elsewhere = here.replace(namespace.to_str().unwrap(), "pid:[1]");
    assert_ne!(here, elsewhere);
    fs::write(&record, elsewhere).unwrap();
    for how in [Stop::Orderly, Stop::Force] {
        let error = timeout(LIMIT, launcher.stop("a", how))
            .await
            .unwrap()
            .unwrap_err();
        let ProcessError::Unusable(unusable) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(unusable.why, Why::OutOfReach);
        assert_eq!(unusable.pid, Some(pid));
    }
    assert!(lives(pid));
    assert!(matches!(launcher.find("a").await, Ok(Presence::Ready(_))));
    fs::write(&record, here).unwrap();
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_stop_right_after_a_launch_has_begun_is_not_misled_by_the_last_ones_record() {
    let scene = Scene::new();
    let first = scene
        .gate
        .launch("a", ordinary(&scene))
        .await
        .unwrap()
        .value;
    kill(first.pid, Signal::KILL);
    until_gone(first.pid).await;
    drop(eventually(|| acquire_spawn_lock(scene.file(".life")).ok()).await);
    // Before it writes its record, a launch tries whether somebody accepts at the endpoint. Here that takes a second.
    let (listener, _callers) = deaf_listener().await;
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let launcher = scene.launcher(move |_| {
        let command = sh("exec sleep 60");
        Ok((command, Ready::accepts(endpoint.clone())))
    });
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    eventually(|| {
        inspect_spawn_lock(scene.file(".life"))
            .unwrap()
            .is_held
            .then_some(())
    })
    .await;
    let found = launcher.find("a").await.unwrap();
    assert!(matches!(found, Presence::Starting { .. }), "{found:?}");
    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    let Stopped::Orderly { pid } = stopped else {
        panic!("{stopped:?}");
    };
    assert_ne!(pid, first.pid);
    assert!(!lives(pid));
    let error = launching.await.unwrap().unwrap_err();
    assert!(
        error.to_string().contains("did not start")
            && format!("{error:#}").contains(&format!("process {pid} was stopped")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_backend_whose_files_become_junk_during_its_stop_is_not_taken_for_ended() {
    let scene = Scene::new();
    let launcher = stubborn(&scene).grace(Duration::from_secs(1));
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    eventually(|| fs::read(scene.files().join("told")).ok()).await;
    fs::write(scene.file(".backend"), "junk").unwrap();
    fs::write(scene.file(".life"), "junk").unwrap();
    let stopped = stopping.await.unwrap();
    assert!(
        matches!(stopped, Err(ProcessError::NotEnded { .. })),
        "{stopped:?}"
    );
    assert!(lives(pid));
    kill(pid, Signal::KILL);
    until_gone(pid).await;
}

/// Puts the record of the backend of `b`, a later launch, where that of `a` is.
fn replace_record_of_a(scene: &Scene) {
    let lock = FileSpawnLock::new(scene.files()).unwrap();
    let of_b = lock.path_of(&"b".to_owned()).with_extension("backend");
    fs::copy(of_b, file_of_a(scene, "backend")).unwrap();
}

#[tokio::test]
async fn a_stop_is_over_once_its_backend_is_gone_also_if_a_later_one_is_there_by_then() {
    let scene = Scene::new();
    let launcher = stubborn(&scene).grace(LIMIT);
    let pid = launcher.get_or_launch("a").await.unwrap().value.pid;
    let later = launcher.get_or_launch("b").await.unwrap().value.pid;
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    eventually(|| fs::read(scene.files().join("told")).ok()).await;
    replace_record_of_a(&scene);
    kill(pid, Signal::KILL);
    let stopped = stopping.await.unwrap().unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid });
    assert!(lives(later));
    kill(later, Signal::KILL);
}

#[tokio::test]
async fn a_stop_is_not_over_while_its_backend_lives_also_if_the_record_is_a_later_ones() {
    let scene = Scene::new();
    let launcher = stubborn(&scene).grace(Duration::from_secs(1));
    let pid = launcher.get_or_launch("a").await.unwrap().value.pid;
    let later = launcher.get_or_launch("b").await.unwrap().value.pid;
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    eventually(|| fs::read(scene.files().join("told")).ok()).await;
    replace_record_of_a(&scene);
    let stopped = stopping.await.unwrap();
    assert!(
        matches!(stopped, Err(ProcessError::NotEnded { .. })),
        "{stopped:?}"
    );
    for pid in [pid, later] {
        assert!(lives(pid));
        kill(pid, Signal::KILL);
    }
}

#[tokio::test]
async fn a_process_of_the_same_launch_that_says_it_is_the_backend_during_a_stop_is_ended_too() {
    let scene = Scene::new();
    let outer = scene.outer();
    // The first process notes SIGTERM and goes on, and then its child comes as the backend.
    let launcher = scene.launcher(move |_| {
        let script = "trap 'echo told >>told' TERM; \"$0\" role --exact --nocapture & \
                      echo begun >>begun; while :; do sleep 0.01; done";
        let mut command = sh(script);
        command.arg(std::env::current_exe()?);
        for (name, value) in backend_in(&outer).get_envs() {
            command.env(name, value.unwrap());
        }
        command.env(COME_AFTER, outer.join("files/told"));
        Ok((command, Ready::line("never")))
    });
    let launcher = launcher.grace(Duration::from_secs(1));
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    eventually(|| fs::read(scene.files().join("begun")).ok()).await;
    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    assert!(matches!(stopped, Stopped::Forced { .. }), "{stopped:?}");
    for line in noted(&scene.outer(), "journal") {
        until_gone(line.split(' ').nth(1).unwrap().parse().unwrap()).await;
    }
    let error = launching.await.unwrap().unwrap_err();
    assert!(
        matches!(process_error(&error), ProcessError::Stopped { .. }),
        "{error:?}"
    );
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn what_a_program_hands_over_to_its_child_is_ended_too() {
    let scene = Scene::new();
    // The first process ends at SIGTERM, and its child does not.
    let launcher = scene
        .launcher(|_| {
            let script = "(trap '' TERM; echo $(exec sh -c 'echo $PPID') >child; while :; do sleep 0.01; done) & \
                          until [ -e child ]; do sleep 0.01; done; echo ready; exec sleep 60";
            Ok((sh(script), Ready::line("ready")))
        })
        .grace(Duration::from_millis(100));
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    let child = fs::read_to_string(scene.files().join("child")).unwrap();
    let child = child.trim().parse().unwrap();
    let stopped = launcher.stop("a", Stop::Orderly).await;
    assert!(
        matches!(stopped, Err(ProcessError::NotEnded { .. })),
        "{stopped:?}"
    );
    assert!(lives(child));
    assert_ne!(launcher.find("a").await.unwrap(), Presence::Gone);
    let launcher = launcher.look_timeout(Duration::from_millis(100));
    let refused = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let ProcessError::Unusable(unusable) = process_error(&refused) else {
        panic!("{refused:?}");
    };
    assert_eq!(unusable.why, Why::Leaving);
    assert_eq!(
        launcher.stop("a", Stop::Force).await.unwrap(),
        Stopped::Forced { pid }
    );
    until_gone(child).await;
}

#[tokio::test]
async fn a_stop_is_not_over_while_a_process_of_the_same_launch_goes_on_as_the_backend() {
    let scene = Scene::new();
    let launcher = scene
        .launcher(|_| {
            let script = "(trap '' TERM; echo $(exec sh -c 'echo $PPID') >child; while :; do sleep 0.01; done) & \
                          trap 'echo told >>told; exit' TERM; \
                          until [ -e child ]; do sleep 0.01; done; echo ready; while :; do sleep 0.01; done";
            Ok((sh(script), Ready::line("ready")))
        })
        .grace(Duration::from_secs(1));
    launcher.get_or_launch("a").await.unwrap();
    let child = number_in(&scene, "child").await;
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    eventually(|| fs::read(scene.files().join("told")).ok()).await;
    // As a backend in Rust says it.
    let record = fs::read_to_string(scene.file(".backend")).unwrap();
    let record = record.lines().map(|line| match line.split_once(' ') {
        Some(("process", rest)) => {
            let (_, place) = rest.rsplit_once(' ').unwrap();
            format!("process {child} {} {place}\n", start_of(child))
        }
        _ => format!("{line}\n"),
    });
    fs::write(scene.file(".backend"), record.collect::<String>()).unwrap();
    let stopped = stopping.await.unwrap();
    assert!(
        matches!(stopped, Err(ProcessError::NotEnded { .. })),
        "{stopped:?}"
    );
    assert!(lives(child));
    launcher.stop("a", Stop::Force).await.unwrap();
    until_gone(child).await;
}

#[tokio::test]
async fn what_a_backend_in_rust_leaves_behind_in_its_group_is_told_to_end() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let mut backend = backend_in(&outer);
        backend.env(WITH_CHILD, "");
        Ok((backend, Ready::notify()))
    });
    scene.gate.launch("a", launcher.clone()).await.unwrap();
    // It does not hold the lock for the backend's life.
    let child = noted(&scene.outer(), "child")[0].parse().unwrap();
    assert!(lives(child));
    launcher.stop("a", Stop::Orderly).await.unwrap();
    until_gone(child).await;
}

#[tokio::test]
async fn an_orderly_end_is_not_charged_and_the_next_start_is_not_refused() {
    let scene = Scene::new();
    let gate = SpawnGate::builder(FileSpawnLock::new(scene.files()).unwrap())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(3600)))
        .stable_after(Duration::from_secs(3600))
        .build();
    // It ends with an exit status that is no success.
    let script = "trap 'exit 1' TERM; echo ready; while :; do sleep 0.01; done";
    let launcher = Launcher::new(&gate, scene.files(), |_| {
        Ok((sh(script), Ready::line("ready")))
    });
    for _ in 0..5 {
        let launched = gate.launch("a", launcher.clone()).await.unwrap();
        assert_eq!(launched.how, How::Led);
        let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
        assert_eq!(
            stopped,
            Stopped::Orderly {
                pid: launched.value.pid
            }
        );
    }
    // To show that this gate counts: one that was not stopped.
    let launched = gate.launch("a", launcher.clone()).await.unwrap();
    kill(launched.value.pid, Signal::KILL);
    until_gone(launched.value.pid).await;
    drop(eventually(|| acquire_spawn_lock(scene.file(".life")).ok()).await);
    let refused = gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("is used up"), "{refused}");
}

#[tokio::test]
async fn it_can_be_ended_by_a_process_that_did_not_launch_it() {
    let scene = Scene::new();
    let launcher = ordinary(&scene);
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    let mut stopper = caller_in(&scene.outer(), "backend", "notify");
    let stopper = stopper.env(crate::kit::ROLE, "stopper").spawn().unwrap();
    assert_eq!(
        result(stopper).await,
        format!("Ok(Orderly {{ pid: {pid} }})")
    );
    assert!(!lives(pid));
    assert_eq!(
        scene.gate.launch("a", launcher.clone()).await.unwrap().how,
        How::Led
    );
    launcher.stop("a", Stop::Orderly).await.unwrap();
    assert!(noted(&scene.outer(), "journal").is_empty());
}

#[tokio::test]
async fn one_that_is_stopped_by_a_signal_can_be_ended_by_force() {
    let scene = Scene::new();
    let launcher = ordinary(&scene).grace(Duration::from_millis(100));
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    freeze(pid);
    let error = launcher.stop("a", Stop::Orderly).await.unwrap_err();
    assert!(matches!(error, ProcessError::NotEnded { .. }), "{error:?}");
    assert!(error.to_string().contains("SIGCONT"), "{error}");
    assert!(lives(pid));
    // It cannot react, so it gets no time.
    let launcher = launcher.grace(AN_AGE);
    let stopped = timeout(LIMIT, launcher.stop("a", Stop::Force)).await;
    assert_eq!(stopped.unwrap().unwrap(), Stopped::Forced { pid });
    assert!(!lives(pid));
}

#[tokio::test]
async fn one_that_is_stopped_by_a_signal_and_continued_in_time_ends_in_an_orderly_way() {
    let scene = Scene::new();
    let launcher = ordinary(&scene);
    let pid = launcher.get_or_launch("a").await.unwrap().value.pid;
    freeze(pid);
    let stopping = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.stop("a", Stop::Orderly).await }
    });
    let terminate = 1 << (Signal::TERM.as_raw() - 1);
    eventually(|| (signals(pid, "ShdPnd") & terminate != 0).then_some(())).await;
    assert!(!stopping.is_finished());
    kill(pid, Signal::CONT);
    let stopped = stopping.await.unwrap().unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid });
}

#[tokio::test]
async fn a_program_that_forks_and_exits_is_found_and_ended() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        Ok((
            sh("(echo is ready; exec sleep 60) & exit 0"),
            Ready::line("is ready"),
        ))
    });
    let backend = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let backend = backend.value;
    assert!(lives(backend.pid));
    assert_eq!(
        launcher.find("a").await.unwrap(),
        Presence::Ready(backend.clone())
    );
    let pid = backend.pid;
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid });
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_program_that_forks_and_exits_and_fails_again_and_again_is_charged() {
    let scene = Scene::new();
    let gate = SpawnGate::builder(FileSpawnLock::new(scene.files()).unwrap())
        .budget(SpawnBudgetConfig::new(2, Duration::from_secs(3600)))
        .stable_after(Duration::from_secs(3600))
        .build();
    let launcher = Launcher::new(&gate, scene.files(), |_| {
        let wait = "while kill -0 $parent 2>/dev/null; do sleep 0.01; done";
        let go_on = "echo is ready; exec sleep 60";
        let script = format!("parent=$$; ({wait}; {go_on}) & exit 0");
        Ok((sh(&script), Ready::line("is ready")))
    });
    for _ in 0..2 {
        let launched = gate.launch("a", launcher.clone()).await.unwrap();
        kill(launched.value.pid, Signal::KILL);
        until_gone(launched.value.pid).await;
    }
    let refused = gate.launch("a", launcher).await.unwrap_err();
    assert!(refused.to_string().contains("is used up"), "{refused}");
}

#[tokio::test]
async fn what_started_the_main_process_is_ended_by_force_too() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((steps(&["ready-as-child"]), Ready::notify())));
    let launcher = launcher.grace(Duration::from_millis(300));
    let backend = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let main = backend.value.pid;
    let status = fs::read_to_string(format!("/proc/{main}/stat")).unwrap();
    let parent = status.rsplit_once(')').unwrap().1.split_whitespace().nth(1);
    let parent: u32 = parent.unwrap().parse().unwrap();
    // The parent of the main process waits for it, and ends with it.
    assert_ne!(
        launcher.stop("a", Stop::Force).await.unwrap(),
        Stopped::NotRunning
    );
    until_gone(main).await;
    until_gone(parent).await;
}

/// A program that hands over to another one and exits once the file `go` is there.
fn that_hands_over(scene: &Scene) -> Launcher {
    let outer = scene.outer();
    let socket = outer.join("program.sock");
    scene.launcher(move |_| {
        // As `pg_ctl` does: it waits until the server accepts, and some more here, and exits.
        let mut command =
            sh("\"$0\" role --exact --nocapture & until [ -e \"$1\" ]; do sleep 0.01; done");
        command
            .arg(std::env::current_exe().unwrap())
            .arg(outer.join("go"));
        for (name, value) in role_in("program", &outer).get_envs() {
            command.env(name, value.unwrap());
        }
        Ok((command, Ready::accepts(socket.clone())))
    })
}

#[tokio::test]
async fn a_program_that_hands_over_once_it_is_ready_and_exits_is_found_and_ended() {
    let scene = Scene::new();
    let launcher = that_hands_over(&scene);
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    fs::write(scene.outer().join("go"), "").unwrap();
    until_gone(first.pid).await;
    let found = launcher.clone().version("2").find("a").await;
    assert!(
        matches!(&found, Err(ProcessError::Unusable(unusable)) if matches!(unusable.why, Why::OtherVersion { .. })),
        "{found:?}"
    );
    let found = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(found.how, How::Discovered);
    let pid = found.value.pid;
    assert!(pid != first.pid && lives(pid));
    let found = launcher.find("a").await.unwrap();
    assert!(matches!(found, Presence::Ready(backend) if backend.pid == pid));
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid });
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_program_that_handed_over_and_was_not_found_since_is_ended() {
    let scene = Scene::new();
    let launcher = that_hands_over(&scene);
    let first = launcher.get_or_launch("a").await.unwrap().value.pid;
    fs::write(scene.outer().join("go"), "").unwrap();
    until_gone(first).await;
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert!(
        matches!(stopped, Stopped::Orderly { pid } if pid != first && !lives(pid)),
        "{stopped:?}"
    );
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn what_a_newer_launch_has_started_is_not_taken_for_the_backend_of_an_older_record() {
    let scene = Scene::new();
    let outer = scene.outer();
    let socket = outer.join("program.sock");
    let launcher = scene.launcher(move |_| {
        let ready = Ready::accepts(socket.clone());
        Ok((role_in("program", &outer), ready))
    });
    let launched = scene.gate.launch("a", launcher.clone()).await;
    let backend = launched.unwrap().value;
    // As a look finds it that has read the last record right before the launch replaced it.
    let mut ended = sh("exit 0").spawn().unwrap();
    ended.wait().unwrap();
    let record = fs::read_to_string(scene.file(".backend")).unwrap();
    let older = record.lines().map(|line| match line.split_once(' ') {
        Some(("launch", _)) => format!("launch {}\n", backend.launch - 1),
        Some(("process", rest)) => {
            let (_, place) = rest.rsplit_once(' ').unwrap();
            format!("process {} 1 {place}\n", ended.id())
        }
        _ => format!("{line}\n"),
    });
    fs::write(scene.file(".backend"), older.collect::<String>()).unwrap();
    let found = launcher.find("a").await;
    assert!(
        matches!(&found, Err(ProcessError::Unusable(unusable)) if matches!(unusable.why, Why::NoProcess { .. })),
        "{found:?}"
    );
    fs::write(scene.file(".backend"), record).unwrap();
    launcher.stop("a", Stop::Force).await.unwrap();
    assert!(!lives(backend.pid));
}
