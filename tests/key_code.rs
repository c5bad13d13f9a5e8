//! User code in keys (promises 3 and 28): whatever it does, and wherever the gate runs it, no other caller is kept waiting.

mod support;

use std::fmt::Debug;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::{Acquired, BackendKey, BrokerInstanceKey, GateError, GateKey, SpawnGate};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::hooked_key::{Key, On, key};
use crate::support::{fail_once, gate, lead};

type Gate = SpawnGate<Key, u32>;

/// A panic that is thrown once, when it is armed.
#[derive(Clone, Default)]
struct Bomb(Arc<AtomicBool>);

impl Bomb {
    fn arm(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn fuse(&self) -> impl Fn() + Send + Sync + 'static {
        let armed = Arc::clone(&self.0);
        move || assert!(!armed.swap(false, Ordering::SeqCst), "scripted")
    }
}

/// Longer than any deadline of the gate.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_request_that_is_kept_and_not_polled_keeps_its_table_from_nobody() {
    type Kept = Pin<Box<dyn Future<Output = ()> + Send>>;

    let gate = gate();
    fail_once(&gate, key("key")).await;
    let kept: Arc<Mutex<Option<Kept>>> = Arc::default();
    let meets_another = {
        let (gate, kept) = (gate.clone(), Arc::clone(&kept));
        // While keys are compared, the table is held; another request comes just then.
        move || {
            let mut kept = kept.lock().unwrap();
            if kept.is_none() {
                let gate = gate.clone();
                let mut request = Box::pin(async move {
                    drop(gate.acquire(key("key")).await);
                });
                let mut context = Context::from_waker(Waker::noop());
                assert!(request.as_mut().poll(&mut context).is_pending());
                *kept = Some(request);
            }
        }
    };
    let meeting = Key::hooked("key", On::Compare, meets_another);
    lead(&gate, meeting).await.succeed(1).await.unwrap();
    assert!(kept.lock().unwrap().is_some());

    let next = timeout(FOR_EVER, lead(&gate, key("key"))).await;
    next.expect("the table is free").succeed(2).await.unwrap();
    let closed = timeout(FOR_EVER, gate.close()).await;
    closed.expect("all tables are free").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_its_table_held_wakes_itself() {
    let gate = gate();
    fail_once(&gate, key("key")).await;
    let woken: Arc<Mutex<Vec<bool>>> = Arc::default();
    let meets_another = {
        let (gate, woken) = (gate.clone(), Arc::clone(&woken));
        move || {
            let mut request = task::spawn(gate.snapshot(key("key")));
            assert_pending!(request.poll());
            woken.lock().unwrap().push(request.is_woken());
        }
    };
    let meeting = Key::hooked("key", On::Compare, meets_another);
    drop(lead(&gate, meeting).await);
    // Nobody else can be relied on: whoever drives the request may hold up its thread's scheduler meanwhile.
    assert_eq!(*woken.lock().unwrap(), [true]);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_drop_panics_leaves_no_flight_behind() {
    let gate = gate();
    fail_once(&gate, key("key")).await;
    let bomb = Bomb::default();
    let fragile = Key::hooked("key", On::Drop, bomb.fuse());
    bomb.arm();
    let request = tokio::spawn({
        let gate = gate.clone();
        async move { drop(gate.acquire(fragile).await) }
    });
    assert!(request.await.unwrap_err().is_panic());
    assert!(gate.snapshot(key("key")).await.flight.is_none());
    fail_once(&gate, key("key")).await;
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_key_whose_drop_panics_leaves_no_flight_behind() {
    // Chance decides whether the two keys share a table.
    for _ in 0..20 {
        let gate = gate();
        let bomb = Bomb::default();
        fail_once(&gate, Key::hooked("idle", On::Drop, bomb.fuse())).await;
        fail_once(&gate, key("key")).await;
        sleep(FOR_EVER).await;
        bomb.arm();
        let request = tokio::spawn({
            let gate = gate.clone();
            async move { drop(gate.acquire(key("key")).await) }
        });
        assert!(request.await.unwrap_err().is_panic());
        assert!(gate.snapshot(key("key")).await.flight.is_none());
    }
}

/// Makes a key that notes, when it is dropped, whether its table is free.
fn looking(gate: &Gate) -> (Key, Arc<Mutex<Vec<bool>>>) {
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let look = {
        let (gate, seen) = (gate.clone(), Arc::clone(&seen));
        move || {
            let look = pin!(gate.snapshot(key("key")));
            let polled = look.poll(&mut Context::from_waker(Waker::noop()));
            seen.lock().unwrap().push(polled.is_ready());
        }
    };
    (Key::hooked("key", On::Drop, look), seen)
}

#[tokio::test(start_paused = true)]
async fn a_key_is_dropped_while_its_table_is_free() {
    let gate = gate();
    fail_once(&gate, key("key")).await;

    let (leading, seen) = looking(&gate);
    let permit = lead(&gate, leading).await;
    assert_eq!(*seen.lock().unwrap(), [true], "of a leader");

    let (following, seen) = looking(&gate);
    let mut follower = task::spawn(gate.acquire(following));
    assert_pending!(follower.poll());
    assert_eq!(*seen.lock().unwrap(), [true], "of a follower");
    drop(follower);

    permit.fail("no such program").await;
    fail_once(&gate, key("key")).await;
    let (refused, seen) = looking(&gate);
    assert!(gate.acquire(refused).await.is_err());
    assert_eq!(*seen.lock().unwrap(), [true], "of one that is refused");

    gate.close().await.unwrap();
    let (late, seen) = looking(&gate);
    let late = gate.acquire(late).await;
    assert!(matches!(late, Err(GateError::Closed)));
    assert_eq!(*seen.lock().unwrap(), [true], "of one that comes too late");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_key_is_dropped_while_its_table_is_free() {
    let gate = gate();
    let (idle, seen) = looking(&gate);
    fail_once(&gate, idle).await;
    for _ in 0..3 {
        sleep(FOR_EVER).await;
        fail_once(&gate, key("other")).await;
    }
    assert_eq!(*seen.lock().unwrap(), [true]);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_when_a_follower_takes_over_is_that_followers_loss_alone() {
    let gate = gate();
    let bomb = Bomb::default();
    let fragile = Key::hooked("key", On::Clone, bomb.fuse());
    let permit = lead(&gate, fragile).await;
    let followers: Vec<_> = (0..3)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move {
                match gate.acquire(key("key")).await.unwrap() {
                    Acquired::Led(permit) => permit.succeed(5).await.map(|()| 5).unwrap(),
                    Acquired::Joined(value) => value,
                }
            })
        })
        .collect();
    while gate.snapshot(key("key")).await.flight.unwrap().waiting < 3 {
        yield_now().await;
    }
    bomb.arm();
    permit.refund().await;
    let mut lost = 0;
    for follower in followers {
        match follower.await {
            Ok(value) => assert_eq!(value, 5),
            Err(error) => lost += u32::from(error.is_panic()),
        }
    }
    assert_eq!(lost, 1);
    assert!(gate.snapshot(key("key")).await.flight.is_none());
}

/// A task's handle that looks, on another thread, whether the table of `key` is free.
struct Looks {
    gate: Gate,
    seen: Mutex<Vec<bool>>,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let gate = self.gate.clone();
        let look = std::thread::spawn(move || {
            let look = pin!(gate.snapshot(key("key")));
            let polled = look.poll(&mut Context::from_waker(Waker::noop()));
            polled.is_ready()
        });
        self.seen.lock().unwrap().push(look.join().unwrap());
    }
}

