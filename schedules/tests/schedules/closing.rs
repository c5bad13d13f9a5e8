//! A gate that is closed: promises 27 and 44.

use std::time::Duration;

use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::{spawn, task};
use spawn_gate::{GateError, SpawnGate};

use crate::callers::{GOOD, Heard, MIXED, ask, callers, heard, heard_by_survivors};
use crate::lock::Lock;
use crate::world::{Gate, World, pause};

#[test]
fn a_close_waits_for_the_flights_and_nothing_begins_after_it() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::or_none());
        let callers = callers(3, &gate, &world, "a", MIXED);
        let close = || {
            let (gate, world) = (gate.clone(), world.clone());
            async move {
                pause().await;
                gate.close().await.expect("no launch takes so long");
                world.closed();
            }
        };
        let closes = [spawn(close()), spawn(close())];
        check(&world, heard(callers).await);
        for close in closes {
            close.await.unwrap();
        }
        let late = ask(gate.clone(), world.key("a"), world.clone(), GOOD).await;
        assert!(matches!(late, Err(GateError::Closed)), "{late:?}");
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_close_does_not_wait_for_callers_that_are_dropped() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::slow());
        let callers = callers(3, &gate, &world, "a", GOOD);
        let closing = (gate.clone(), world.clone());
        let closing = spawn(async move {
            let (gate, world) = closing;
            pause().await;
            gate.close().await.expect("no launch takes so long");
            world.closed();
        });
        check(&world, heard_by_survivors(callers).await);
        closing.await.unwrap();
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

#[test]
fn a_close_that_runs_out_of_time_ends_every_flight() {
    explore(Time::Rushes, async || {
        let world = World::default();
        let gate: Gate = SpawnGate::builder(Lock::new())
            .budget(World::budget())
            // Half of what a slow launch takes.
            .drain_timeout(Duration::from_millis(500))
            .build();
        let callers = callers(3, &gate, &world, "a", MIXED);
        pause().await;
        if gate.close().await.is_ok() {
            world.closed();
        }
        let late = ask(gate.clone(), world.key("a"), world.clone(), GOOD).await;
        assert!(matches!(late, Err(GateError::Closed)), "{late:?}");
        for value in heard(callers).await.into_iter().flatten() {
            world.check_value(value);
        }
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

/// Each has an outcome, and none is told that its wait was too long.
fn check(world: &World, all: Vec<Heard>) {
    for heard in all {
        match heard {
            Ok(value) => world.check_value(value),
            Err(GateError::Launch(_) | GateError::BudgetExhausted(_) | GateError::Closed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
