//! Promise 6: the lock for a backend's life.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate::How;
use spawn_gate::admin::inspect_spawn_lock;
use spawn_gate::process::{Presence, ProcessError, Ready, Stop, Stopped};

use tokio::net::{TcpSocket, TcpStream};

use crate::backends::{WITH_CHILD, backend_in, caller_in, noted, process_error, result, role_in};
use crate::kit::{Scene, eventually, lives, sh, until_gone};

pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Stops a process by a signal, and waits until it has stopped.
pub(crate) fn freeze(pid: u32) {
    kill(pid, Signal::STOP);
    let stat = format!("/proc/{pid}/stat");
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
}

/// A listener with as many callers as may wait: a further connection is not made.
pub(crate) async fn deaf_listener() -> (tokio::net::TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut callers = Vec::new();
    let connect = || tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address));
    while let Ok(caller) = connect().await {
        callers.push(caller.unwrap());
    }
    (listener, callers)
}

fn is_held(life: &Path) -> bool {
    inspect_spawn_lock(life).unwrap().is_held
}

/// Launched by another process, which has ended: this one forks meanwhile, and has no copy of the descriptor.
async fn launched_elsewhere(scene: &Scene, script: &str) -> u32 {
    let command = format!("sh {script}");
    let caller = caller_in(&scene.outer(), &command, "line ready").spawn();
    let result = result(caller.unwrap()).await;
    let pid = result.strip_prefix("Led ");
    pid.unwrap_or_else(|| panic!("{result}")).parse().unwrap()
}

#[tokio::test]
async fn the_lock_is_held_by_the_backend_itself_and_free_the_moment_it_is_gone_however_it_died() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
    let exit = scene.outer().join("exit");
    let script = format!(
        "echo ready; until [ -e {exit} ]; do read _ <{fifo}; done; exit 1",
        exit = exit.display(),
        fifo = scene.outer().join("fifo").display()
    );
    let made = std::process::Command::new("mkfifo")
        .arg(scene.outer().join("fifo"))
        .status();
    assert!(made.unwrap().success());
    for death in [
        Some(Signal::KILL),
        Some(Signal::TERM),
        Some(Signal::SEGV),
        None,
    ] {
        let pid = launched_elsewhere(&scene, &script).await;
        let life = scene.file(".life");
        assert!(is_held(&life));
        assert!(
            matches!(launcher.find("a").await, Ok(Presence::Ready(backend)) if backend.pid == pid)
        );
        match death {
            Some(signal) => kill(pid, signal),
            None => {
                fs::write(&exit, "").unwrap();
                // Lets it go on.
                let fifo = scene.outer().join("fifo");
                let opened =
                    tokio::task::spawn_blocking(|| fs::OpenOptions::new().write(true).open(fifo));
                opened.await.unwrap().unwrap();
            }
        }
        until_gone(pid).await;
        assert!(!is_held(&life), "{death:?}");
        assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
    }
}

#[tokio::test]
async fn the_lock_outlives_a_launcher_that_was_killed() {
    let scene = Scene::new();
    let outer = scene.outer();
    let script = "sh echo begun >>begun; exec sleep 60";
    let mut caller = caller_in(&outer, script, "line ready").spawn().unwrap();
    eventually(|| fs::read(scene.files().join("begun")).ok()).await;
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert!(is_held(&scene.file(".life")));

    let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
    let presence = launcher.find("a").await.unwrap();
    assert!(
        matches!(presence, Presence::Starting { .. }),
        "{presence:?}"
    );
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    let Stopped::Orderly { pid } = stopped else {
        panic!("{stopped:?}");
    };
    assert!(!lives(pid));
    assert!(!is_held(&scene.file(".life")));
}

