//! What a process that had to wait for another one's lock hears (promises 20 and 21).

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{Acquired, BackendLauncher, GateError, How, LaunchError, LaunchPermit};
use tokio::sync::Semaphore;

use super::{KEY, fail_once, gate, lock_path, permit};
use crate::step_clock::StepClock;

/// Launches as the test tells it to.
#[derive(Clone)]
struct Scripted {
    launches: Arc<AtomicU32>,
    go: Arc<Semaphore>,
    started: Arc<Semaphore>,
    found: Arc<AtomicU32>,
    fails: bool,
}

impl Scripted {
    fn new(fails: bool) -> Self {
        Self {
            launches: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
            started: Arc::new(Semaphore::new(0)),
            found: Arc::default(),
            fails,
        }
    }
}

#[async_trait]
impl BackendLauncher<&'static str, u32> for Scripted {
    async fn discover(
        &self,
        _: &&'static str,
    ) -> Result<Option<u32>, Box<dyn Error + Send + Sync>> {
        let found = self.found.load(Ordering::SeqCst);
        Ok((found != 0).then_some(found))
    }

    async fn launch(
        &self,
        _: &LaunchPermit<&'static str, u32>,
    ) -> Result<u32, Box<dyn Error + Send + Sync>> {
        let launch = self.launches.fetch_add(1, Ordering::SeqCst) + 1;
        self.started.add_permits(1);
        self.go.acquire().await?.forget();
        if self.fails {
            return Err(format!("launch {launch} cannot\nfind its program").into());
        }
        self.found.store(launch, Ordering::SeqCst);
        Ok(launch)
    }
}

/// One gate launches; when that is under way another one asks. The launch ends once the other one waits for the lock.
async fn launch_and_wait(
    directory: &Path,
    launcher: &Scripted,
) -> [Result<spawn_gate::Launched<u32>, GateError>; 2] {
    let clock = StepClock::new();
    let (one, other) = (gate(directory, &clock), gate(directory, &clock));
    let first = tokio::spawn({
        let launcher = launcher.clone();
        async move { one.launch(KEY, launcher).await }
    });
    launcher.started.acquire().await.unwrap().forget();
    let second = tokio::spawn({
        let (other, launcher) = (other.clone(), launcher.clone());
        async move { other.launch(KEY, launcher).await }
    });
    loop {
        let flight = other.snapshot(KEY).await.flight;
        if let Some(holder) = flight.and_then(|flight| flight.waiting_for) {
            assert_eq!(holder.pid, std::process::id());
            assert_eq!(holder.path, lock_path(directory));
            break;
        }
        tokio::task::yield_now().await;
    }
    // For a second launch too, so that one which must not be is seen and not waited for.
    launcher.go.add_permits(2);
    [first.await.unwrap(), second.await.unwrap()]
}

#[tokio::test]
async fn a_process_that_waited_joins_what_another_one_launched() {
    let directory = tempfile::tempdir().unwrap();
    let launcher = Scripted::new(false);
    let [one, other] = launch_and_wait(directory.path(), &launcher).await;
    assert_eq!(one.unwrap().how, How::Led);
    assert_eq!(other.unwrap().how, How::Discovered);
    assert_eq!(launcher.launches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_process_that_waited_shares_the_failure_with_its_message_and_makes_no_attempt_of_its_own()
{
    let directory = tempfile::tempdir().unwrap();
    let launcher = Scripted::new(true);
    let [one, other] = launch_and_wait(directory.path(), &launcher).await;
    assert!(matches!(
        one,
        Err(GateError::Launch(LaunchError::Failed { attempt: 1, .. }))
    ));
    let Err(GateError::Launch(LaunchError::FailedElsewhere { message, .. })) = other else {
        panic!("not shared: {other:?}");
    };
    assert_eq!(&*message, r"launch 1 cannot\nfind its program");
    assert_eq!(launcher.launches.load(Ordering::SeqCst), 1);
    let after = gate(directory.path(), &StepClock::new())
        .snapshot(KEY)
        .await;
    assert_eq!(after.budget.attempts_used, 1);
}

#[tokio::test]
async fn a_failure_from_before_the_wait_is_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    fail_once(&gate(directory.path(), &clock)).await;
    // To the millisecond, as the ledger tells it.
    clock.advance(Duration::from_millis(1));
    // Holds the lock without launching, so that the next one has to wait.
    let holder = gate(directory.path(), &clock);
    let held = permit(&holder).await;
    let waiter = gate(directory.path(), &clock);
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire(KEY).await }
    });
    while waiter
        .snapshot(KEY)
        .await
        .flight
        .is_none_or(|flight| flight.waiting_for.is_none())
    {
        tokio::task::yield_now().await;
    }
    held.refund().await;
    let Acquired::Led(permit) = waiting.await.unwrap().unwrap() else {
        panic!("nobody launched");
    };
    assert_eq!(permit.attempt_number(), 2);
}
