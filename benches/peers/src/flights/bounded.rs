//! Single flight with what a careful user adds to it: a deadline for each caller, and a budget for each key.

use std::future::Future;
use std::marker::PhantomData;
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::time::timeout;

use super::{Flights, LIMIT};
use crate::keys::PeerKey;

/// Another contender, with tokio's `timeout` around it and governor's keyed limit before it. The spawn lock is left out.
pub struct Bounded<K: PeerKey, F> {
    budget: DefaultKeyedRateLimiter<K>,
    flights: F,
    of: PhantomData<fn(K)>,
}

impl<K: PeerKey, F: Flights<K>> Default for Bounded<K, F> {
    fn default() -> Self {
        Self {
            // Nothing is refused here: a follower is charged, too, since it is not known before the flight who leads.
            budget: RateLimiter::keyed(Quota::per_second(NonZeroU32::MAX)),
            flights: F::default(),
            of: PhantomData,
        }
    }
}

impl<K: PeerKey, F: Flights<K>> Flights<K> for Bounded<K, F> {
    const NAME: &'static str = F::BOUNDED;
    const WITHOUT: &'static str = "lock";

    async fn run<G, W>(&self, key: K, work: G) -> u64
    where
        G: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let admitted = self.budget.check_key(&key);
        admitted.expect("the budget is not used up");
        let value = timeout(LIMIT, self.flights.run(key, work)).await;
        value.expect("nothing takes that long")
    }
}