#[tokio::test]
async fn there_and_gone_and_cannot_tell_are_three_answers() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        Ok((
            sh("echo launched >>count; echo ready; exec sleep 60"),
            Ready::line("ready"),
        ))
    });
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let there = Presence::Ready(backend.clone());
    assert_eq!(launcher.find("a").await.unwrap(), there);

    let life = scene.file(".life");
    let aside = scene.outer().join("aside");
    fs::rename(&life, &aside).unwrap();
    fs::create_dir(&life).unwrap();
    let error = launcher.find("a").await.unwrap_err();
    assert!(matches!(error, ProcessError::Directory(_)), "{error:?}");
    let error = launcher.stop("a", Stop::Force).await.unwrap_err();
    assert!(matches!(error, ProcessError::Directory(_)), "{error:?}");
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(matches!(process_error(&error), ProcessError::Directory(_)));

    fs::remove_dir(&life).unwrap();
    fs::rename(&aside, &life).unwrap();
    assert_eq!(launcher.find("a").await.unwrap(), there);
    assert_eq!(noted(&scene.files(), "count").len(), 1);
    launcher.stop("a", Stop::Force).await.unwrap();
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn while_the_lock_is_held_no_second_backend_is_launched_whatever_the_record_says() {
    let scene = Scene::new();
    let launcher = scene
        .launcher(|_| {
            Ok((
                sh("echo launched >>count; echo ready; exec sleep 60"),
                Ready::line("ready"),
            ))
        })
        .look_timeout(Duration::from_millis(50));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let path = scene.file(".backend");
    let record = fs::read_to_string(&path).unwrap();
    let of_launch = format!("launch {}\n", backend.launch);
    let nobody = "process 4194303 1 -\nend\n";
    let records = [
        None,
        Some(String::new()),
        Some(record[..record.len() / 2].to_owned()),
        Some("\0junk\u{fffd}\n".repeat(1000)),
        Some(record.replace(&of_launch, "launch 7\n")),
        Some(record.replace("state ready", "state starting")),
        Some(record.replace("state ready", "state leaving")),
        Some(record.replace("end\n", nobody)),
    ];
    for text in records {
        match &text {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let found = launcher.find("a").await;
        assert!(!matches!(found, Ok(Presence::Gone)), "{text:?}");
        match scene.gate.launch("a", launcher.clone()).await {
            Ok(found) => {
                assert_eq!(found.how, How::Discovered);
                assert_eq!(found.value.pid, backend.pid);
            }
            Err(error) => assert!(
                matches!(process_error(&error), ProcessError::Unusable(_)),
                "{error:?}"
            ),
        }
        assert_eq!(noted(&scene.files(), "count").len(), 1, "{text:?}");
        assert!(lives(backend.pid));
    }
    fs::write(&path, record).unwrap();
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn a_rust_backend_whose_inherited_descriptor_was_closed_takes_the_lock_itself() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let backend = role_in("backend without descriptors", &outer);
        Ok((backend, Ready::notify()))
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let life = scene.file(".life");
    assert!(is_held(&life));
    assert_eq!(
        launcher.find("a").await.unwrap(),
        Presence::Ready(backend.clone())
    );
    kill(backend.pid, Signal::KILL);
    until_gone(backend.pid).await;
    eventually(|| (!is_held(&life)).then_some(())).await;
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_program_that_closes_the_descriptor_counts_as_there_as_long_as_its_process_lives() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let program = role_in("program without descriptors", &outer);
        Ok((program, Ready::line("it listens")))
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert!(!is_held(&scene.file(".life")));
    fs::remove_file(scene.file(".backend")).unwrap();
    let launcher = launcher.look_timeout(Duration::from_millis(50));
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let error = process_error(&error);
    assert!(matches!(error, ProcessError::Unusable(_)), "{error:?}");
    assert_eq!(noted(&scene.outer(), "journal").len(), 1);
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_child_that_a_rust_backend_starts_does_not_keep_the_lock_after_it() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let mut backend = backend_in(&outer);
        backend.env(WITH_CHILD, "");
        Ok((backend, Ready::notify()))
    });
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let child: u32 = scene.written("child").await.trim().parse().unwrap();
    kill(first.pid, Signal::KILL);
    until_gone(first.pid).await;
    eventually(|| (!is_held(&scene.file(".life"))).then_some(())).await;
    assert!(lives(child));
    let second = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(second.how, How::Led);
    launcher.stop("a", Stop::Orderly).await.unwrap();
    for child in noted(&scene.outer(), "child") {
        kill(child.parse().unwrap(), Signal::KILL);
    }
}