#[tokio::test]
async fn a_request_that_gives_way_wakes_itself_while_its_table_is_free() {
    let gate = gate();
    let looks = Arc::new(Looks {
        gate: gate.clone(),
        seen: Mutex::default(),
    });
    let waker = Waker::from(Arc::clone(&looks));
    // As often as a task may go on without giving way, and more.
    for _ in 0..1000 {
        let mut request = pin!(gate.snapshot(key("key")));
        while request
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {}
    }
    let seen = looks.seen.lock().unwrap();
    assert!(!seen.is_empty(), "it never gave way");
    assert!(seen.iter().all(|&is_free| is_free), "{seen:?}");
}

/// What a panic leaves that is not even over when it was caught.
struct Splinter;

impl Drop for Splinter {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("scripted");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_whose_key_cannot_be_named_is_dropped_without_a_panic_and_its_followers_hear() {
    let gate = gate();
    let is_armed = Arc::<AtomicBool>::default();
    let nameless = Key::hooked("key", On::Name, {
        let is_armed = Arc::clone(&is_armed);
        move || {
            if is_armed.load(Ordering::SeqCst) {
                std::panic::panic_any(Splinter);
            }
        }
    });
    let permit = lead(&gate, nameless).await;
    let mut follower = task::spawn(gate.acquire(key("key")));
    assert_pending!(follower.poll());
    is_armed.store(true, Ordering::SeqCst);
    drop(permit);
    assert!(matches!(
        assert_ready!(follower.poll()),
        Err(GateError::Launch(LaunchError::Abandoned { .. }))
    ));
}

/// A task's handle that panics when it is used.
struct BrokenHandle;

impl Wake for BrokenHandle {
    fn wake(self: Arc<Self>) {
        panic!("scripted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_one_of_whose_followers_cannot_be_woken_is_dropped_without_a_panic() {
    let gate = gate();
    let permit = lead(&gate, key("key")).await;
    let mut follower = Box::pin(gate.acquire(key("key")));
    let broken = Waker::from(Arc::new(BrokenHandle));
    let mut context = Context::from_waker(&broken);
    assert!(follower.as_mut().poll(&mut context).is_pending());
    drop(permit);
    assert!(gate.snapshot(key("key")).await.flight.is_none());
    assert!(matches!(
        follower.await,
        Err(GateError::Launch(LaunchError::Abandoned { .. }))
    ));
}

/// Keys of which no two are equal, and all have the same hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alike(&'static str);

impl Hash for Alike {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl GateKey for Alike {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.0.as_bytes());
    }
}

/// Holds the permits of two keys at the same time.
async fn lead_at_once<K: GateKey>(keys: [K; 2]) {
    let gate = gate();
    let mut permits = Vec::new();
    for key in keys {
        permits.push(lead(&gate, key).await);
    }
    for permit in permits {
        permit.succeed(1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_hash_alike_are_launched_side_by_side() {
    lead_at_once(["one", "other"].map(Alike)).await;
}

#[tokio::test(start_paused = true)]
async fn keys_whose_fields_differ_only_in_where_they_end_are_launched_side_by_side() {
    let key = |(name, version)| BackendKey::new(BrokerInstanceKey::Shared, name, version);
    lead_at_once([("ab", "c"), ("a", "bc")].map(key)).await;
}
