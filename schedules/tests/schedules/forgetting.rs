//! Keys that are not in use are forgotten, and others are not: promises 1 and 13.

use std::time::Duration;

use spawn_gate::explore::{Time, explore};
use spawn_gate::stand_in::tokio::{spawn, task, time};
use spawn_gate::{SpawnBudgetConfig, SpawnGate};

use crate::callers::{GOOD, MIXED, acquire, callers, heard, launch};
use crate::lock::Lock;
use crate::world::{Gate, World};

/// The shortest time between two sweeps.
const SWEEP: Duration = Duration::from_secs(1);

#[test]
fn idle_keys_are_forgotten_and_no_other() {
    explore(Time::Rushes, async || {
        let world = World::default();
        let gate: Gate = SpawnGate::builder(Lock::or_none())
            .budget(SpawnBudgetConfig::new(100, SWEEP))
            .build();
        let mut all = callers(2, &gate, &world, "a", MIXED);
        all.extend(callers(1, &gate, &world, "b", MIXED));
        let sweeper = (gate.clone(), world.clone());
        let sweeper = spawn(async move {
            let (gate, world) = sweeper;
            for _ in 0..2 {
                time::sleep(SWEEP).await;
                let _ = acquire(gate.clone(), world.key("s"), world.clone(), MIXED).await;
            }
        });
        // Asked again while it may be swept.
        time::sleep(SWEEP).await;
        all.extend(callers(1, &gate, &world, "a", MIXED));
        for value in heard(all).await.into_iter().flatten() {
            world.check_value(value);
        }
        sweeper.await.unwrap();
        task::all_ended().await;
        // The first request of a shard begins the wait for its sweep, so it takes two.
        for _ in 0..2 {
            time::sleep(SWEEP).await;
            let _ = launch(gate.clone(), world.key("z"), world.clone(), GOOD).await;
        }
        task::all_ended().await;
        for name in ["a", "b", "s"] {
            assert_eq!(world.keys(name), 0, "keys {name}");
        }
        drop(gate);
        assert_eq!(world.keys("z"), 0, "keys of a gate that is gone");
    });
}
