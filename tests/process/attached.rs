//! Attached backends: they end with their broker, and their end is reported to the gate.

use std::time::Duration;

use spawn_gate::budget::{ExhaustionReason, SpawnBudgetConfig};
use spawn_gate::process::{Presence, Ready};
use spawn_gate::{FileSpawnLock, GateError, SpawnGate};

use crate::kit::{Gate, LIMIT, Launcher, Scene, eventually, lives, sh, until_gone};
use crate::roles::{Caller, end, launched};
use crate::scenes::{
    descriptors, file_of_a, group_of, kill, members, number_in, session_of, touch, until_no_member,
};

const AN_HOUR: Duration = Duration::from_secs(3600);

/// Has a child of its own.
const WITH_CHILD: &str = "sleep 60 & echo $! >child; echo is ready; wait";

/// As before, and both ignore what can be ignored.
const STUBBORN: &str =
    "trap '' TERM HUP INT; sleep 60 & echo $! >child; echo is ready; wait; sleep 60";

async fn ends_with_its_broker(script: &str) {
    let scene = Scene::new();
    let caller = Caller::new(&scene, script).attached().that_stays();
    let mut caller = caller.command().spawn().unwrap();
    let backend = launched(&scene).await;
    let child = number_in(&scene, "child").await;
    let group = group_of(backend);
    assert!(members(group).contains(&child));
    caller.kill().unwrap();
    caller.wait().unwrap();
    until_gone(backend).await;
    until_gone(child).await;
    // Nor does what watched over them stay.
    until_no_member(group).await;
}

#[tokio::test]
async fn an_attached_backend_ends_with_its_whole_group_when_the_broker_is_killed() {
    ends_with_its_broker(WITH_CHILD).await;
}

#[tokio::test]
async fn an_attached_backend_is_asked_to_end_when_the_broker_is_killed() {
    let scene = Scene::new();
    let script = "trap 'echo $$ >told; exit' TERM; echo is ready; while :; do sleep 0.01; done";
    let caller = Caller::new(&scene, script).attached().that_stays();
    let mut caller = caller.command().spawn().unwrap();
    let backend = launched(&scene).await;
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert_eq!(number_in(&scene, "told").await, backend);
    until_gone(backend).await;
}

#[tokio::test]
async fn an_attached_backend_that_ignores_sigterm_ends_all_the_same_when_the_broker_is_killed() {
    ends_with_its_broker(STUBBORN).await;
}

