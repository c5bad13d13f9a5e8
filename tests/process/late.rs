//! Promise 11: a backend that comes late, and one that nobody can find any more.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use spawn_gate::How;
use spawn_gate::process::{Endpoint, Presence, Ready, Stop};

use crate::backends::{STATUS, WAIT_FOR, backend_in, call, noted, role_in};
use crate::kit::{Launcher, Scene, eventually, until_gone};
use crate::life::{deaf_listener, kill};

/// The first launch starts a program whose child comes as a backend once it may, without descriptors. Later ones start a backend.
fn first_late(scene: &Scene) -> Launcher {
    let outer = scene.outer();
    let is_first = AtomicBool::new(true);
    scene.launcher(move |_| {
        Ok(match is_first.swap(false, Ordering::Relaxed) {
            true => (role_in("fork and stay", &outer), Ready::line("stays")),
            false => (backend_in(&outer), Ready::notify()),
        })
    })
}

/// Launches it, and ends the process that is known.
async fn launch_late(scene: &Scene, launcher: &Launcher) -> u64 {
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    kill(first.pid, Signal::KILL);
    until_gone(first.pid).await;
    eventually(|| {
        let report = spawn_gate::admin::inspect_spawn_lock(scene.file(".life"));
        (!report.unwrap().is_held).then_some(())
    })
    .await;
    first.launch
}

async fn line(outer: &Path, beginning: &str) -> String {
    eventually(|| {
        let lines = noted(outer, "journal");
        lines.into_iter().find(|line| line.starts_with(beginning))
    })
    .await
}

#[tokio::test]
async fn a_backend_that_comes_late_steps_back_by_its_launch_number() {
    let scene = Scene::new();
    let launcher = first_late(&scene);
    let first = launch_late(&scene, &launcher).await;
    let second = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(second.how, How::Led);
    let second = second.value;
    fs::write(scene.outer().join("come"), "").unwrap();
    let late = line(&scene.outer(), "late").await;
    let said = format!(
        "launch {first} of this backend is over: launch {} was made since",
        second.launch
    );
    assert_eq!(late, format!("late {said}"));
    assert_eq!(
        launcher.find("a").await.unwrap(),
        Presence::Ready(second.clone())
    );
    assert_eq!(call(&second).await.unwrap(), second.pid);
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn one_that_comes_late_steps_back_also_if_the_later_one_is_gone_or_has_a_lower_number() {
    for number in [None, Some(1)] {
        let scene = Scene::new();
        let launcher = first_late(&scene);
        launch_late(&scene, &launcher).await;
        let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
        launcher.stop("a", Stop::Orderly).await.unwrap();
        if let Some(number) = number {
            // The clock was set back before the later launch.
            set_launch(&scene, launched.value.launch, number);
        }
        fs::write(scene.outer().join("come"), "").unwrap();
        let late = line(&scene.outer(), "late").await;
        assert!(late.contains("is over"), "{late}");
        assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
        let third = scene.gate.launch("a", launcher.clone()).await.unwrap();
        assert_eq!(third.how, How::Led);
        launcher.stop("a", Stop::Orderly).await.unwrap();
    }
}

/// Changes the launch number in the record.
fn set_launch(scene: &Scene, launch: u64, number: u64) {
    let path = scene.file(".backend");
    let record = fs::read_to_string(&path).unwrap();
    let record = record.replace(&format!("launch {launch}\n"), &format!("launch {number}\n"));
    assert!(record.contains(&format!("launch {number}\n")));
    fs::write(&path, record).unwrap();
}

#[tokio::test]
async fn one_that_comes_while_a_later_launch_begins_steps_back() {
    let scene = Scene::new();
    let launcher = first_late(&scene);
    launch_late(&scene, &launcher).await;
    // The later launch has the lock, and writes its record once it knows that nobody accepts at the endpoint. Here that takes a
    // second.
    let (listener, callers) = deaf_listener().await;
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let outer = scene.outer();
    let launcher =
        scene.launcher(move |_| Ok((backend_in(&outer), Ready::accepts(endpoint.clone()))));
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    eventually(|| {
        let report = spawn_gate::admin::inspect_spawn_lock(scene.file(".life"));
        report.unwrap().is_held.then_some(())
    })
    .await;
    fs::write(scene.outer().join("come"), "").unwrap();
    let late = line(&scene.outer(), "late").await;
    assert!(late.contains("is over"), "{late}");
    drop(callers);
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let launched = launching.await.unwrap().unwrap();
    accepting.abort();
    assert_eq!(launched.how, How::Led);
    // That its endpoint accepts does not say that it has begun.
    line(&scene.outer(), &format!("begin {}", launched.value.pid)).await;
    let journal = noted(&scene.outer(), "journal");
    let begun = journal.iter().filter(|line| line.starts_with("begin"));
    assert_eq!(begun.count(), 1, "{journal:?}");
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn one_that_learns_of_a_later_launch_before_it_is_ready_steps_back() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let mut backend = backend_in(&outer);
        backend.env(WAIT_FOR, outer.join("go"));
        Ok((backend, Ready::notify()))
    });
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    line(&scene.outer(), "begin").await;
    let path = scene.file(".backend");
    let record = fs::read_to_string(&path).unwrap();
    let launch = record
        .lines()
        .find(|line| line.starts_with("launch "))
        .unwrap();
    let later = record.replace(launch, "launch 18000000000000000000");
    fs::write(&path, &later).unwrap();
    fs::write(scene.outer().join("go"), "").unwrap();
    let late = line(&scene.outer(), "late").await;
    assert!(
        late.ends_with("launch 18000000000000000000 was made since"),
        "{late}"
    );
    assert!(launching.await.unwrap().is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), later);
}

