//! The cancellation matrix (promises 1, 3, 4, 7, 11, 25): each party is dropped at each stage, with each result of that stage.
//! The others get the outcome, the charge is right, and nothing stays in flight or locked.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use spawn_gate::error::{LaunchError, Stage};
use spawn_gate::{
    Acquired, BackendLauncher, GateError, GateKey, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate,
    SpawnLockError,
};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::hooked_key::{Key, On, key};
use crate::support::script::Script;
use crate::support::scripted_lock::{ScriptedLock, lost};
use crate::support::{lead, until_waiting};

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// `acquire`, and the caller runs the launcher itself.
    Acquire,
    /// `launch`.
    Launch,
}

/// The stage that the flight is in when somebody is dropped. The table has a test of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Lock,
    Discover,
    Launch,
    /// The lock is verified before the outcome is published.
    Settle,
    /// As `Launch`, but a follower has less time than a slow launch takes.
    Follow,
}

/// What the stage does after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Ok,
    Err,
    Slow,
    Never,
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    Nobody,
    Leader,
    Follower,
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    call: Call,
    at: At,
    does: Does,
    dropped: Dropped,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Value(u32),
    LockFailed,
    DiscoverFailed,
    Failed,
    Panicked,
    Abandoned,
    LockLost,
    TimedOut(Stage),
    /// The request itself panicked, in the caller's own code.
    OwnPanic,
    /// It waits for ever, in the caller's own code.
    Waits,
    Dropped,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    leader: Heard,
    follower: Heard,
    charged: u32,
    launches: usize,
}

const LAUNCHED: u32 = 7;
const FOUND: u32 = 5;
const KEY: &str = "key";
const SLOW: Duration = Duration::from_secs(5);
const SHORT_FOLLOW: Duration = Duration::from_secs(3);
/// Longer than all limits of a gate together.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What holds for a cell.
fn contract(cell: Cell) -> Seen {
    let leader_drops = matches!(cell.dropped, Dropped::Leader | Dropped::Both);
    let follower_drops = matches!(cell.dropped, Dropped::Follower | Dropped::Both);
    // What the leader and the follower hear, the charge, the launches.
    let (leader, follower, charged, launches) = match (cell.at, cell.does) {
        // A dropped leader of `acquire` had no permit yet: its follower takes over and goes through the same.
        (At::Lock, _) if cell.call == Call::Acquire && cell.dropped == Dropped::Both => {
            (Heard::Dropped, Heard::Dropped, 0, 0)
        }
        (At::Lock, Does::Ok | Does::Slow) => (value(), value(), 1, 1),
        (At::Lock, Does::Err) => (Heard::LockFailed, Heard::LockFailed, 0, 0),
        (At::Lock, _) => (
            Heard::TimedOut(Stage::Lock),
            Heard::TimedOut(Stage::Lock),
            0,
            0,
        ),

        (At::Discover, Does::Ok | Does::Slow) => (Heard::Value(FOUND), Heard::Value(FOUND), 0, 0),
        (At::Discover, Does::Err) => (Heard::DiscoverFailed, Heard::DiscoverFailed, 0, 0),
        (At::Discover, Does::Never) => (
            Heard::TimedOut(Stage::Discover),
            Heard::TimedOut(Stage::Discover),
            0,
            0,
        ),
        (At::Discover, Does::Panic) => (Heard::Panicked, Heard::Panicked, 0, 0),

        // A dropped leader of `acquire` had its permit: something may have been started.
        _ if cell.call == Call::Acquire && leader_drops => (Heard::Dropped, Heard::Abandoned, 1, 1),
        (At::Follow, Does::Slow) => (value(), Heard::TimedOut(Stage::Follow), 1, 1),
        (_, Does::Ok | Does::Slow) => (value(), value(), 1, 1),
        (At::Settle, Does::Err) => (Heard::LockLost, Heard::LockLost, 1, 1),
        (_, Does::Err) => (Heard::Failed, Heard::Failed, 1, 1),
        (_, Does::Panic) if cell.call == Call::Acquire => (Heard::OwnPanic, Heard::Panicked, 1, 1),
        (_, Does::Panic) => (Heard::Panicked, Heard::Panicked, 1, 1),
        (_, Does::Never) if cell.call == Call::Acquire => {
            (Heard::Waits, Heard::TimedOut(Stage::Follow), 1, 1)
        }
        (At::Follow, Does::Never) => (
            Heard::TimedOut(Stage::Launch),
            Heard::TimedOut(Stage::Follow),
            1,
            1,
        ),
        (_, Does::Never) => (
            Heard::TimedOut(Stage::Launch),
            Heard::TimedOut(Stage::Launch),
            1,
            1,
        ),
    };
    Seen {
        leader: if leader_drops { Heard::Dropped } else { leader },
        follower: if follower_drops {
            Heard::Dropped
        } else {
            follower
        },
        charged,
        launches,
    }
}