#[tokio::test]
async fn a_backend_that_no_file_names_is_found_and_stopped() {
    let scene = Scene::new();
    // Its launcher was killed between the start and the note of the process.
    let pid = launched_elsewhere(&scene, "sleep 60 & echo ready; exec sleep 61").await;
    let life = scene.file(".life");
    let text = fs::read_to_string(&life).unwrap();
    assert!(text.contains(&pid.to_string()));
    fs::write(&life, " ".repeat(text.len())).unwrap();
    let record = fs::read_to_string(scene.file(".backend")).unwrap();
    let named = format!("process {pid} ");
    let unnamed = record.lines().filter(|line| !line.starts_with(&named));
    let unnamed: String = unnamed.map(|line| format!("{line}\n")).collect();
    assert_ne!(unnamed, record);
    fs::write(scene.file(".backend"), unnamed).unwrap();
    let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
    let found = launcher.find("a").await;
    if cfg!(any(target_os = "linux", target_os = "android")) {
        assert!(
            matches!(&found, Ok(Presence::Ready(backend)) if backend.pid == pid),
            "{found:?}"
        );
        let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
        assert_eq!(stopped, Stopped::Orderly { pid });
    } else {
        assert!(matches!(found, Err(ProcessError::Unusable(_))), "{found:?}");
        kill(pid, Signal::KILL);
    }
    until_gone(pid).await;
}

#[tokio::test]
async fn one_whose_lock_file_was_deleted_counts_as_there_as_long_as_its_process_lives() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "echo is ready; exec sleep 60";
        Ok((sh(script), Ready::line("is ready")))
    });
    let backend = scene.gate.launch("a", launcher.clone()).await.unwrap();
    let backend = backend.value;
    fs::remove_file(scene.file(".life")).unwrap();
    let found = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(found.how, How::Discovered);
    assert_eq!(found.value, backend);
    let stopped = launcher.stop("a", Stop::Orderly).await.unwrap();
    assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
    assert!(!lives(backend.pid));
}

#[tokio::test]
async fn a_backend_that_is_ready_by_the_time_of_the_launch_is_what_the_launch_yields() {
    let scene = Scene::new();
    let command = || (sh("echo ready; exec sleep 60"), Ready::line("ready"));
    let launcher = scene.launcher(move |_| Ok(command()));
    let backend = launcher.get_or_launch("a").await.unwrap().value;
    // The look before the launch does not find it.
    let moved = [".life", ".backend"].map(|suffix| {
        let (here, aside) = (scene.file(suffix), scene.outer().join(suffix));
        fs::rename(&here, &aside).unwrap();
        (here, aside)
    });
    let launcher = scene.launcher(move |_| {
        for (here, aside) in &moved {
            fs::rename(aside, here)?;
        }
        Ok(command())
    });
    let launcher = launcher.grace(Duration::ZERO);
    let launched = launcher.get_or_launch("a").await.unwrap();
    assert_eq!(launched.how, How::Led);
    assert_eq!(launched.value, backend);
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn a_lock_that_no_backend_has_is_not_taken_for_a_backend_that_starts() {
    let scene = Scene::new();
    let launcher = scene
        .launcher(|_| {
            let script = "echo is ready; exec sleep 60";
            Ok((sh(script), Ready::line("is ready")))
        })
        .grace(Duration::ZERO);
    scene.gate.launch("a", launcher.clone()).await.unwrap();
    launcher.stop("a", Stop::Force).await.unwrap();
    // As a look has it, but for long.
    let file = fs::File::open(scene.file(".life")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).unwrap();
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(
        matches!(
            process_error(&error),
            ProcessError::Directory(spawn_gate::SpawnLockError::AlreadyLocked { .. })
        ),
        "{error:?}"
    );
    assert!(error.retry_helps());
    drop(file);
    scene.gate.launch("a", launcher.clone()).await.unwrap();
    launcher.stop("a", Stop::Force).await.unwrap();
}
