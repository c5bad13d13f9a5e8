//! A launch that is given up leaves no process; a healthy backend stays.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spawn_gate::error::{LaunchError, Stage};
use spawn_gate::process::{Presence, ProcessError, Ready};
use spawn_gate::{Acquired, BackendLauncher, GateError, How, acquire_spawn_lock};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::kit::{
    Gate, LIMIT, Launcher, Scene, eventually, lives, sh, until_gone, until_nobody_is_there,
};
use crate::roles::{Caller, cause, end, launched};
use crate::scenes::{
    AN_AGE, file_of_a, group_of, kill, launching, number_in, patient, set_clock_forward, touch,
    until_no_member,
};

/// Never ready. It and its child ignore SIGTERM.
const STUBBORN: &str = "trap '' TERM; sleep 60 & echo $! >child; echo $$ >pid; wait; sleep 60";

/// Never ready, and ends when asked to.
const MEEK: &str = "sleep 60 & echo $! >child; echo $$ >pid; wait";

fn never_ready(scene: &Scene, script: &'static str) -> Launcher {
    let launcher = scene.launcher(move |_| Ok((sh(script), Ready::line("is ready"))));
    launcher
        .grace(Duration::from_millis(200))
        .start_timeout(AN_AGE * 10)
}

/// A backend that is starting, and its child.
struct Family {
    pid: u32,
    child: u32,
}

impl Family {
    async fn of(scene: &Scene) -> Self {
        Self {
            pid: number_in(scene, "pid").await,
            child: number_in(scene, "child").await,
        }
    }

