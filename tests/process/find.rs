//! Promise 7: what a look makes of a backend that is there, and of what stands where its files should be.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use spawn_gate::budget::SpawnBudgetConfig;
use spawn_gate::process::{Endpoint, Presence, ProcessError, Ready, Stop, Unusable, Why};
use spawn_gate::{FileSpawnLock, How, SpawnGate, acquire_spawn_lock};
use tokio::time::timeout;

use crate::backends::{
    WAIT_FOR, WITH_PORT, backend_in, call, caller_in, chain, noted, process_error, result,
};
use crate::kit::{Gate, LIMIT, Launcher, Scene, eventually, sh, until_gone};
use crate::life::{freeze, kill};
use crate::scenes::{assert_nothing_left, file_of_a};

/// Below the 60 s of a stage, and enough for a look on a busy machine.
const IN_TIME: Duration = Duration::from_secs(40);

/// A gate that refuses a second attempt if the first was charged and did not succeed.
fn gate_of_one_attempt(files: &Path) -> Gate {
    let budget = SpawnBudgetConfig::new(1, Duration::from_secs(3600));
    SpawnGate::builder(FileSpawnLock::new(files).unwrap())
        .budget(budget)
        .build()
}

#[tokio::test]
async fn one_that_is_starting_is_waited_for_by_other_processes_which_get_its_outcome() {
    let scene = Scene::new();
    let outer = scene.outer();
    for (exits, expected) in [("exec sleep 60", None), ("exit 7", Some("exit status: 7"))] {
        let go = outer.join("go");
        let script = format!(
            "sh echo begun >>count; until [ -e {} ]; do sleep 0.01; done; echo ready; {exits}",
            go.display()
        );
        let ready = match expected {
            None => "line ready",
            Some(_) => "line never",
        };
        let spawn = || caller_in(&outer, &script, ready).spawn().unwrap();
        let first = spawn();
        let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
        let starting = async || matches!(launcher.find("a").await, Ok(Presence::Starting { .. }));
        while !starting().await {
            tokio::task::yield_now().await;
        }
        let others = [spawn(), spawn()];
        // They have looked, and wait for the launch.
        for other in &others {
            waits_for_a_lock(other.id(), &scene.files()).await;
        }
        fs::write(&go, "").unwrap();
        let first = result(first).await;
        for other in others {
            let result = result(other).await;
            match expected {
                None => assert_eq!(
                    result.split(' ').nth(1),
                    first.split(' ').nth(1),
                    "{result}"
                ),
                Some(words) => assert!(
                    result.starts_with("error") && result.contains(words),
                    "{result}"
                ),
            }
        }
        assert_eq!(noted(&scene.files(), "count").len(), 1);
        launcher.stop("a", Stop::Orderly).await.unwrap();
        fs::remove_file(&go).unwrap();
        fs::remove_file(scene.files().join("count")).unwrap();
    }
}

