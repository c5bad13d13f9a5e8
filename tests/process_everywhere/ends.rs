//! Ending: by a stop, with the launcher, by being given up, and for being idle.

use spawn_gate::process::{Presence, ProcessError, Ready, Stop, Stopped, Why};

use crate::children::{IDLE, LOADS, WITH_CHILD, use_it};
use crate::kit::{Scene, crash, process_error, result, start, until_gone, until_refused};
use crate::system::{kill, lives};

const NONE: (&str, &str) = ("UNUSED", "");

#[tokio::test]
async fn a_backend_in_rust_is_stopped_in_an_orderly_way_and_not_charged() {
    let scene = Scene::new();
    let launcher = scene.rust();
    assert_eq!(
        launcher.stop("a", Stop::Orderly).await.unwrap(),
        Stopped::NotRunning
    );
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
    assert_eq!(scene.noted("end ").await, "Stopped");
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 0);
    let again = launcher.stop("a", Stop::Force).await.unwrap();
    assert_eq!(again, Stopped::NotRunning);
}

#[tokio::test]
async fn a_program_is_ended_or_it_is_said_that_it_takes_force() {
    let scene = Scene::new();
    let launcher = scene.program();
    let pid = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value
        .pid;
    let orderly = launcher.stop("a", Stop::Orderly).await;
    if cfg!(unix) {
        assert_eq!(orderly.unwrap(), Stopped::Orderly { pid });
        return;
    }
    let Err(ProcessError::Unusable(unusable)) = orderly else {
        panic!("{orderly:?}");
    };
    assert_eq!(unusable.why, Why::CannotBeAsked);
    let forced = launcher.stop("a", Stop::Force).await.unwrap();
    assert_eq!(forced, Stopped::Forced { pid });
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn what_a_backend_started_ends_with_it_by_force() {
    let scene = Scene::new();
    let launcher = scene.launcher("program with child", NONE, Ready::line("it listens"));
    scene.gate.launch("a", launcher.clone()).await.unwrap();
    let child = scene.noted("child ").await;
    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    assert!(stopped != Stopped::NotRunning);
    until_refused(&child).await;
}

#[tokio::test]
async fn an_attached_backend_ends_when_its_launcher_is_killed() {
    let scene = Scene::new();
    let mut caller = start(&mut scene.role("attached caller"));
    scene.noted("launched").await;
    let Presence::Ready(backend) = scene.rust().find("a").await.unwrap() else {
        panic!("it is not there");
    };
    caller.kill().unwrap();
    until_refused(&backend.endpoint.unwrap().tcp().unwrap().to_string()).await;
    result(caller).await;
    until_gone(&scene.rust()).await;
}

#[tokio::test]
async fn a_launch_that_is_given_up_ends_its_process() {
    for is_attached in [false, true] {
        let scene = Scene::new();
        let mut launcher = scene.launcher("never ready", NONE, Ready::line("it listens"));
        if is_attached {
            launcher = launcher.attached();
        }
        let launching = {
            let (gate, launcher) = (scene.gate.clone(), launcher.clone());
            tokio::spawn(async move { gate.launch("a", launcher).await })
        };
        let address = scene.noted("listens ").await;
        assert!(scene.gate.abort("a").await);
        launching.await.unwrap().unwrap_err();
        until_refused(&address).await;
    }
}

#[tokio::test]
async fn a_backend_that_leaves_for_being_idle_fails_no_call() {
    let scene = Scene::new();
    let launcher = scene.launcher("backend", (IDLE, "5"), Ready::notify());
    let mut user = scene.role("user");
    let user = start(user.env(IDLE, "5"));
    use_it(&launcher, 30).await.unwrap();
    assert_eq!(result(user).await, "served");
    launcher.stop("a", Stop::Orderly).await.unwrap();
    assert!(scene.journal().contains(&"end Idle".to_owned()));
}

#[tokio::test]
async fn a_child_of_a_backend_in_rust_does_not_keep_it_there() {
    let scene = Scene::new();
    let launcher = scene.launcher("backend", (WITH_CHILD, ""), Ready::notify());
    let launched = scene.gate.launch("a", launcher.clone()).await;
    let child = scene.noted("child's process ").await.parse().unwrap();
    crash(&launched.unwrap().value).await;
    if cfg!(windows) {
        // Under wine it does.
        kill(child);
        return until_gone(&launcher).await;
    }
    until_gone(&launcher).await;
    assert!(lives(child));
    kill(child);
}

#[tokio::test]
async fn a_stop_by_force_during_the_start_of_a_backend_in_rust_is_no_success_of_that() {
    let scene = Scene::new();
    let launcher = scene.launcher("backend", (LOADS, ""), Ready::notify());
    let launching = {
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        tokio::spawn(async move { gate.launch("a", launcher).await })
    };
    scene.noted("loads").await;
    // It does not listen to requests yet, so it would be waited for.
    let stopped = launcher
        .clone()
        .grace(std::time::Duration::from_millis(50))
        .stop("a", Stop::Force)
        .await;
    assert!(stopped.unwrap() != Stopped::NotRunning);
    let error = launching.await.unwrap().unwrap_err();
    assert!(
        matches!(process_error(&error), ProcessError::Stopped { .. }),
        "{error:?}"
    );
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 0);
}

#[tokio::test]
async fn an_attached_process_can_launch_a_detached_backend() {
    let scene = Scene::new();
    let caller = scene
        .launcher("caller", NONE, Ready::line("RESULT Led"))
        .attached();
    scene.gate.launch("caller", caller).await.unwrap();
    if cfg!(windows) {
        // The job of an attached process lets nobody go: the backend ended with it.
        return;
    }
    let launcher = scene.rust();
    let Presence::Ready(backend) = launcher.find("a").await.unwrap() else {
        panic!("it is not there");
    };
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
}
