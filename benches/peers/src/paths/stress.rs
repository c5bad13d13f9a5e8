//! One key under a thousand callers, again and again: how many of its flights run at once.

use std::sync::Arc;

use spawn_gate::BackendKey;
use tokio::runtime::Runtime;
use tokio::task::yield_now;

use super::threads;
use crate::flights::{Flights, Visitor, visit_all};
use crate::keys::PeerKey;
use crate::watchdog::{Seen, Sightings, Watchdog};

const CALLERS: usize = 1_000;
const CALLS_OF_EACH: usize = 20;
const ROUNDS: usize = 21;

/// Others get their turn so many times while a flight runs.
const YIELDS: usize = 30;

/// More than there are cores: the system then takes a thread off its core at any point, not only where it yields.
const THREADS: usize = 4;

/// Counts for each contender.
pub fn stress() -> Vec<Seen> {
    let mut all = All {
        runtime: threads(THREADS),
        seen: Vec::new(),
    };
    visit_all::<BackendKey>(&mut all);
    all.seen
}

struct All {
    runtime: Runtime,
    seen: Vec<Seen>,
}

#[derive(Default)]
struct Watch {
    of_key: Watchdog,
    sightings: Sightings,
}

impl<K: PeerKey> Visitor<K> for All {
    fn visit<F: Flights<K>>(&mut self) {
        let watch = Arc::new(Watch::default());
        for _ in 0..ROUNDS {
            let flights = Arc::new(F::default());
            self.runtime.block_on(round::<K, F>(&flights, &watch));
        }
        self.seen.push(watch.sightings.of(F::NAME));
    }
}

async fn round<K: PeerKey, F: Flights<K>>(flights: &Arc<F>, watch: &Arc<Watch>) {
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(caller::<K, F>(Arc::clone(flights), Arc::clone(watch))))
        .collect();
    for caller in callers {
        caller.await.expect("no caller panics");
    }
}

async fn caller<K: PeerKey, F: Flights<K>>(flights: Arc<F>, watch: Arc<Watch>) {
    for _ in 0..CALLS_OF_EACH {
        let watch = Arc::clone(&watch);
        let work = async move || {
            watch.of_key.enter(&watch.sightings);
            for _ in 0..YIELDS {
                yield_now().await;
            }
            watch.of_key.leave();
            1
        };
        flights.run(K::nth(7), work).await;
    }
}