#[tokio::test]
async fn an_attached_backend_whose_broker_was_killed_is_leaving_until_it_has_ended() {
    let scene = Scene::new();
    let caller = Caller::new(&scene, STUBBORN);
    let mut caller = caller.attached().that_stays().command().spawn().unwrap();
    let backend = launched(&scene).await;
    caller.kill().unwrap();
    caller.wait().unwrap();
    let launcher = scene.launcher(|_| Err("nothing is to be launched".into()));
    let until_gone = async {
        loop {
            match launcher.find("a").await.unwrap() {
                Presence::Leaving(found) => assert_eq!(found.pid, backend),
                Presence::Gone => return,
                found => panic!("{found:?}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, until_gone).await.unwrap();
}

#[test]
fn an_attached_backend_ends_with_the_runtime_of_its_broker() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = Scene::new();
    let launcher = attached(&scene, WITH_CHILD);
    let backend = runtime.block_on(async {
        scene
            .gate
            .launch("a", launcher.clone())
            .await
            .unwrap()
            .value
    });
    let group = group_of(backend.pid);
    drop(runtime);
    let rest = tokio::runtime::Runtime::new().unwrap();
    rest.block_on(until_gone(backend.pid));
    rest.block_on(until_no_member(group));
}

fn attached(scene: &Scene, script: &'static str) -> Launcher {
    let launcher = scene.launcher(move |_| Ok((sh(script), Ready::line("is ready"))));
    launcher.attached().grace(Duration::from_secs(1))
}

#[tokio::test]
async fn an_attached_backend_has_no_descriptor_of_the_brokers_nor_has_what_watches_over_it() {
    let scene = Scene::new();
    let launcher = attached(&scene, "echo is ready; exec sleep 60");
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let group = group_of(backend.pid);
    assert_ne!(group, backend.pid);
    assert_ne!(group, group_of(std::process::id()));
    assert_eq!(session_of(backend.pid), session_of(std::process::id()));
    // Until `sleep` runs, it has some of its own.
    let found =
        eventually(|| Some(descriptors(backend.pid)).filter(|found| found.len() == 4)).await;
    let numbers = found.iter().map(|(number, _)| *number);
    assert_eq!(numbers.take(3).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(found[3].1, file_of_a(&scene, "life"));
    let of_watcher = descriptors(group);
    let [(0, input), (1, output), (2, errors)] = &of_watcher[..] else {
        panic!("{of_watcher:?}");
    };
    assert!(input.to_string_lossy().starts_with("pipe:"));
    assert_eq!(
        [output, errors],
        [&std::path::PathBuf::from("/dev/null"); 2]
    );
    end(&launcher, &backend).await;
    until_no_member(group).await;
}

#[tokio::test]
async fn what_an_attached_backend_leaves_behind_in_its_group_ends_once_it_has_ended() {
    let scene = Scene::new();
    let script = "trap '' TERM; sleep 60 & echo $! >child; echo is ready; until [ -e go ]; do sleep 0.01; done";
    let launcher = attached(&scene, script);
    let backend = scene.gate.launch("a", launcher).await.unwrap().value;
    let group = group_of(backend.pid);
    let child = number_in(&scene, "child").await;
    touch(&scene, "go");
    until_gone(backend.pid).await;
    until_gone(child).await;
    until_no_member(group).await;
}

/// A gate that allows one launch an hour.
fn strict_gate(scene: &Scene) -> Gate {
    let lock = FileSpawnLock::new(scene.files()).unwrap();
    SpawnGate::builder(lock)
        .budget(SpawnBudgetConfig::new(1, AN_HOUR))
        .stable_after(AN_HOUR)
        .build()
}

fn strict(scene: &Scene, script: &'static str) -> (Gate, [Launcher; 2]) {
    let gate = strict_gate(scene);
    let launcher = Launcher::new(&gate, scene.files(), move |_| {
        Ok((sh(script), Ready::line("is ready")))
    });
    (gate, [launcher.clone(), launcher.attached()])
}

#[tokio::test]
async fn a_backend_that_fails_is_reported_to_the_gate_with_its_reason() {
    for (script, how) in [
        ("echo is ready; exec sleep 60", "signal: 9 (SIGKILL)"),
        (
            "echo is ready; until [ -e go ]; do sleep 0.01; done; exit 3",
            "exit status: 3",
        ),
    ] {
        for which in 0..2 {
            let scene = Scene::new();
            let (gate, launchers) = strict(&scene, script);
            let launcher = &launchers[which];
            let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
            match how.starts_with("signal") {
                true => kill(backend.pid),
                false => touch(&scene, "go"),
            }
            until_gone(backend.pid).await;
            let reported = async {
                loop {
                    let error = gate.launch("a", launcher.clone()).await.unwrap_err();
                    let GateError::BudgetExhausted(refusal) = error else {
                        panic!("{error:?}");
                    };
                    match &*refusal.reason {
                        ExhaustionReason::BackendEnded { launch, reason } => {
                            return (*launch, reason.clone());
                        }
                        // Its end has not been reported yet.
                        ExhaustionReason::NotStable { .. } => tokio::task::yield_now().await,
                        reason => panic!("{reason:?}"),
                    }
                }
            };
            let reported = tokio::time::timeout(LIMIT, reported).await.unwrap();
            assert_eq!(reported, (backend.launch, how.to_owned()));
        }
    }
}

/// Waits until the end of the backend is reported and its charge is taken back.
async fn until_refunded(gate: &Gate) {
    let refunded = async {
        while gate.snapshot("a").await.budget.attempts_used > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, refunded)
        .await
        .expect("it stays charged");
}

#[tokio::test]
async fn a_backend_that_ends_in_an_orderly_way_is_not_charged() {
    let scene = Scene::new();
    let script = "echo is ready; until [ -e go ]; do sleep 0.01; done; rm go";
    let (gate, launchers) = strict(&scene, script);
    for launcher in launchers {
        let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
        assert_eq!(gate.snapshot("a").await.budget.attempts_used, 1);
        touch(&scene, "go");
        until_gone(backend.pid).await;
        until_refunded(&gate).await;
    }
}

#[tokio::test]
async fn a_backend_that_was_leaving_is_not_charged_however_it_ended() {
    let scene = Scene::new();
    let script = "echo is ready; until [ -e go ]; do sleep 0.01; done; rm go; \
                  sed -i 's/^state ready/state leaving/' *.backend; exit 1";
    let (gate, launchers) = strict(&scene, script);
    for launcher in launchers {
        let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
        touch(&scene, "go");
        until_gone(backend.pid).await;
        until_refunded(&gate).await;
    }
}

#[tokio::test]
async fn a_backend_that_fails_is_reported_also_if_what_it_started_keeps_its_lock() {
    let scene = Scene::new();
    let script =
        "sleep 60 & echo $! >child; echo is ready; until [ -e go ]; do sleep 0.01; done; exit 3";
    let (gate, [launcher, _]) = strict(&scene, script);
    let backend = gate.launch("a", launcher).await.unwrap().value;
    let child = number_in(&scene, "child").await;
    touch(&scene, "go");
    until_gone(backend.pid).await;
    // The ledger says it.
    eventually(|| {
        let ledger = std::fs::read_to_string(file_of_a(&scene, "lock")).unwrap();
        ledger.contains("exit").then_some(())
    })
    .await;
    assert!(lives(child));
    kill(child);
}

#[tokio::test]
async fn a_program_that_hands_over_to_its_child_and_ends_is_not_reported_as_ended() {
    let scene = Scene::new();
    let script = "sleep 60 & echo $! >child; echo is ready; until [ -e go ]; do sleep 0.01; done";
    let (gate, [launcher, _]) = strict(&scene, script);
    let backend = gate.launch("a", launcher).await.unwrap().value;
    let child = number_in(&scene, "child").await;
    touch(&scene, "go");
    until_gone(backend.pid).await;
    // An orderly end would take the charge back.
    for _ in 0..50 {
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        assert_eq!(gate.snapshot("a").await.budget.attempts_used, 1);
    }
    kill(child);
}

#[tokio::test]
async fn a_broker_that_stops_an_attached_backend_leaves_nothing_of_its_group() {
    let scene = Scene::new();
    let launcher = attached(&scene, STUBBORN);
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let group = group_of(backend.pid);
    let child = number_in(&scene, "child").await;
    end(&launcher, &backend).await;
    eventually(|| (!lives(child)).then_some(())).await;
    until_no_member(group).await;
}
