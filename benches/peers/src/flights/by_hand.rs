//! What a user writes by hand: a locked map of cells or of shared futures. And the floor: one watch channel.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use super::{Flights, LIMIT};
use crate::keys::PeerKey;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// tokio's `OnceCell` in a locked map.
pub struct OnceCells<K>(Mutex<HashMap<K, Arc<OnceCell<u64>>>>);

impl<K> Default for OnceCells<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PeerKey> Flights<K> for OnceCells<K> {
    const NAME: &'static str = "`OnceCell` in a locked map";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let cell = Arc::clone(lock(&self.0).entry(key.clone()).or_default());
        let mut led = false;
        let work = async || {
            led = true;
            work().await
        };
        let value = *cell.get_or_init(work).await;
        if led {
            // Its own cell, not whatever is there by now.
            let mut cells = lock(&self.0);
            if cells
                .get(&key)
                .is_some_and(|found| Arc::ptr_eq(found, &cell))
            {
                cells.remove(&key);
            }
        }
        value
    }
}

type SharedFuture = Shared<BoxFuture<'static, u64>>;

/// `futures::future::Shared` in a locked map.
pub struct SharedFutures<K>(Mutex<HashMap<K, SharedFuture>>);

impl<K> Default for SharedFutures<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PeerKey> SharedFutures<K> {
    /// Returns the future of `key`, and whether it was made by this call.
    fn join<W>(&self, key: &K, work: impl FnOnce() -> W) -> (SharedFuture, bool)
    where
        W: Future<Output = u64> + Send + 'static,
    {
        let mut futures = lock(&self.0);
        if let Some(found) = futures.get(key) {
            return (found.clone(), false);
        }
        let made = work().boxed().shared();
        futures.insert(key.clone(), made.clone());
        (made, true)
    }
}

impl<K: PeerKey> Flights<K> for SharedFutures<K> {
    const NAME: &'static str = "`Shared` in a locked map";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let (future, led) = self.join(&key, work);
        let value = future.clone().await;
        if led {
            let mut futures = lock(&self.0);
            if futures.get(&key).is_some_and(|found| found.ptr_eq(&future)) {
                futures.remove(&key);
            }
        }
        value
    }
}

/// The floor of fan-in: a watch channel in a slot, whatever the key. Only for callers that come one after the other.
#[derive(Default)]
pub struct RawWatch(Mutex<Option<watch::Receiver<Option<u64>>>>);

impl<K: PeerKey> Flights<K> for RawWatch {
    const NAME: &'static str = "raw `watch`";
    const WITHOUT: &'static str = "keys, deadline, budget, lock";

    async fn run<F, W>(&self, _key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let found = lock(&self.0).clone();
        if let Some(mut flight) = found {
            let heard = flight.wait_for(Option::is_some).await;
            return heard.expect("the leader tells").expect("it has a value");
        }
        let (outcome, flight) = watch::channel(None);
        *lock(&self.0) = Some(flight);
        let value = work().await;
        outcome.send_replace(Some(value));
        *lock(&self.0) = None;
        value
    }
}

/// The same, with a deadline for each follower: the floor of fan-in for what promises that no follower waits for ever.
#[derive(Default)]
pub struct WatchWithTimeout(RawWatch);

impl<K: PeerKey> Flights<K> for WatchWithTimeout {
    const NAME: &'static str = "raw `watch` + `timeout`";
    const WITHOUT: &'static str = "keys, budget, lock";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let value = timeout(LIMIT, self.0.run(key, work)).await;
        value.expect("nothing takes that long")
    }
}