/// Waits until a process has its eye on a lock file: it has the file open, as a waiter has.
async fn waits_for_a_lock(pid: u32, files: &Path) {
    let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
    let is_lock = |path: &Path| {
        path.starts_with(files) && path.extension().is_some_and(|suffix| suffix == "lock")
    };
    eventually(|| {
        let mut open = fs::read_dir(&descriptors).unwrap();
        open.any(|entry| {
            let target = entry.and_then(|entry| fs::read_link(entry.path()));
            target.is_ok_and(|target| is_lock(&target))
        })
        .then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_whose_launcher_was_killed_is_found_once_it_is_ready_and_not_launched_twice() {
    let programs = [
        ("backend", "notify"),
        ("program", "line it listens"),
        ("program", "unix:OUTER/program.sock"),
    ];
    for (command, ready) in programs {
        let scene = Scene::new();
        let outer = scene.outer();
        let ready = ready.replace("OUTER", &outer.display().to_string());
        let mut caller = caller_in(&outer, command, &ready);
        let mut caller = caller.env(WAIT_FOR, outer.join("go")).spawn().unwrap();
        let begun = || noted(&outer, "journal").first().cloned();
        let begun = eventually(begun).await;
        caller.kill().unwrap();
        caller.wait().unwrap();
        let launcher = scene
            .launcher(|_| Err("nothing is to be launched".into()))
            .look_timeout(LIMIT);
        let presence = launcher.find("a").await.unwrap();
        assert!(
            matches!(presence, Presence::Starting { .. }),
            "{presence:?}"
        );

        let gate = SpawnGate::builder(FileSpawnLock::new(scene.files()).unwrap())
            .discover_timeout(LIMIT)
            .build();
        let launching = tokio::spawn({
            let launcher = launcher.clone();
            async move { gate.launch("a", launcher).await }
        });
        fs::write(outer.join("go"), "").unwrap();
        let found = launching.await.unwrap().unwrap();
        assert_eq!(found.how, How::Discovered, "{command} {ready}");
        assert_eq!(begun, format!("begin {}", found.value.pid));
        launcher.stop("a", Stop::Force).await.unwrap();
        let journal = noted(&outer, "journal");
        let begun = journal.iter().filter(|line| line.starts_with("begin"));
        assert_eq!(begun.count(), 1, "{journal:?}");
    }
}

#[tokio::test]
async fn one_that_is_there_and_cannot_be_used_is_an_error_in_time_that_names_it_and_charges_nothing()
 {
    type Spoil = fn(&Scene, u32);
    type Expected = fn(&Why) -> bool;
    let spoilt: [(Spoil, Expected, &str); 5] = [
        (|_, pid| freeze(pid), |why| *why == Why::Stopped, "SIGCONT"),
        (
            // Another network namespace looks like this.
            |scene, _| fs::remove_file(scene.file(".sock")).unwrap(),
            |why| matches!(why, Why::NoConnection { endpoint: Endpoint::Unix(path), .. } if path.ends_with("of.sock")),
            ".sock: No such file",
        ),
        (
            |_, _| {},
            |why| matches!(why, Why::OtherVersion { wanted } if wanted == "2"),
            "stop it first",
        ),
        (
            |scene, _| fs::remove_file(scene.file(".backend")).unwrap(),
            |why| matches!(why, Why::NoRecord { .. }),
            "stop it by force",
        ),
        (
            |scene, _| fs::write(scene.file(".backend"), "junk").unwrap(),
            |why| matches!(why, Why::NoRecord { .. }),
            "stop it by force",
        ),
    ];
    for (spoil, expected, advice) in spoilt {
        let scene = Scene::new();
        let gate = gate_of_one_attempt(&scene.files());
        let outer = scene.outer();
        let launcher = move |version: &str| {
            let (outer, gate) = (outer.clone(), gate.clone());
            let launcher = Launcher::new(&gate, outer.join("files"), move |_| {
                Ok((
                    program_at_socket(&outer),
                    Ready::line("it listens").at(Endpoint::Unix(outer.join("files/of.sock"))),
                ))
            });
            (
                gate,
                launcher
                    .version(version)
                    .look_timeout(Duration::from_millis(100)),
            )
        };
        let (gate, first) = launcher("1");
        let backend = gate.launch("a", first.clone()).await.unwrap().value;
        spoil(&scene, backend.pid);
        let version = if advice == "stop it first" { "2" } else { "1" };
        // From two other gates, at the same time and one after the other.
        for _ in 0..2 {
            let ask = async || {
                let (_, launcher) = launcher(version);
                let gate = gate_of_one_attempt(&scene.files());
                timeout(IN_TIME, gate.launch("a", launcher)).await.unwrap()
            };
            let (one, other) = tokio::join!(ask(), ask());
            for error in [one.unwrap_err(), other.unwrap_err()] {
                let ProcessError::Unusable(unusable) = process_error(&error) else {
                    panic!("{error:?}");
                };
                let Unusable { pid, why, .. } = &**unusable;
                assert_eq!(*pid, Some(backend.pid), "{why:?}");
                assert!(expected(why), "{why:?}");
                let text = chain(&error);
                assert!(text.contains(&format!("process {}", backend.pid)), "{text}");
                assert!(text.contains(advice), "{text}");
                if !matches!(why, Why::NoRecord { .. }) {
                    assert!(text.contains("version \"1\""), "{text}");
                }
            }
        }
        let (gate, again) = launcher(version);
        again.stop("a", Stop::Force).await.unwrap();
        until_gone(backend.pid).await;
        let launched = gate.launch("a", again.clone()).await;
        assert_eq!(
            launched
                .unwrap_or_else(|error| panic!("{advice}: {error:?}"))
                .how,
            How::Led
        );
        again.stop("a", Stop::Force).await.unwrap();
    }
}

/// A program that listens at `of.sock` in the directory of the files.
fn program_at_socket(outer: &Path) -> Command {
    let mut program = crate::backends::role_in("program", outer);
    program.env(crate::backends::SOCKET, outer.join("files/of.sock"));
    program
}

#[tokio::test]
async fn a_record_that_is_empty_half_or_junk_counts_as_gone_without_the_lock() {
    let scene = Scene::new();
    let launcher = scene.rust_launcher();
    let mut last = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let record = fs::read_to_string(scene.file(".backend")).unwrap();
    for text in [
        "",
        &record[..record.len() / 2],
        &record[..record.len() - 1],
        "junk\n\0",
    ] {
        kill(last.pid, Signal::KILL);
        until_gone(last.pid).await;
        eventually(|| {
            let report = spawn_gate::admin::inspect_spawn_lock(scene.file(".life"));
            (!report.unwrap().is_held).then_some(())
        })
        .await;
        fs::write(scene.file(".backend"), text).unwrap();
        assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
        let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
        assert_eq!(launched.how, How::Led);
        last = launched.value;
        call(&last).await.unwrap();
    }
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_stranger_at_the_old_port_of_a_dead_backend_costs_nobody_the_launch() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let mut backend = backend_in(&outer);
        backend.env(WITH_PORT, "");
        Ok((backend, Ready::notify()))
    });
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let old = first.endpoint.unwrap();
    kill(first.pid, Signal::KILL);
    until_gone(first.pid).await;
    let stranger = eventually(|| TcpListener::bind(old.tcp().unwrap()).ok()).await;
    let second = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(second.how, How::Led);
    assert_ne!(second.value.endpoint, Some(old));
    drop(stranger);
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_fifo_or_a_directory_where_a_file_should_be_is_an_error_or_ignored_and_never_a_hang() {
    let scene = Scene::new();
    let gate = gate_of_one_attempt(&scene.files());
    let outer = scene.outer();
    let launcher = Launcher::new(&gate, scene.files(), move |_| {
        Ok((backend_in(&outer), Ready::notify()))
    });
    let launcher = launcher
        .grace(Duration::from_millis(100))
        .look_timeout(Duration::from_millis(100));
    gate.launch("a", launcher.clone()).await.unwrap();
    launcher.stop("a", Stop::Orderly).await.unwrap();
    let stem = scene.file(".life").with_extension("");
    for suffix in ["life", "backend", "log", "use", "notify", "sock"] {
        // Those of sockets are short.
        let name = stem.file_name().unwrap().to_str().unwrap();
        let hash = &name.rsplit('-').next().unwrap()[..24];
        let path = match suffix {
            "notify" | "sock" => scene.files().join(format!("{hash}.{suffix}")),
            _ => stem.with_extension(suffix),
        };
        for kind in ["fifo", "directory"] {
            let _ = fs::remove_file(&path);
            let made = match kind {
                "fifo" => Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .map(|made| assert!(made.success())),
                _ => fs::create_dir(&path),
            };
            made.unwrap();
            let all = async {
                let found = launcher.find("a").await;
                let stopped = launcher.stop("a", Stop::Force).await;
                let launched = gate.launch("a", launcher.clone()).await;
                let used = launcher.in_use("a").await.map(|used| used.pid);
                let _ = launcher.stop("a", Stop::Force).await;
                (found, stopped, launched, used)
            };
            let (found, stopped, launched, used) = timeout(IN_TIME, all).await.unwrap();
            assert!(!matches!(found, Ok(Presence::Ready(_))));
            let errors = [
                found.err().map(|error| chain(&error)),
                stopped.err().map(|error| chain(&error)),
                launched.as_ref().err().map(|error| chain(error)),
                used.as_ref().err().map(|error| chain(error)),
            ];
            for error in errors.into_iter().flatten() {
                assert!(
                    error.contains(&path.display().to_string()),
                    "{suffix} {kind}: {error}"
                );
            }
            // What a launch removes anyway is ignored.
            let is_replaced = kind == "fifo" && ["notify", "sock"].contains(&suffix);
            assert_eq!(used.is_ok(), is_replaced, "{suffix} {kind}: {used:?}");
            let _ = fs::remove_dir(&path);
            let _ = fs::remove_file(&path);
        }
        // Nothing of that was charged.
        if suffix == "sock" {
            continue;
        }
        let launched = gate.launch("a", launcher.clone()).await;
        launched.unwrap_or_else(|error| panic!("{suffix}: {}", chain(&error)));
        launcher.stop("a", Stop::Force).await.unwrap();
    }
}

#[tokio::test]
async fn a_link_where_a_file_should_be_is_an_error_and_never_followed() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((sh("echo ready; exec sleep 60"), Ready::line("ready"))));
    let target = scene.outer().join("target");
    fs::write(&target, "precious").unwrap();
    for suffix in ["life", "log", "use"] {
        let link = file_of_a(&scene, suffix);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = launcher.get_or_launch("a").await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(&link.display().to_string()), "{text}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        fs::remove_file(&link).unwrap();
    }
    assert_nothing_left(&scene, &scene.gate, &launcher).await;
}

