//! Launching: when a backend is ready, what is said of one that fails, what it inherits, and that nothing is left of one that was
//! given up.

use spawn_gate::How;
use spawn_gate::process::{Presence, Ready, Stop, Stopped};

use crate::kit::{Scene, sh, until_gone};

/// Plays the role of a child process.
pub(crate) fn play(_role: &str) {}

#[tokio::test]
async fn a_backend_is_ready_once_it_has_written_its_line() {
    let scene = Scene::new();
    let outer = scene.temporary.path().to_owned();
    let launcher = scene.launcher(move |_| {
        let go = outer.join("go").display().to_string();
        let script = format!("until [ -e {go} ]; do sleep 0.01; done; echo all is ready; sleep 60");
        Ok((sh(&script), Ready::line("is ready")))
    });
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    while !matches!(launcher.find("a").await, Ok(Presence::Starting { .. })) {
        tokio::task::yield_now().await;
    }
    assert!(!launching.is_finished());
    std::fs::write(scene.temporary.path().join("go"), "").unwrap();
    let launched = launching.await.unwrap().unwrap();
    assert_eq!(launched.how, How::Led);
    let backend = launched.value;
    assert_eq!(
        launcher.find("a").await.unwrap(),
        Presence::Ready(backend.clone())
    );

    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    assert_ne!(stopped, Stopped::NotRunning);
    until_gone(backend.pid).await;
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_program_with_a_relative_path_writes_to_the_log_too() {
    let scene = Scene::new();
    let here = std::env::current_dir().unwrap();
    let up: std::path::PathBuf = here.components().skip(1).map(|_| "..").collect();
    let launcher = scene.launcher(move |_| {
        let mut command = std::process::Command::new(up.join("bin/sh"));
        command.args(["-c", "read line; echo last words; exit 3"]);
        Ok((command, Ready::line("is ready")))
    });
    let error = scene.gate.launch("a", launcher).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.ends_with("exit status: 3: last words"), "{source}");
}

#[tokio::test]
async fn a_working_directory_that_does_not_exist_is_named_and_not_charged() {
    let scene = Scene::new();
    let missing = scene.temporary.path().join("missing");
    let launcher = scene.launcher({
        let missing = missing.clone();
        move |_| {
            let mut command = sh("echo ready; sleep 60");
            command.current_dir(&missing);
            Ok((command, Ready::line("ready")))
        }
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&missing.display().to_string()), "{text}");
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 0);
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}
