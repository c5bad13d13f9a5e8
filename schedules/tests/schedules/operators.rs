//! Aborts: promises 5, 6 and 43.

use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::time::Instant;
use spawn_gate::stand_in::tokio::{spawn, task};
use spawn_gate::{Acquired, GateError};

use crate::callers::{GOOD, MIXED, STUCK, callers, heard, launch};
use crate::lock::Lock;
use crate::world::{End, World, pause};

#[test]
fn an_aborted_flight_ends_for_all_its_callers() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::new());
        let callers = callers(4, &gate, &world, "a", MIXED);
        for _ in 0..2 {
            pause().await;
            gate.abort(world.key("a")).await;
        }
        for heard in heard(callers).await {
            match heard {
                Ok(value) => world.check_value(value),
                Err(GateError::Launch(_) | GateError::BudgetExhausted(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        task::all_ended().await;
        world.check(&gate, "a").await;
    });
}

#[test]
fn the_permit_of_an_aborted_flight_ends_no_other_flight() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::new());
        let Ok(Acquired::Led(permit)) = gate.acquire(world.key("a")).await else {
            panic!("nobody else asks yet");
        };
        let running = world.begin(permit.key());
        let aborting = (gate.clone(), world.key("a"));
        let aborted = spawn(async move { aborting.0.abort(aborting.1).await });
        assert!(aborted.await.unwrap());
        let callers = callers(2, &gate, &world, "a", GOOD);
        pause().await;
        let id = running.end(End::Charged);
        let settled = permit.succeed(id).await;
        let is_told = matches!(settled, Err(GateError::Launch(LaunchError::Aborted { .. })));
        assert!(is_told, "{settled:?}");
        for heard in heard(callers).await {
            world.check_value(heard.unwrap());
        }
        world.check(&gate, "a").await;
    });
}

#[test]
fn an_abort_ends_a_launch_that_never_returns_at_once() {
    explore(Time::Waits, async || {
        let world = World::default();
        let gate = world.gate(Lock::new());
        let ask = |_| spawn(launch(gate.clone(), world.key("a"), world.clone(), STUCK));
        let callers: Vec<_> = (0..2).map(ask).collect();
        let (aborting, key) = (gate.clone(), world.key("a"));
        let all_heard = spawn(heard(callers));
        while !all_heard.is_finished() {
            aborting.abort(key.clone()).await;
            task::yield_now().await;
        }
        for heard in all_heard.await.unwrap() {
            let is_told = matches!(heard, Err(GateError::Launch(LaunchError::Aborted { .. })));
            assert!(is_told, "{heard:?}");
        }
        task::all_ended().await;
        assert!(Instant::now() < Instant::default() + Duration::from_secs(1));
        world.check(&gate, "a").await;
    });
}