fn value() -> Heard {
    Heard::Value(LAUNCHED)
}

/// Whether the cell says something about the gate.
fn applies(cell: Cell) -> bool {
    let leader_drops = matches!(cell.dropped, Dropped::Leader | Dropped::Both);
    match (cell.call, cell.at, cell.does) {
        // `acquire` does not look.
        (Call::Acquire, At::Discover, _) => false,
        // What panics is the launcher, not a lock.
        (_, At::Lock, Does::Panic) => false,
        // The caller itself waits there for ever; or, in `launch`, the flight does.
        (_, At::Settle, Does::Never) => cell.call == Call::Acquire && leader_drops,
        // Whether the time of followers is the leader's too is left open.
        (Call::Launch, At::Follow, Does::Slow | Does::Never) => leader_drops,
        _ => true,
    }
}

/// The one scripted stage of a cell.
struct Trap {
    cell: Cell,
    armed: AtomicBool,
    entered: Notify,
    released: watch::Sender<bool>,
}

impl Trap {
    /// Called in every stage; only the cell's own does something.
    async fn pass(&self, at: At) -> Result<(), &'static str> {
        let meant = match self.cell.at {
            At::Follow => At::Launch,
            other => other,
        };
        if at != meant || !self.armed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.entered.notify_one();
        let _ = self
            .released
            .subscribe()
            .wait_for(|&released| released)
            .await;
        match self.cell.does {
            Does::Ok => Ok(()),
            Does::Err => Err("scripted"),
            Does::Slow => {
                sleep(SLOW).await;
                Ok(())
            }
            Does::Never => std::future::pending().await,
            Does::Panic => panic!("scripted"),
        }
    }
}

type Gate = SpawnGate<&'static str, u32>;

async fn request<K: GateKey + std::fmt::Debug>(
    call: Call,
    gate: SpawnGate<K, u32>,
    key: K,
    launcher: Script,
) -> Result<u32, GateError> {
    match call {
        Call::Launch => gate
            .launch(key, launcher)
            .await
            .map(|launched| launched.value),
        Call::Acquire => match gate.acquire(key).await? {
            Acquired::Joined(value) => Ok(value),
            Acquired::Led(permit) => match launcher.launch(&permit).await {
                Ok(value) => permit.succeed(value).await.map(|()| value),
                Err(error) => Err(permit.fail(error).await),
            },
        },
    }
}

fn heard(result: Result<u32, GateError>) -> Heard {
    match result {
        Ok(value) => Heard::Value(value),
        Err(GateError::Lock(_)) => Heard::LockFailed,
        Err(GateError::Timeout(timeout)) => Heard::TimedOut(timeout.stage),
        Err(GateError::Launch(error)) => match error {
            LaunchError::Discover { .. } => Heard::DiscoverFailed,
            LaunchError::Failed { .. } => Heard::Failed,
            LaunchError::Panicked { .. } => Heard::Panicked,
            LaunchError::Abandoned { .. } => Heard::Abandoned,
            LaunchError::LockLost { .. } => Heard::LockLost,
            other => panic!("unknown: {other:?}"),
        },
        Err(other) => panic!("refused: {other:?}"),
    }
}

type Request = JoinHandle<Result<u32, GateError>>;

/// Returns what became of a request. One that waits for ever is dropped in the end.
async fn end_of(mut request: Request) -> Heard {
    let ended = timeout(FOR_EVER, &mut request).await;
    let waits = ended.is_err();
    request.abort();
    let ended = match ended {
        Ok(ended) => ended,
        Err(_) => request.await,
    };
    match ended {
        Ok(result) => heard(result),
        Err(_) if waits => Heard::Waits,
        Err(error) if error.is_cancelled() => Heard::Dropped,
        Err(_) => Heard::OwnPanic,
    }
}