#[tokio::test]
async fn a_fifo_or_a_directory_instead_of_the_record_of_a_running_backend_is_an_error() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((sh("echo ready; exec sleep 60"), Ready::line("ready"))));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let path = scene.file(".backend");
    let aside = scene.outer().join("aside");
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    let is_error = async || {
        let found = timeout(IN_TIME, launcher.find("a")).await.unwrap();
        matches!(&found, Err(ProcessError::File { path: named, .. }) if *named == path)
    };
    assert!(is_error().await);
    let launched = timeout(IN_TIME, scene.gate.launch("a", launcher.clone()))
        .await
        .unwrap();
    assert!(matches!(
        process_error(&launched.unwrap_err()),
        ProcessError::File { .. }
    ));
    fs::remove_dir(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    assert!(is_error().await);
    fs::remove_file(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Ready(backend));
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn one_of_another_version_is_not_waited_for() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((sh("echo ready; exec sleep 60"), Ready::line("ready"))));
    let first = launcher.clone().version("1");
    first.get_or_launch("a").await.unwrap();
    let second = launcher.version("2").look_timeout(LIMIT);
    let error = timeout(IN_TIME, second.get_or_launch("a")).await.unwrap();
    let error = error.unwrap_err();
    let ProcessError::Unusable(unusable) = process_error(&error) else {
        panic!("{error:?}");
    };
    assert!(
        matches!(&unusable.why, Why::OtherVersion { wanted } if wanted == "2"),
        "{unusable}"
    );
    first.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn the_version_of_a_dead_backend_costs_nobody_the_launch_of_the_next_one() {
    let scene = Scene::new();
    let launcher = |version: &str| {
        let launcher =
            scene.launcher(|_| Ok((sh("echo ready; exec sleep 60"), Ready::line("ready"))));
        launcher.version(version).look_timeout(LIMIT)
    };
    let first = scene.gate.launch("a", launcher("1")).await.unwrap().value;
    kill(first.pid, Signal::KILL);
    until_gone(first.pid).await;
    // A launch that has the lock, and has not written its record yet.
    let life = scene.file(".life");
    let life = eventually(|| acquire_spawn_lock(&life).ok()).await;
    let error = launcher("2").find("a").await.unwrap_err();
    let ProcessError::Unusable(unusable) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(unusable.why, Why::NoProcess { .. }), "{unusable}");
    let gate = SpawnGate::builder(FileSpawnLock::new(scene.files()).unwrap())
        .discover_timeout(LIMIT)
        .build();
    let second = launcher("2");
    let launching = tokio::spawn({
        let second = second.clone();
        async move { gate.launch("a", second).await }
    });
    drop(life);
    assert_eq!(launching.await.unwrap().unwrap().how, How::Led);
    second.stop("a", Stop::Force).await.unwrap();
}
