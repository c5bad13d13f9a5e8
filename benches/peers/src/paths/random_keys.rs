//! Many tasks over many keys on two threads: what the table of keys costs when callers seldom meet.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::yield_now;

use super::{OPERATIONS_PER_YIELD, threads};
use crate::flights::{Flights, SingleflightAsync, Visitor, visit_all};
use crate::keys::PeerKey;
use crate::measure::{Comparison, Contender, Plan, compare};
use crate::watchdog::{Seen, Sightings, Watchdog};

const TASKS: u64 = 64;
const KEYS: usize = 100_000;
const PLAN: Plan = Plan::more_turns_of_millis(50);

/// Compares a trivial flight for a random key, and tells what was seen of each contender.
pub fn random_keys<K: PeerKey>(path: &str) -> (Comparison, Vec<Seen>) {
    let runtime = threads(2);
    let mut all = All {
        runtime: &runtime,
        contenders: Vec::new(),
        watches: Vec::new(),
    };
    visit_all::<K>(&mut all);
    let comparison = compare(path, PLAN, SingleflightAsync::<K>::NAME, all.contenders);
    let seen = all.watches.into_iter();
    let seen = seen.map(|(name, watch)| watch.sightings.of(name));
    (comparison, seen.collect())
}

struct All<'a> {
    runtime: &'a Runtime,
    contenders: Vec<Contender<'a>>,
    watches: Vec<(&'static str, Arc<Watch>)>,
}

struct Watch {
    of_keys: Vec<Watchdog>,
    sightings: Sightings,
}

impl<K: PeerKey> Visitor<K> for All<'_> {
    fn visit<F: Flights<K>>(&mut self) {
        let (runtime, flights) = (self.runtime, Arc::new(F::default()));
        let watch = Arc::new(Watch {
            of_keys: (0..KEYS).map(|_| Watchdog::default()).collect(),
            sightings: Sightings::default(),
        });
        self.watches.push((F::NAME, Arc::clone(&watch)));
        let run = move |count| runtime.block_on(tasks::<K, F>(&flights, &watch, count));
        let contender = Contender::new(F::NAME, run).per(TASKS as usize);
        self.contenders.push(contender);
    }
}

/// Lets each of the tasks lead or follow `count` flights.
async fn tasks<K: PeerKey, F: Flights<K>>(
    flights: &Arc<F>,
    watch: &Arc<Watch>,
    count: u64,
) -> Duration {
    let chance = RandomState::new();
    let number = |of| (chance.hash_one(of) % KEYS as u64) as usize;
    let keys_of_tasks: Vec<Vec<_>> = (0..TASKS)
        .map(|task| {
            let numbers = (0..count).map(|of| number((task, of)));
            numbers.map(|n| (n, K::nth(n))).collect()
        })
        .collect();
    let began = Instant::now();
    let tasks: Vec<_> = keys_of_tasks
        .into_iter()
        .map(|keys| tokio::spawn(one_task(Arc::clone(flights), Arc::clone(watch), keys)))
        .collect();
    for task in tasks {
        task.await.expect("no task panics");
    }
    began.elapsed()
}

async fn one_task<K: PeerKey, F: Flights<K>>(
    flights: Arc<F>,
    watch: Arc<Watch>,
    keys: Vec<(usize, K)>,
) {
    let mut done = 0;
    for (number, key) in keys {
        let watch = Arc::clone(&watch);
        let work = async move || {
            watch.of_keys[number].enter(&watch.sightings);
            watch.of_keys[number].leave();
            1
        };
        flights.run(key, work).await;
        done += 1;
        if done % OPERATIONS_PER_YIELD == 0 {
            yield_now().await;
        }
    }
}
