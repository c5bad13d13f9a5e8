//! Callers that are dropped or stop polling: promises 3 to 5.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::time::Instant;
use spawn_gate::stand_in::tokio::{spawn, task, time};
use spawn_gate::{Acquired, GateError};

use crate::callers::{GOOD, Heard, MIXED, acquire, callers, drive, heard, heard_by_survivors};
use crate::lock::Lock;
use crate::world::{Key, World, pause, percent};

#[test]
fn callers_that_are_dropped_leave_nobody_waiting() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let callers = callers(4, &gate, &world, "a", MIXED);
        check(&world, heard_by_survivors(callers).await);
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_leader_that_is_dropped_before_its_permit_is_followed_by_another() {
    explore(Time::Waits, async || {
        let world = World::default();
        let lock = Lock::new();
        let gate = world.gate(lock.clone());
        let key = world.key("a");
        let elsewhere = lock.take(&key).await.expect("nobody else asks yet");
        let ask = |_| spawn(acquire(gate.clone(), key.clone(), world.clone(), GOOD));
        let callers = (0..3).map(ask).collect();
        let release = spawn(async move {
            pause().await;
            time::sleep(Duration::from_millis(20)).await;
            drop(elsewhere);
        });
        for value in heard_by_survivors(callers).await {
            world.check_value(value.unwrap());
        }
        release.await.unwrap();
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_flight_whose_callers_are_all_dropped_does_not_wait_for_the_lock() {
    explore(Time::Waits, async || {
        let world = World::default();
        let lock = Lock::new();
        let gate = world.gate(lock.clone());
        let key = world.key("a");
        let elsewhere = lock.take(&key).await;
        let ask = |_| spawn(acquire(gate.clone(), key.clone(), world.clone(), GOOD));
        let callers: Vec<_> = (0..2).map(ask).collect();
        for caller in callers {
            pause().await;
            caller.abort();
        }
        task::all_ended().await;
        assert_eq!(world.launches(), 0);
        // A lock timeout would have ended it, too.
        assert!(Instant::now() < Instant::default() + Duration::from_secs(1));
        world.check(&gate, "a").await;
        drop(elsewhere);
    });
}

#[test]
fn a_permit_that_is_not_collected_passes_to_a_follower() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::slow());
        let mut kept = Box::pin(gate.acquire(world.key("a")));
        let early = poll_once(kept.as_mut()).await;
        let callers = callers(2, &gate, &world, "a", GOOD);
        let kept = match early {
            // Its permit was ready at once, so there is none to pass on.
            Some(acquired) => {
                settle(acquired.unwrap(), &world).await;
                None
            }
            None => Some(kept),
        };
        for heard in heard(callers).await {
            world.check_value(heard.unwrap());
        }
        if let Some(kept) = kept {
            settle(kept.await.unwrap(), &world).await;
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_permit_goes_to_one_caller_even_if_it_is_collected_too_late() {
    explore(Time::Rushes, async || {
        let world = World::default();
        let gate = world.gate(Lock::slow());
        let mut kept = Box::pin(acquire(gate.clone(), world.key("a"), world.clone(), MIXED));
        let early = poll_once(kept.as_mut()).await;
        let callers = callers(2, &gate, &world, "a", MIXED);
        // About as long as a permit waits.
        time::sleep(Duration::from_secs(2)).await;
        if early.is_none() && percent(50) {
            let _ = kept.await;
        } else {
            drop(kept);
        }
        heard(callers).await;
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

/// Launches with the permit, or checks the value that was joined.
async fn settle(acquired: Acquired<Key, u64>, world: &World) {
    let value = match acquired {
        Acquired::Joined(value) => value,
        Acquired::Led(permit) => drive(permit, world, GOOD).await.unwrap(),
    };
    world.check_value(value);
}

/// Each has an outcome, and none is told that its wait was too long.
fn check(world: &World, all: Vec<Heard>) {
    assert!(!all.is_empty(), "one caller is never dropped");
    for heard in all {
        match heard {
            Ok(value) => world.check_value(value),
            Err(GateError::Launch(_) | GateError::BudgetExhausted(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Polls it once and no more.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
