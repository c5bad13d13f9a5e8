//! Promise 10: a backend that leaves when idle, and its callers.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::process::{Ready, Stop};
use spawn_gate::{How, launcher_fn};
use tokio::sync::{Notify, watch};

use crate::backends::{IDLE, backend_in, noted, result, strict_gate, use_it, user_in};
use crate::kit::{Launcher, Scene, until_gone};
use crate::scenes::{AN_AGE, set_clock_forward};

/// The calls of all callers together. More: set it in the environment.
const ROUNDS: &str = "PROCESS_TEST_ROUNDS";

/// About the pace of the calls.
const IDLE_MILLIS: &str = "1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_and_never_are_there_two_backends_when_idle_ones_leave_at_the_pace_of_the_calls()
 {
    let rounds: u64 = std::env::var(ROUNDS).map_or(600, |rounds| rounds.parse().unwrap());
    let scene = Scene::new();
    let outer = scene.outer();
    let gate = strict_gate(&scene.files()).unwrap();
    let of = outer.clone();
    let launcher = Launcher::new(&gate, scene.files(), move |_| {
        let mut backend = backend_in(&of);
        backend.env(IDLE, IDLE_MILLIS);
        Ok((backend, Ready::notify()))
    });
    let calls = rounds / 4;
    let processes: Vec<_> = (0..2)
        .map(|_| {
            user_in(&outer, calls)
                .env(IDLE, IDLE_MILLIS)
                .spawn()
                .unwrap()
        })
        .collect();
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let launcher = launcher.clone();
            tokio::spawn(async move { use_it(&launcher, calls).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    for process in processes {
        assert_eq!(result(process).await, "served");
    }
    // None is there when this returns.
    launcher.stop("a", Stop::Orderly).await.unwrap();

    let journal = noted(&outer, "journal");
    let mut left = 0;
    for lives in journal.chunks(2) {
        let [begin, end] = lives else {
            panic!("{journal:?}");
        };
        let pid = begin
            .strip_prefix("begin ")
            .unwrap_or_else(|| panic!("{journal:?}"));
        assert!(end.starts_with(&format!("end {pid} ")), "{journal:?}");
        left += usize::from(end.ends_with("Idle"));
    }
    // Else the idle time is not at the pace of the calls.
    assert!(left > 3, "{journal:?}");
}

#[tokio::test]
async fn a_backend_does_not_leave_while_it_is_in_use_or_busy() {
    let scene = Scene::new();
    let outer = scene.outer();
    let launcher = scene.launcher(move |_| {
        let mut backend = backend_in(&outer);
        backend.env(IDLE, "0");
        Ok((backend, Ready::notify()))
    });
    let used = launcher.in_use("a").await.unwrap();
    // Each try to leave fails while the lock is shared.
    for _ in 0..20 {
        assert_eq!(crate::backends::call(&used).await.unwrap(), used.pid);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let pid = used.pid;
    drop(used);
    until_gone(pid).await;
    let journal = noted(&scene.outer(), "journal");
    assert_eq!(journal, [format!("begin {pid}"), format!("end {pid} Idle")]);
}

#[tokio::test]
async fn callers_use_a_backend_at_the_same_time() {
    let scene = Scene::new();
    // None waits for the other.
    let launcher = scene.rust_launcher();
    let launcher = launcher.look_timeout(Duration::ZERO).grace(Duration::ZERO);
    let first = launcher.in_use("a").await.unwrap();
    let second = launcher.in_use("a").await.unwrap();
    assert_eq!(second.how(), How::Discovered);
    assert_eq!(second.pid, first.pid);
    drop((first, second));
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn a_caller_waits_as_long_as_a_backend_that_leaves_may_take_to_end() {
    let scene = Scene::new();
    let launcher = scene.rust_launcher();
    let left = launcher.in_use("a").await.unwrap().pid;
    launcher.stop("a", Stop::Orderly).await.unwrap();
    // As the backend has it while it leaves.
    let lock = fs::File::open(scene.file(".use")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let launcher = launcher.look_timeout(Duration::ZERO).grace(AN_AGE);
    let using = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.in_use("a").await }
    });
    // It tries again and again meanwhile.
    for _ in 0..50 {
        set_clock_forward(AN_AGE / 100).await;
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        assert!(!using.is_finished());
    }
    drop(lock);
    let used = using.await.unwrap().unwrap();
    assert_ne!(used.pid, left);
    drop(used);
    launcher.stop("a", Stop::Force).await.unwrap();
}

#[tokio::test]
async fn an_idle_exit_is_not_charged_although_the_process_that_launched_it_is_gone() {
    let scene = Scene::new();
    let outer = scene.outer();
    for round in 1..=5 {
        let user = user_in(&outer, 1).env(IDLE, "0").spawn().unwrap();
        assert_eq!(result(user).await, "served", "{round}");
        let journal = noted(&outer, "journal");
        let begins = journal
            .iter()
            .filter_map(|line| line.strip_prefix("begin "));
        let begins: Vec<u32> = begins.map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(begins.len(), round, "{journal:?}");
        until_gone(*begins.last().unwrap()).await;
    }
}

#[tokio::test]
async fn a_caller_that_joins_a_flight_which_found_one_that_has_left_since_gets_a_new_one() {
    let scene = Scene::new();
    let launcher = scene.rust_launcher();
    let left = launcher.in_use("a").await.unwrap().clone();
    launcher.stop("a", Stop::Orderly).await.unwrap();
    // A look that found it before it left, and returns only now.
    let (begun, (go, gone)) = (Arc::new(Notify::new()), watch::channel(false));
    let slow = {
        let (begun, left) = (begun.clone(), left.clone());
        launcher_fn(
            move |_| {
                let (begun, left, mut gone) = (begun.clone(), left.clone(), gone.clone());
                async move {
                    begun.notify_one();
                    gone.wait_for(|gone| *gone).await?;
                    Ok(Some(left))
                }
            },
            |_| async { Err("it was found".into()) },
        )
    };
    let gate = scene.gate.clone();
    let leader = tokio::spawn(async move { gate.launch("a", slow).await });
    begun.notified().await;
    let follower = tokio::spawn({
        let launcher = launcher.clone();
        async move { launcher.in_use("a").await }
    });
    let follows = async {
        while scene.gate.snapshot("a").await.flight.unwrap().waiting < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::kit::LIMIT, follows)
        .await
        .unwrap();
    go.send(true).unwrap();
    assert_eq!(leader.await.unwrap().unwrap().value, left);
    let used = follower.await.unwrap().unwrap();
    assert_ne!(used.pid, left.pid);
    assert_eq!(crate::backends::call(&used).await.unwrap(), used.pid);
    drop(used);
    launcher.stop("a", Stop::Orderly).await.unwrap();
}
