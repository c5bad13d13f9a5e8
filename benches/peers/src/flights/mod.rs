//! The contenders for single flight.
//!
//! Those that are caches keep what a flight yields; here it is taken out again by the leader, so that the next caller after
//! it leads a flight too.

mod bounded;
mod by_hand;
mod caches;
mod ours;
mod single_flight;

use std::future::Future;
use std::time::Duration;

pub use self::bounded::Bounded;
pub use self::by_hand::{OnceCells, RawWatch, SharedFutures, WatchWithTimeout};
pub use self::caches::{Moka, QuickCache};
pub use self::ours::Ours;
pub use self::single_flight::{
    AsyncSingleflight, Asyncband, RequestCoalescer, RsSingleflight, SingleflightAsync,
};
use crate::keys::PeerKey;
use spawn_gate::BackendKey;

/// The deadline of each caller.
const LIMIT: Duration = Duration::from_secs(150);

/// Lets one of the callers that ask for a key at the same time do the work, and the others share what it yields.
pub trait Flights<K>: Default + Send + Sync + 'static {
    /// What it is called in the tables.
    const NAME: &'static str;

    /// What it leaves out of what the gate promises.
    const WITHOUT: &'static str = "deadline, budget, lock";

    /// What it is called with a deadline for each caller and a budget for each key.
    const BOUNDED: &'static str = "";

    /// Does `work`, or shares what another caller's work for `key` yields.
    fn run<F, W>(&self, key: K, work: F) -> impl Future<Output = u64> + Send
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static;

    /// Returns how many callers wait for the flight of `key`, if it can tell.
    fn waiting(&self, key: K) -> impl Future<Output = Option<usize>> + Send {
        // Unless overridden it cannot tell, whatever the key.
        let _ = key;
        std::future::ready(None)
    }
}

/// What is done with each contender.
pub trait Visitor<K: PeerKey> {
    /// Does it with this one.
    fn visit<F: Flights<K>>(&mut self);
}

/// Visits all contenders.
pub fn visit_all<K: PeerKey>(visitor: &mut impl Visitor<K>) {
    visitor.visit::<Ours<K>>();
    visitor.visit::<Bounded<K, RsSingleflight<K>>>();
    visitor.visit::<Bounded<K, QuickCache<K>>>();
    visitor.visit::<Asyncband<K>>();
    visitor.visit::<QuickCache<K>>();
    visitor.visit::<SingleflightAsync<K>>();
    visitor.visit::<RsSingleflight<K>>();
    visitor.visit::<AsyncSingleflight<K>>();
    visitor.visit::<RequestCoalescer<K>>();
    visitor.visit::<Moka<K>>();
    visitor.visit::<OnceCells<K>>();
    visitor.visit::<SharedFutures<K>>();
}

/// Returns what the contender of that name leaves out of what the gate promises.
pub fn without(name: &str) -> &'static str {
    let mut sought = Sought(name, "");
    visit_all::<BackendKey>(&mut sought);
    Visitor::<BackendKey>::visit::<WatchWithTimeout>(&mut sought);
    Visitor::<BackendKey>::visit::<RawWatch>(&mut sought);
    sought.1
}

struct Sought<'a>(&'a str, &'static str);

impl<K: PeerKey> Visitor<K> for Sought<'_> {
    fn visit<F: Flights<K>>(&mut self) {
        if F::NAME == self.0 {
            self.1 = F::WITHOUT;
        }
    }
}
