//! Launching and finding.

use std::fs;
use std::process::Command;

use spawn_gate::process::{Presence, ProcessError, Ready, Stop, Stopped, Unusable, Why};
use spawn_gate::{BoxError, GateError};

use crate::children::call;
use crate::kit::{
    Launcher, Scene, eventually, process_error, result, start, until_gone, until_nobody_is_there,
};

const NONE: (&str, &str) = ("UNUSED", "");

#[tokio::test]
async fn a_backend_in_rust_is_ready_once_it_says_so_and_is_found_where_it_says() {
    let scene = Scene::new();
    let launcher = scene.rust();
    let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let backend = launched.value;
    assert_eq!(call(&backend).await.unwrap(), backend.pid);
    assert_eq!(scene.journal(), [format!("begin {}", backend.launch)]);
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(backend));
    launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_program_is_ready_once_it_writes_a_line() {
    let scene = Scene::new();
    let launcher = scene.program();
    let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let pid = launched.value.pid;
    assert_eq!(scene.noted("begin ").await, pid.to_string());
    let log = fs::read_to_string(&launched.value.log).unwrap();
    assert!(log.contains("\nit listens at 127.0.0.1:"), "{log}");
    let stopped = launcher.stop("a", Stop::Force).await.unwrap();
    assert!(stopped != Stopped::NotRunning);
}

#[tokio::test]
async fn a_program_is_ready_once_it_accepts_connections() {
    let scene = Scene::new();
    // Another test may get the port before the program does: then this one says so.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let command = move || -> Result<_, BoxError> {
        let mut python = Command::new("python3");
        python.args(["-m", "http.server", "--bind", "127.0.0.1"]);
        python.arg(address.port().to_string());
        Ok((python, Ready::accepts(address)))
    };
    let files = scene.path().join("files");
    let launcher = Launcher::new(&scene.gate, files, move |_| command());
    match scene.gate.launch("a", launcher.clone()).await {
        Ok(launched) => assert_eq!(launched.value.endpoint.unwrap().tcp(), Some(address)),
        Err(error) => match process_error(&error) {
            ProcessError::NotFound { .. } => println!("SKIPPED: there is no python3"),
            error => panic!("{error}"),
        },
    }
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn a_program_that_ends_before_it_is_ready_is_an_error_with_its_status_and_words() {
    let scene = Scene::new();
    let launcher = scene.launcher("fails", NONE, Ready::line("it listens"));
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let ProcessError::Ended { status, words, .. } = process_error(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(3));
    assert!(
        words.ends_with("reads its index | the index is broken"),
        "{words}"
    );
    until_nobody_is_there(&launcher).await;
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 1);
}

#[tokio::test]
async fn a_program_that_does_not_exist_or_is_none_is_named() {
    let scene = Scene::new();
    let text = scene.path().join("text.exe");
    fs::write(&text, "no program").unwrap();
    let missing = scene.path().join("missing");
    for (program, expected) in [(missing, "there is no program"), (text, "cannot execute")] {
        let files = scene.path().join("files");
        let named = program.display().to_string();
        let launcher = Launcher::new(&scene.gate, files, move |_| {
            Ok((Command::new(&program), Ready::notify()))
        });
        let error = scene.gate.launch("a", launcher).await.unwrap_err();
        let error = process_error(&error).to_string();
        assert_eq!(error, format!("{expected} {named}"));
    }
}

#[tokio::test]
async fn ten_processes_at_once_start_one_backend() {
    let scene = Scene::new();
    let callers: Vec<_> = (0..10).map(|_| start(&mut scene.role("caller"))).collect();
    let mut results = Vec::new();
    for caller in callers {
        results.push(result(caller).await);
    }
    let led = results.iter().filter(|result| result.starts_with("Led"));
    assert_eq!(led.count(), 1, "{results:?}");
    let pid = results[0].split_once(' ').unwrap().1.to_owned();
    assert!(
        results.iter().all(|result| result.ends_with(&pid)),
        "{results:?}"
    );
    assert_eq!(scene.journal().len(), 1);
    scene.rust().stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_detached_backend_lives_on_after_its_launcher() {
    let scene = Scene::new();
    let launched = result(start(&mut scene.role("caller"))).await;
    let Presence::Ready(backend) = scene.rust().find("a").await.unwrap() else {
        panic!("{launched}");
    };
    assert_eq!(launched, format!("Led {}", backend.pid));
    assert_eq!(call(&backend).await.unwrap(), backend.pid);
    let stopped = scene.rust().stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
}

#[tokio::test]
async fn a_backend_whose_record_was_deleted_is_there_and_no_second_one_is_launched() {
    let scene = Scene::new();
    let launcher = scene
        .rust()
        .look_timeout(std::time::Duration::from_millis(100));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    fs::write(scene.file(".backend"), "junk").unwrap();
    // The backend writes its record again if it is a Rust program, within a second.
    match scene.gate.launch("a", launcher.clone()).await {
        Ok(found) => assert_eq!(found.value.pid, backend.pid),
        Err(error) => {
            let ProcessError::Unusable(unusable) = process_error(&error) else {
                panic!("{error:?}");
            };
            assert!(matches!(unusable.why, Why::NoRecord { .. }), "{unusable}");
            assert_eq!(unusable.pid, Some(backend.pid));
        }
    }
    let begun = scene.journal().len();
    assert_eq!(begun, 1, "a second one was launched");
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn a_backend_that_crashed_is_gone_and_the_next_call_launches_another() {
    let scene = Scene::new();
    let launcher = scene.rust();
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    crate::kit::crash(&first).await;
    until_gone(&launcher).await;
    let second = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert!(second.launch > first.launch);
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_backend_of_another_version_is_not_used() {
    let scene = Scene::new();
    let old = scene.rust().version("1");
    let backend = scene.gate.launch("a", old.clone()).await.unwrap().value;
    let error = scene.gate.launch("a", scene.rust().version("2")).await;
    let error = error.unwrap_err();
    let ProcessError::Unusable(unusable) = process_error(&error) else {
        panic!("{error:?}");
    };
    let Unusable { pid, version, .. } = &**unusable;
    assert_eq!((*pid, version.as_deref()), (Some(backend.pid), Some("1")));
    assert!(matches!(error, GateError::Launch(_)));
    old.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_log_is_bounded() {
    let scene = Scene::new();
    let launcher = scene.rust().log_limit(1_000);
    fs::create_dir_all(scene.path().join("files")).unwrap();
    fs::write(launcher.log_path("a"), "0123456789\n".repeat(1_000)).unwrap();
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let text = fs::read_to_string(&backend.log).unwrap();
    assert!(text.len() < 1_500, "{} bytes", text.len());
    assert!(text.contains("0123456789\n--- launch"), "{text}");
    launcher.stop("a", Stop::Orderly).await.unwrap();
    eventually(|| (!scene.journal().is_empty()).then_some(())).await;
}
