//! Spawn locks that panic or hang, and a runtime that shuts down: every caller hears it, once, and nothing spins or is stuck.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spawn_gate::{
    Acquired, BackendLauncher, BoxError, GateError, How, InMemorySpawnLock, LaunchError,
    LaunchPermit, Ledger, LedgerReading, SpawnGate, SpawnLease, SpawnLock, SpawnLockError,
    async_trait,
};

/// What goes wrong with the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    PanicsAtTheTry,
    /// Answers the first time, before the permit, and then no more.
    HangsAtVerify,
    /// Is held at the first try, and does not tell of its release.
    NeverTellsOfItsRelease,
    /// Keeps a ledger, whose third write is that of a launch's outcome.
    PanicsAtTheLastWrite,
}

#[derive(Debug)]
struct HostileLock {
    trouble: Trouble,
    tries: Arc<AtomicU32>,
}

#[async_trait]
impl SpawnLock<&'static str> for HostileLock {
    async fn try_acquire(&self, _: &&'static str) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        let tries = self.tries.fetch_add(1, Ordering::SeqCst) + 1;
        assert_ne!(self.trouble, Trouble::PanicsAtTheTry, "scripted");
        if self.trouble == Trouble::NeverTellsOfItsRelease && tries == 1 {
            return Err(SpawnLockError::AlreadyLocked {
                path: "hostile".into(),
            });
        }
        Ok(Box::new(HostileLease {
            trouble: self.trouble,
            verified: AtomicU32::new(0),
            writes: 0,
        }))
    }

    async fn released(&self, _: &&'static str, _: Duration) {
        pending().await
    }

    fn keeps_ledger(&self) -> bool {
        self.trouble == Trouble::PanicsAtTheLastWrite
    }
}

#[derive(Debug)]
struct HostileLease {
    trouble: Trouble,
    verified: AtomicU32,
    writes: u32,
}

#[async_trait]
impl SpawnLease for HostileLease {
    fn fencing_token(&self) -> u64 {
        1
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        let is_first = self.verified.fetch_add(1, Ordering::SeqCst) == 0;
        if self.trouble == Trouble::HangsAtVerify && !is_first {
            pending::<()>().await;
        }
        Ok(())
    }

    fn ledger(&self) -> LedgerReading {
        match self.trouble {
            Trouble::PanicsAtTheLastWrite => LedgerReading::Found(Box::default()),
            _ => LedgerReading::NotKept,
        }
    }

    async fn write_ledger(&mut self, _: &Ledger) -> Result<(), SpawnLockError> {
        self.writes += 1;
        assert_ne!(self.writes, 3, "scripted");
        Ok(())
    }
}

struct Launcher;

#[async_trait]
impl BackendLauncher<&'static str, u32> for Launcher {
    async fn discover(&self, _: &&'static str) -> Result<Option<u32>, BoxError> {
        Ok(None)
    }

    async fn launch(&self, _: &LaunchPermit<&'static str, u32>) -> Result<u32, BoxError> {
        Ok(7)
    }
}

fn gate(trouble: Trouble) -> (SpawnGate<&'static str, u32>, Arc<AtomicU32>) {
    let tries = Arc::<AtomicU32>::default();
    let lock = HostileLock {
        trouble,
        tries: Arc::clone(&tries),
    };
    (SpawnGate::builder(lock).build(), tries)
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_permit_is_heard_by_all_and_run_into_once() {
    let (gate, tries) = gate(Trouble::PanicsAtTheTry);
    let ask = || gate.launch("key", Launcher);
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    for heard in [one, two, three] {
        let heard = heard.unwrap_err();
        assert!(
            matches!(heard, GateError::Launch(LaunchError::Panicked { .. })),
            "{heard:?}"
        );
    }
    assert_eq!(tries.load(Ordering::SeqCst), 1);
    assert_eq!(gate.snapshot("key").await.budget.attempts_used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_does_not_answer_ends_the_flight_as_lost() {
    let (gate, _) = gate(Trouble::HangsAtVerify);
    let Ok(Acquired::Led(permit)) = gate.acquire("key").await else {
        panic!("nobody else launches");
    };
    let hour = Duration::from_secs(3600);
    let settled = tokio::time::timeout(hour, permit.succeed(7)).await;
    let error = settled.expect("it hangs").unwrap_err();
    let GateError::Launch(LaunchError::LockLost { source, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(*source, SpawnLockError::Unresponsive { .. }));
    assert!(gate.snapshot("key").await.flight.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_does_not_tell_of_its_release_is_tried_again_after_a_second() {
    let (gate, tries) = gate(Trouble::NeverTellsOfItsRelease);
    let asked = tokio::time::Instant::now();
    let acquired = gate.acquire("key").await;
    assert!(matches!(acquired, Ok(Acquired::Led(_))), "{acquired:?}");
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    assert_eq!(asked.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_panics_when_a_success_is_written_does_not_take_the_launch_with_it() {
    let (gate, _) = gate(Trouble::PanicsAtTheLastWrite);
    let ask = || gate.launch("key", Launcher);
    let (one, other) = tokio::join!(ask(), ask());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.value, one.how), (7, How::Led));
    assert_eq!((other.value, other.how), (7, How::Joined));
}

/// A lock whose holder never lets go and whose tries are not answered at once.
#[derive(Debug)]
struct SlowLock;

#[async_trait]
impl SpawnLock<&'static str> for SlowLock {
    async fn try_acquire(&self, _: &&'static str) -> Result<Box<dyn SpawnLease>, SpawnLockError> {
        pending().await
    }
}

#[test]
fn a_request_for_a_permit_on_a_runtime_that_was_shut_down_is_refused_and_does_not_spin() {
    let gate: SpawnGate<&str, u32> = SpawnGate::builder(SlowLock).build();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, other) = (runtime(), runtime());
    let mut request = tokio_test::task::spawn(gate.acquire("key"));
    {
        let _context = first.enter();
        assert!(request.poll().is_pending());
    }
    drop(first);
    assert!(request.is_woken());
    let _context = other.enter();
    let heard = tokio_test::assert_ready!(request.poll()).unwrap_err();
    assert!(matches!(heard, GateError::ShutDown), "{heard:?}");
}

#[test]
fn a_launch_on_a_runtime_that_was_shut_down_is_refused_and_does_not_spin() {
    let gate: SpawnGate<&str, u32> = SpawnGate::builder(InMemorySpawnLock::new()).build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    runtime.shutdown_timeout(Duration::from_secs(60));
    let _context = handle.enter();
    let mut request = tokio_test::task::spawn(gate.launch("key", Launcher));
    let heard = tokio_test::assert_ready!(request.poll()).unwrap_err();
    assert!(matches!(heard, GateError::ShutDown), "{heard:?}");
}
