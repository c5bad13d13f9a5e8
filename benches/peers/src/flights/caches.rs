//! The caches that let one caller fill a slot.

use std::convert::Infallible;
use std::future::Future;

use super::Flights;
use crate::keys::PeerKey;

/// So many that no key in use is evicted.
const CAPACITY: usize = 400_000;

/// `moka`'s future cache: `try_get_with`, and the value invalidated.
pub struct Moka<K>(moka::future::Cache<K, u64>);

impl<K: PeerKey> Default for Moka<K> {
    fn default() -> Self {
        Self(moka::future::Cache::new(CAPACITY as u64))
    }
}

impl<K: PeerKey> Flights<K> for Moka<K> {
    const NAME: &'static str = "moka";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let mut led = false;
        let fill = async {
            led = true;
            Ok::<_, Infallible>(work().await)
        };
        let value = self.0.try_get_with_by_ref(&key, fill).await;
        if led {
            self.0.invalidate(&key).await;
        }
        value.expect("the work does not fail")
    }
}

/// `quick_cache`: `get_value_or_guard_async`, and the value removed.
pub struct QuickCache<K>(quick_cache::sync::Cache<K, u64>);

impl<K: PeerKey> Default for QuickCache<K> {
    fn default() -> Self {
        Self(quick_cache::sync::Cache::new(CAPACITY))
    }
}

impl<K: PeerKey> Flights<K> for QuickCache<K> {
    const NAME: &'static str = "quick_cache";
    const BOUNDED: &'static str = "quick_cache + `timeout` + governor";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        match self.0.get_value_or_guard_async(&key).await {
            Ok(value) => value,
            Err(guard) => {
                let value = work().await;
                guard.insert(value).expect("nobody took the place");
                self.0.remove(&key);
                value
            }
        }
    }
}