async fn play(cell: Cell) -> Seen {
    let trap = Arc::new(Trap {
        cell,
        armed: AtomicBool::new(true),
        entered: Notify::new(),
        released: watch::Sender::new(false),
    });
    let launcher = {
        let (at_launch, at_discover) = (Arc::clone(&trap), Arc::clone(&trap));
        Script::launching(move |_| {
            let trap = Arc::clone(&at_launch);
            async move { Ok(trap.pass(At::Launch).await.map(|()| LAUNCHED)?) }
        })
        .discovering(move |_| {
            let trap = Arc::clone(&at_discover);
            async move {
                trap.pass(At::Discover).await?;
                let is_up = trap.cell.at == At::Discover && trap.armed.load(Ordering::SeqCst);
                Ok(is_up.then_some(FOUND))
            }
        })
    };
    let real_lock = InMemorySpawnLock::new();
    let lock = {
        let (at_try, at_verify) = (Arc::clone(&trap), Arc::clone(&trap));
        let launches = launcher.clone();
        ScriptedLock::new(real_lock.clone())
            .on_try(move |_| {
                let trap = Arc::clone(&at_try);
                async move {
                    let passed = trap.pass(At::Lock).await;
                    passed.map_err(|problem| SpawnLockError::Service {
                        lock: KEY.into(),
                        source: problem.into(),
                        retry_helps: true,
                    })
                }
            })
            .on_verify(move |_| {
                let has_launched = launches.launches() > 0;
                let trap = Arc::clone(&at_verify);
                async move {
                    match has_launched {
                        true => trap.pass(At::Settle).await.map_err(|_| lost()),
                        false => Ok(()),
                    }
                }
            })
    };
    // No window ends and no success counts as stable, so that a charge which was kept can be told from a refund.
    let mut builder = Gate::builder(lock)
        .budget(SpawnBudgetConfig::new(3, 100 * FOR_EVER))
        .stable_after(100 * FOR_EVER);
    if cell.at == At::Follow {
        builder = builder.follow_timeout(SHORT_FOLLOW);
    }
    let gate = builder.build();

    let ask = || request(cell.call, gate.clone(), KEY, launcher.clone());
    let leader = tokio::spawn(ask());
    trap.entered.notified().await;
    let follower = tokio::spawn(ask());
    // The leader of `launch` waits for its own flight too.
    let waiting = 1 + usize::from(cell.call == Call::Launch);
    until_waiting(&gate, KEY, waiting).await;

    let dropped: &[&Request] = match cell.dropped {
        Dropped::Nobody => &[],
        Dropped::Leader => &[&leader],
        Dropped::Follower => &[&follower],
        Dropped::Both => &[&leader, &follower],
    };
    dropped.iter().for_each(|request| request.abort());
    while !dropped.iter().all(|request| request.is_finished()) {
        tokio::task::yield_now().await;
    }
    trap.released.send_replace(true);
    let leader = end_of(leader).await;
    let follower = end_of(follower).await;

    // A launch whose callers are all gone goes on.
    timeout(FOR_EVER, async {
        while gate.snapshot(KEY).await.budget.in_flight {
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{cell:?}: in flight for ever"));
    let snapshot = gate.snapshot(KEY).await;
    assert!(snapshot.flight.is_none(), "{cell:?}: {snapshot:?}");
    let seen = Seen {
        leader,
        follower,
        charged: snapshot.budget.attempts_used,
        launches: launcher.launches(),
    };
    is_free(&real_lock, KEY, format!("{cell:?}")).await;
    trap.armed.store(false, Ordering::SeqCst);
    let again = ask().await;
    assert!(matches!(again, Ok(LAUNCHED)), "{cell:?}: again: {again:?}");
    assert_eq!(launcher.launches(), seen.launches + 1, "{cell:?}: again");
    seen
}

/// Asserts that nobody holds the spawn lock: a gate of its own gets it at the first try.
async fn is_free<K: GateKey>(lock: &InMemorySpawnLock<K>, key: K, what: String) {
    let other_gate: SpawnGate<K, u32> = SpawnGate::builder(lock.clone())
        .lock_timeout(Duration::ZERO)
        .build();
    match other_gate.acquire(key).await {
        Ok(Acquired::Led(permit)) => permit.refund().await,
        _ => panic!("{what}: the lock is still held"),
    }
}

async fn play_all(call: Call, at: At) {
    let mut played = 0;
    let mut broken = Vec::new();
    for does in [Does::Ok, Does::Err, Does::Slow, Does::Never, Does::Panic] {
        for dropped in [
            Dropped::Nobody,
            Dropped::Leader,
            Dropped::Follower,
            Dropped::Both,
        ] {
            let cell = Cell {
                call,
                at,
                does,
                dropped,
            };
            if applies(cell) {
                played += 1;
                let (seen, expected) = (play(cell).await, contract(cell));
                if seen != expected {
                    broken.push(format!(
                        "{cell:?}\n  saw      {seen:?}\n  expected {expected:?}"
                    ));
                }
            }
        }
    }
    assert!(played > 0 && broken.is_empty(), "\n{}", broken.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_launch_cancelled_while_it_waits_for_the_lock_keeps_the_contract() {
    play_all(Call::Launch, At::Lock).await;
}

#[tokio::test(start_paused = true)]
async fn a_launch_cancelled_while_it_looks_for_a_backend_keeps_the_contract() {
    play_all(Call::Launch, At::Discover).await;
}

#[tokio::test(start_paused = true)]
async fn a_launch_cancelled_while_its_launcher_runs_keeps_the_contract() {
    play_all(Call::Launch, At::Launch).await;
}

#[tokio::test(start_paused = true)]
async fn a_launch_cancelled_while_it_settles_keeps_the_contract() {
    play_all(Call::Launch, At::Settle).await;
}

#[tokio::test(start_paused = true)]
async fn a_launch_cancelled_while_a_follower_has_little_time_keeps_the_contract() {
    play_all(Call::Launch, At::Follow).await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_cancelled_while_it_waits_for_the_lock_keeps_the_contract() {
    play_all(Call::Acquire, At::Lock).await;
}

#[tokio::test(start_paused = true)]
async fn a_permit_cancelled_while_its_holder_launches_keeps_the_contract() {
    play_all(Call::Acquire, At::Launch).await;
}

#[tokio::test(start_paused = true)]
async fn a_permit_cancelled_while_it_settles_keeps_the_contract() {
    play_all(Call::Acquire, At::Settle).await;
}

#[tokio::test(start_paused = true)]
async fn a_permit_cancelled_while_a_follower_has_little_time_keeps_the_contract() {
    play_all(Call::Acquire, At::Follow).await;
}

// The table: it is only ever held for moments, so a key that stops at being compared is needed to find it held.

/// A thread that holds the gate's table.
struct TableHolder {
    release: mpsc::Sender<Does>,
    thread: std::thread::JoinHandle<()>,
}

impl TableHolder {
    /// Returns once the thread has the table of `key`, which must be in it.
    fn new(gate: &SpawnGate<Key, u32>) -> Self {
        let (has_it, until_it_has) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let released = std::sync::Mutex::new(released);
        let slow_key = Key::hooked("key", On::Compare, move || {
            let _ = has_it.send(());
            // Nobody sends any more after the first time.
            let told = released.lock().unwrap().recv();
            if let Ok(Does::Panic) = told {
                panic!("scripted");
            }
        });
        let gate = gate.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            runtime.block_on(gate.snapshot(slow_key));
        });
        until_it_has.recv().unwrap();
        Self { release, thread }
    }

    /// Lets the thread return, or panic, with the table in its hands.
    fn release(self, does: Does) {
        self.release.send(does).unwrap();
        drop(self.release);
        assert_eq!(self.thread.join().is_err(), does == Does::Panic);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_cancelled_while_its_table_is_held_leaves_no_trace() {
    for call in [Call::Acquire, Call::Launch] {
        for does in [Does::Ok, Does::Panic] {
            for (first_drops, second_drops) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let cell = format!(
                    "{call:?}, table {does:?}, first drops: {first_drops}, second: {second_drops}"
                );
                let lock = InMemorySpawnLock::new();
                let gate = SpawnGate::builder(lock.clone()).build();
                // So that there is something to compare with.
                lead(&gate, key("key")).await.fail("scripted").await;
                let launcher = Script::launching(|_| async { Ok(LAUNCHED) });
                let ask = || request(call, gate.clone(), key("key"), launcher.clone());
                let holder = TableHolder::new(&gate);
                let mut first = Some(task::spawn(ask()));
                let mut second = Some(task::spawn(ask()));
                assert_pending!(first.as_mut().unwrap().poll(), "{cell}");
                assert_pending!(second.as_mut().unwrap().poll(), "{cell}");
                first.take_if(|_| first_drops);
                second.take_if(|_| second_drops);
                holder.release(does);

                let survivors = JoinSet::from_iter([first, second].into_iter().flatten());
                let heard = timeout(FOR_EVER, survivors.join_all()).await.expect(&cell);
                for heard in &heard {
                    assert!(matches!(heard, Ok(LAUNCHED)), "{cell}: {heard:?}");
                }
                assert_eq!(launcher.launches() > 0, !heard.is_empty(), "{cell}");
                let snapshot = gate.snapshot(key("key")).await;
                assert!(snapshot.flight.is_none(), "{cell}: {snapshot:?}");
                let used = u32::from(heard.is_empty());
                assert_eq!(snapshot.budget.attempts_used, used, "{cell}");
                is_free(&lock, key("key"), cell.clone()).await;
                assert_eq!(ask().await.expect(&cell), LAUNCHED);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_is_heard_although_the_table_is_held() {
    let lock = InMemorySpawnLock::new();
    let gate = SpawnGate::builder(lock.clone()).build();
    let permit = lead(&gate, key("key")).await;
    let mut follower = task::spawn(gate.acquire(key("key")));
    assert_pending!(follower.poll());
    let holder = TableHolder::new(&gate);
    drop(permit);
    let error = assert_ready!(follower.poll()).unwrap_err();
    assert_eq!(heard(Err(error)), Heard::Abandoned);
    is_free(&lock, key("key"), "dropped".into()).await;
    holder.release(Does::Ok);
    let snapshot = gate.snapshot(key("key")).await;
    assert_eq!(snapshot.budget.attempts_used, 1);
}
