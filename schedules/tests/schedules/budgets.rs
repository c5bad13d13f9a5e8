//! Refunds and resets: promises 9, 11 and 13.

use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::spawn;
use spawn_gate::{Acquired, GateError};

use crate::callers::{BAD, GOOD, Heard, MIXED, callers, drive, heard, launch};
use crate::lock::Lock;
use crate::world::{End, Gate, Key, MAX_ATTEMPTS, World, pause, percent};

/// Collects a permit and gives it back, finds a backend running, or launches one.
async fn change_of_mind(gate: Gate, key: Key, world: World) -> Heard {
    let permit = match gate.acquire(key).await? {
        Acquired::Joined(value) => return Ok(value),
        Acquired::Led(permit) => permit,
    };
    if percent(50) {
        return drive(permit, &world, MIXED).await;
    }
    let running = world.begin(permit.key());
    pause().await;
    if percent(50) {
        let value = running.end(End::Found);
        permit.discovered(value).await;
        return Ok(value);
    }
    running.end(End::Refunded);
    permit.refund().await;
    Err(GateError::Closed)
}

#[test]
fn an_attempt_that_is_given_back_is_not_charged() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let ask = |_| spawn(change_of_mind(gate.clone(), world.key("a"), world.clone()));
        let callers = (0..4).map(ask).collect();
        for heard in heard(callers).await {
            match heard {
                Ok(value) => world.check_value(value),
                Err(GateError::Timeout(timeout)) => panic!("{timeout:?}"),
                Err(_) => {}
            }
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_lock_that_is_lost_before_the_launch_costs_no_attempt() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::losing(2));
        let callers = callers(3, &gate, &world, "a", MIXED);
        for heard in heard(callers).await {
            match heard {
                Ok(value) => world.check_value(value),
                Err(GateError::Launch(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_reset_forgets_what_was_charged_before_it_and_nothing_after_it() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let callers = callers(3, &gate, &world, "a", BAD);
        pause().await;
        let before = world.launches();
        gate.reset(world.key("a")).await.unwrap();
        let after = world.launches();
        heard(callers).await;
        let used = gate.snapshot(world.key("a")).await.budget.attempts_used as usize;
        let launches = world.launches();
        // The one in flight at that moment may have been charged before it, and begun after it.
        let counting = (launches - after).saturating_sub(1)..=(launches - before);
        assert!(counting.contains(&used), "{used} charges, not {counting:?}");
        gate.reset(world.key("a")).await.unwrap();
        world.reset();
        world.check(&gate, "a").await;
    });
}

#[test]
fn of_all_callers_that_are_refused_one_is_the_first() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::instant());
        for _ in 0..MAX_ATTEMPTS {
            let failed = launch(gate.clone(), world.key("a"), world.clone(), BAD).await;
            assert!(matches!(failed, Err(GateError::Launch(_))), "{failed:?}");
        }
        let callers = callers(3, &gate, &world, "a", GOOD);
        let mut firsts = 0;
        for heard in heard(callers).await {
            match heard {
                Err(GateError::BudgetExhausted(refusal)) => firsts += u32::from(refusal.first),
                heard => panic!("{heard:?}"),
            }
        }
        assert_eq!(firsts, 1);
        world.check(&gate, "a").await;
    });
}