#[tokio::test]
async fn a_clock_that_was_set_back_keeps_no_later_backend_out() {
    let scene = Scene::new();
    let launcher = scene.rust_launcher();
    let first = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    launcher.stop("a", Stop::Orderly).await.unwrap();
    // The last launch was in the future.
    set_launch(&scene, first.launch, u64::MAX);
    for _ in 0..2 {
        let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
        assert_eq!(launched.how, How::Led);
        assert_eq!(
            launcher.find("a").await.unwrap(),
            Presence::Ready(launched.value.clone())
        );
        assert_eq!(call(&launched.value).await.unwrap(), launched.value.pid);
        launcher.stop("a", Stop::Orderly).await.unwrap();
    }
}

#[tokio::test]
async fn a_backend_leaves_as_lost_when_its_files_are_deleted_or_belong_to_a_later_launch() {
    type Lose = fn(&Scene, u64);
    let ways: [Lose; 3] = [
        |scene, _| fs::remove_dir_all(scene.files()).unwrap(),
        |scene, _| {
            fs::remove_file(scene.file(".life")).unwrap();
            fs::remove_file(scene.file(".backend")).unwrap();
        },
        |scene, launch| set_launch(scene, launch, launch + 1),
    ];
    let scenes = ways.map(|lose| async move {
        let scene = Scene::new();
        let launcher = scene.rust_launcher();
        let backend = scene.gate.launch("a", launcher).await.unwrap().value;
        lose(&scene, backend.launch);
        let end = line(&scene.outer(), "end").await;
        assert_eq!(end, format!("end {} Lost", backend.pid));
        until_gone(backend.pid).await;
        scene
    });
    let [one, two, three] = scenes;
    let (_, scene, _) = tokio::join!(one, two, three);
    // It has not written a record that would be in the way of a later launch.
    let mut files = fs::read_dir(scene.files()).unwrap();
    let is_record = |path: &Path| path.extension().is_some_and(|suffix| suffix == "backend");
    assert!(!files.any(|entry| is_record(&entry.unwrap().path())));
}

#[tokio::test]
async fn a_backend_whose_record_was_deleted_writes_it_anew() {
    let scene = Scene::new();
    let launcher = scene.rust_launcher();
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let path = scene.file(".backend");
    for spoil in [None, Some("junk")] {
        match spoil {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let found = scene.gate.launch("a", launcher.clone()).await.unwrap();
        assert_eq!(found.how, How::Discovered);
        assert_eq!(found.value, backend);
    }
    launcher.stop("a", Stop::Orderly).await.unwrap();
}

#[tokio::test]
async fn a_launcher_that_reads_a_status_late_does_not_undo_what_the_backend_said_since() {
    let scene = Scene::new();
    let (outer, go) = (scene.outer(), scene.outer().join("go"));
    let launcher = {
        let (outer, go) = (outer.clone(), go.clone());
        scene.launcher(move |_| {
            let mut backend = backend_in(&outer);
            backend.env(WAIT_FOR, &go).env(STATUS, "loading");
            Ok((backend, Ready::notify()))
        })
    };
    let launching = tokio::spawn({
        let (gate, launcher) = (scene.gate.clone(), launcher.clone());
        async move { gate.launch("a", launcher).await }
    });
    eventually(|| (!noted(&outer, "journal").is_empty()).then_some(())).await;
    fs::write(go, "").unwrap();
    // Blocks the launcher's runtime, so that both messages wait for it.
    let until = std::time::Instant::now() + crate::kit::LIMIT;
    let record = scene.file(".backend");
    while !fs::read_to_string(&record).is_ok_and(|text| text.contains("state ready")) {
        assert!(std::time::Instant::now() < until, "it did not become ready");
        std::thread::yield_now();
    }
    let backend = launching.await.unwrap().unwrap().value;
    assert!(backend.endpoint.is_some());
    assert_eq!(call(&backend).await.unwrap(), backend.pid);
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(backend));
    launcher.stop("a", Stop::Orderly).await.unwrap();
}
