//! The crates that do single flight and nothing else.

use std::convert::Infallible;
use std::future::Future;

use super::Flights;
use crate::keys::PeerKey;

/// `asyncband::singleflight`.
pub struct Asyncband<K>(asyncband::singleflight::Group<K, u64>);

impl<K: PeerKey> Default for Asyncband<K> {
    fn default() -> Self {
        Self(asyncband::singleflight::Group::new())
    }
}

impl<K: PeerKey> Flights<K> for Asyncband<K> {
    const NAME: &'static str = "asyncband";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        self.0.work(key, async || work().await).await
    }
}

/// `singleflight-async`.
pub struct SingleflightAsync<K>(singleflight_async::SingleFlight<K, u64>);

impl<K: PeerKey> Default for SingleflightAsync<K> {
    fn default() -> Self {
        Self(singleflight_async::SingleFlight::new())
    }
}

impl<K: PeerKey> Flights<K> for SingleflightAsync<K> {
    const NAME: &'static str = "singleflight-async";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        self.0.work(key, work).await
    }
}

/// `rs-singleflight`.
pub struct RsSingleflight<K>(rs_singleflight::Group<K, u64, Infallible>);

impl<K: PeerKey> Default for RsSingleflight<K> {
    fn default() -> Self {
        Self(rs_singleflight::Group::new())
    }
}

impl<K: PeerKey> Flights<K> for RsSingleflight<K> {
    const NAME: &'static str = "rs-singleflight";
    const BOUNDED: &'static str = "rs-singleflight + `timeout` + governor";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let Ok(value) = self.0.do_call(key, async || Ok(work().await)).await;
        value
    }
}

/// `async_singleflight`.
pub struct AsyncSingleflight<K>(async_singleflight::Group<K, u64, Infallible>);

impl<K: PeerKey> Default for AsyncSingleflight<K> {
    fn default() -> Self {
        Self(async_singleflight::Group::new())
    }
}

impl<K: PeerKey> Flights<K> for AsyncSingleflight<K> {
    const NAME: &'static str = "async_singleflight";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let value = self.0.work(&key, async { Ok(work().await) }).await;
        value.expect("the work does not fail")
    }
}

/// `request_coalescer`.
pub struct RequestCoalescer<K: PeerKey>(request_coalescer::CoalescingService<K, u64>);

impl<K: PeerKey> Default for RequestCoalescer<K> {
    fn default() -> Self {
        Self(request_coalescer::CoalescingService::new())
    }
}

impl<K: PeerKey> Flights<K> for RequestCoalescer<K> {
    const NAME: &'static str = "request_coalescer";

    async fn run<F, W>(&self, key: K, work: F) -> u64
    where
        F: FnOnce() -> W + Send + 'static,
        W: Future<Output = u64> + Send + 'static,
    {
        let work = || async { anyhow::Ok(work().await) };
        *self
            .0
            .execute(key, work)
            .await
            .expect("the work does not fail")
    }
}
