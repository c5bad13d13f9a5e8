//! One launch for all callers, and one outcome: promises 1 to 3, 7 and 9.

use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::spawn;
use spawn_gate::{Acquired, GateError};

use crate::callers::{BAD, GOOD, MIXED, ask, callers, drive, heard};
use crate::lock::Lock;
use crate::world::{MAX_ATTEMPTS, World, pause};

#[test]
fn every_caller_gets_the_value_of_a_launch_that_is_up() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let callers = callers(3, &gate, &world, "a", GOOD);
        for heard in heard(callers).await {
            world.check_value(heard.unwrap());
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_failure_is_shared_and_charged_once() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let callers = callers(5, &gate, &world, "a", BAD);
        let mut firsts = Vec::new();
        for heard in heard(callers).await {
            match heard.unwrap_err() {
                GateError::Launch(_) => {}
                GateError::BudgetExhausted(refusal) => firsts.push(refusal.first),
                error => panic!("{error:?}"),
            }
        }
        assert!(world.launches() <= MAX_ATTEMPTS as usize);
        // No attempt became free meanwhile.
        if !firsts.is_empty() {
            let firsts = firsts.iter().filter(|&&first| first).count();
            assert_eq!(firsts, 1, "first refusals");
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_follower_that_has_its_outcome_finds_the_lock_free() {
    explore(Time::Waits, async || {
        let world = World::default();
        let lock = Lock::new();
        let gate = world.gate(lock.clone());
        let key = world.key("a");
        let leading = spawn(ask(gate.clone(), key.clone(), world.clone(), MIXED));
        pause().await;
        match gate.acquire(key.clone()).await {
            Ok(Acquired::Led(permit)) => _ = drive(permit, &world, MIXED).await,
            // It followed the other caller, and there is no third.
            _ => assert!(lock.take(&key).await.is_some(), "the lock is held"),
        }
        leading.await.unwrap().ok();
        world.check(&gate, "a").await;
    });
}

#[test]
fn keys_do_not_wait_for_each_other_and_are_charged_apart() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let mut all = callers(2, &gate, &world, "a", MIXED);
        all.extend(callers(2, &gate, &world, "b", MIXED));
        for heard in heard(all).await {
            match heard {
                Ok(value) => world.check_value(value),
                Err(GateError::Launch(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        world.check(&gate, "a").await;
        world.check(&gate, "b").await;
    });
}