    /// Waits until both are gone, and the backend has been reaped, too.
    async fn is_gone(&self, scene: &Scene) {
        until_gone(self.child).await;
        let pid = self.pid;
        eventually(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())).await;
        until_no_member(pid).await;
        for name in ["pid", "child"] {
            fs::remove_file(scene.files().join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_backend_that_is_not_ready_in_time_is_gone_with_its_group_when_its_launch_fails() {
    for script in [STUBBORN, MEEK] {
        for is_attached in [false, true] {
            let scene = Scene::new();
            let gate = patient(&scene);
            let asked = Arc::new(Notify::new());
            let launcher = scene.launcher({
                let asked = Arc::clone(&asked);
                move |_| {
                    let asked = Arc::clone(&asked);
                    let probe = move || {
                        asked.notify_one();
                        std::future::pending()
                    };
                    Ok((sh(script), Ready::probe(probe)))
                }
            });
            // What ends when it is asked to is not waited for any longer.
            let grace = match script {
                MEEK => AN_AGE,
                _ => Duration::from_millis(200),
            };
            let mut launcher = launcher.start_timeout(AN_AGE).grace(grace);
            if is_attached {
                launcher = launcher.attached();
            }
            let launching = launching(&gate, &launcher);
            let family = Family::of(&scene).await;
            asked.notified().await;
            set_clock_forward(AN_AGE * 2).await;
            let error = timeout(LIMIT, launching)
                .await
                .unwrap()
                .unwrap()
                .unwrap_err();
            assert!(
                matches!(cause(&error), ProcessError::NotReady { pid, .. } if *pid == family.pid),
                "{error:?}"
            );
            assert!(!Path::new(&format!("/proc/{}", family.pid)).exists());
            family.is_gone(&scene).await;
            until_nobody_is_there(&launcher).await;
        }
    }
}

#[tokio::test]
async fn three_launch_timeouts_leave_no_process() {
    let scene = Scene::new();
    let gate = patient(&scene);
    let launcher = never_ready(&scene, STUBBORN).start_timeout(AN_AGE * 1000);
    for _ in 0..3 {
        let launching = launching(&gate, &launcher);
        let family = Family::of(&scene).await;
        set_clock_forward(AN_AGE * 200).await;
        let error = launching.await.unwrap().unwrap_err();
        assert!(
            matches!(&error, GateError::Timeout(timeout) if timeout.stage == Stage::Launch),
            "{error:?}"
        );
        family.is_gone(&scene).await;
        until_nobody_is_there(&launcher).await;
    }
}

#[tokio::test]
async fn the_next_launch_waits_until_one_that_was_given_up_has_ended() {
    let scene = Scene::new();
    let launcher = never_ready(&scene, STUBBORN);
    let first = launching(&scene.gate, &launcher);
    let family = Family::of(&scene).await;
    assert!(scene.gate.abort("a").await);
    first.await.unwrap().unwrap_err();
    let next = scene.launcher(move |_| {
        Ok((
            sh("echo $$ >next; echo is ready; exec sleep 60"),
            Ready::line("is ready"),
        ))
    });
    let backend = scene.gate.launch("a", next.clone()).await.unwrap().value;
    assert!(!lives(family.pid));
    family.is_gone(&scene).await;
    end(&next, &backend).await;
}

#[tokio::test]
async fn the_next_launch_waits_as_long_as_one_that_was_given_up_may_take_to_end() {
    let scene = Scene::new();
    let gate = patient(&scene);
    let (begun, given_up) = (Arc::new(Notify::new()), Arc::new(Mutex::new(None)));
    let launcher = scene.launcher({
        let (begun, given_up) = (Arc::clone(&begun), Arc::clone(&given_up));
        let life = file_of_a(&scene, "life");
        move |_| {
            // As one that the last launch gave up has it.
            *given_up.lock().unwrap() = Some(acquire_spawn_lock(&life)?);
            begun.notify_one();
            let script = "echo is ready; exec sleep 60";
            Ok((sh(script), Ready::line("is ready")))
        }
    });
    let launcher = launcher.grace(AN_AGE);
    let launching = launching(&gate, &launcher);
    begun.notified().await;
    // It tries again and again meanwhile.
    for _ in 0..50 {
        set_clock_forward(AN_AGE / 100).await;
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        assert!(!launching.is_finished());
    }
    drop(given_up.lock().unwrap().take());
    let backend = launching.await.unwrap().unwrap().value;
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_launch_that_is_aborted_leaves_no_process() {
    for script in [STUBBORN, MEEK] {
        let scene = Scene::new();
        let launcher = never_ready(&scene, script);
        let launching = launching(&scene.gate, &launcher);
        let family = Family::of(&scene).await;
        assert!(scene.gate.abort("a").await);
        let error = launching.await.unwrap().unwrap_err();
        assert!(
            matches!(error, GateError::Launch(LaunchError::Aborted { .. })),
            "{error:?}"
        );
        family.is_gone(&scene).await;
        until_nobody_is_there(&launcher).await;
    }
}

#[tokio::test]
async fn what_a_backend_that_is_given_up_has_started_gets_the_grace_time_too() {
    let scene = Scene::new();
    let child = "trap 'echo $$ >told; until [ -e go ]; do sleep 0.01; done; echo $$ >done; exit' TERM; \
                 echo $$ >child; while :; do sleep 0.01; done";
    let launcher = scene.launcher(move |_| {
        let mut parent = sh("sh -c \"$0\" & wait");
        parent.arg(child);
        Ok((parent, Ready::line("is ready")))
    });
    let launcher = launcher.grace(LIMIT);
    let launching = launching(&scene.gate, &launcher);
    let child = number_in(&scene, "child").await;
    let leader = group_of(child);
    assert!(scene.gate.abort("a").await);
    launching.await.unwrap().unwrap_err();
    assert_eq!(number_in(&scene, "told").await, child);
    until_gone(leader).await;
    touch(&scene, "go");
    assert_eq!(number_in(&scene, "done").await, child);
    until_gone(child).await;
}

#[tokio::test]
async fn a_launch_that_loses_its_lock_leaves_no_process() {
    for ignores in ["", "trap '' TERM; "] {
        let scene = Scene::new();
        let script = "sleep 60 & echo $! >child; echo $$ >pid; \
                      until [ -e go ]; do sleep 0.01; done; echo is ready; wait; sleep 100";
        let script = format!("{ignores}{script}");
        let launcher = scene.launcher(move |_| Ok((sh(&script), Ready::line("is ready"))));
        let launcher = launcher.grace(Duration::from_millis(200));
        let launching = launching(&scene.gate, &launcher);
        let family = Family::of(&scene).await;
        fs::remove_file(file_of_a(&scene, "lock")).unwrap();
        touch(&scene, "go");
        let error = launching.await.unwrap().unwrap_err();
        assert!(
            matches!(error, GateError::Launch(LaunchError::LockLost { .. })),
            "{error:?}"
        );
        family.is_gone(&scene).await;
        until_nobody_is_there(&launcher).await;
    }
}

/// Waits until the start of the process has returned, and its name has been written.
async fn until_named(scene: &Scene) {
    let life = file_of_a(scene, "life");
    eventually(|| {
        let text = fs::read_to_string(&life).ok();
        text.filter(|text| text.starts_with("process "))
    })
    .await;
}

#[test]
fn a_launch_whose_runtime_ends_leaves_no_process() {
    for workers in [None, Some(2)] {
        for script in [STUBBORN, MEEK] {
            for is_attached in [false, true] {
                let scene = Scene::new();
                let mut launcher = never_ready(&scene, script);
                if is_attached {
                    launcher = launcher.attached();
                }
                let runtime = match workers {
                    None => tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build(),
                    Some(_) => tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .enable_all()
                        .build(),
                };
                let runtime = runtime.unwrap();
                let family = runtime.block_on(async {
                    drop(launching(&scene.gate, &launcher));
                    until_named(&scene).await;
                    Family::of(&scene).await
                });
                drop(runtime);
                let rest = tokio::runtime::Runtime::new().unwrap();
                rest.block_on(until_gone(family.pid));
                rest.block_on(until_gone(family.child));
                rest.block_on(until_no_member(family.pid));
            }
        }
    }
}

#[test]
fn a_launch_that_is_dropped_outside_of_a_runtime_leaves_no_process() {
    let scene = Scene::new();
    let launcher = never_ready(&scene, STUBBORN);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let acquired = runtime.block_on(scene.gate.acquire("a")).unwrap();
    let Acquired::Led(permit) = acquired else {
        panic!("{acquired:?}");
    };
    let mut launch = launcher.launch(&permit);
    let family = runtime.block_on(async {
        let begun = async {
            until_named(&scene).await;
            Family::of(&scene).await
        };
        tokio::select! {
            launched = &mut launch => panic!("{launched:?}"),
            family = begun => family,
        }
    });
    drop(launch);
    runtime.block_on(async {
        family.is_gone(&scene).await;
        drop(permit);
    });
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_end_a_launch_that_others_may_wait_for() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script =
            "echo $$ >pid; until [ -e go ]; do sleep 0.01; done; echo is ready; exec sleep 60";
        Ok((sh(script), Ready::line("is ready")))
    });
    let first = launching(&scene.gate, &launcher);
    let pid = number_in(&scene, "pid").await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    touch(&scene, "go");
    let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_ne!(launched.how, How::Led);
    assert_eq!(launched.value.pid, pid);
    end(&launcher, &launched.value).await;
}

#[test]
fn a_healthy_backend_stays_when_its_launch_returns_and_the_runtime_ends() {
    let scene = Scene::new();
    let gate: Gate = scene.gate.clone();
    let launcher =
        scene.launcher(|_| Ok((sh("echo is ready; exec sleep 60"), Ready::line("is ready"))));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let backend = runtime
        .block_on(gate.launch("a", launcher.clone()))
        .unwrap()
        .value;
    drop((runtime, gate));
    let another = tokio::runtime::Runtime::new().unwrap();
    let found = another.block_on(launcher.find("a")).unwrap();
    assert_eq!(found, Presence::Ready(backend.clone()));
    another.block_on(end(&launcher, &backend));
}

#[tokio::test]
async fn a_healthy_backend_stays_when_its_caller_ends() {
    let scene = Scene::new();
    let caller = Caller::new(&scene, "echo is ready; exec sleep 60");
    let mut caller = caller.command().spawn().unwrap();
    let pid = launched(&scene).await;
    assert!(caller.wait().unwrap().success());
    let launcher = scene.launcher(|_| unreachable!());
    let found = launcher.find("a").await.unwrap();
    assert!(
        matches!(&found, Presence::Ready(backend) if backend.pid == pid),
        "{found:?}"
    );
    kill(pid);
}

#[tokio::test]
async fn a_start_that_takes_too_long_is_charged_also_if_the_backend_notes_that_it_was_told_to_end()
{
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        // As a backend in Rust that waits for the signal while it starts.
        let script = "trap 'sed -i s/starting/leaving/ *.backend; exit 0' TERM; \
                      while :; do sleep 0.01; done";
        Ok((sh(script), Ready::line("never")))
    });
    let launcher = launcher.start_timeout(Duration::from_millis(500));
    let error = scene.gate.launch("a", launcher).await.unwrap_err();
    assert!(
        matches!(cause(&error), ProcessError::NotReady { .. }),
        "{error:?}"
    );
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 1);
}
