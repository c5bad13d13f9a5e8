//! The cluster: which member is asked, how long, and which one next.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport;

use crate::endpoint::Endpoint;
use crate::error::EtcdError;
use crate::wire::{Call, Header};

/// The pause after all members were tried in vain.
const PAUSE: Duration = Duration::from_millis(50);

/// The members of one cluster, each with a connection of its own. Calls go to the member that answered last; if it does not answer
/// in time, to the next one.
pub(crate) struct Cluster {
    endpoints: Vec<Arc<Endpoint>>,
    call_timeout: Duration,
    /// The number of the member that is asked, counted on without end.
    current: watch::Sender<usize>,
    identity: Arc<Identity>,
}

/// What all connections of this process have seen of the cluster.
#[derive(Default)]
pub(crate) struct Identity {
    cluster: AtomicU64,
    token: AtomicI64,
}

impl Cluster {
    /// Must be called in the runtime that its calls run in.
    pub(crate) fn new(
        connections: &[(String, transport::Endpoint)],
        user: Option<&(String, String)>,
        call_timeout: Duration,
        identity: Arc<Identity>,
    ) -> Self {
        let endpoint = |(url, connection): &(String, transport::Endpoint)| {
            Arc::new(Endpoint::new(url.clone(), connection, user.cloned()))
        };
        Self {
            endpoints: connections.iter().map(endpoint).collect(),
            call_timeout,
            current: watch::Sender::new(0),
            identity,
        }
    }

    /// Calls until a member answers, or the deadline. All calls may reach the cluster more than once.
    pub(crate) async fn call<C: Call>(
        &self,
        request: &C,
        deadline: Instant,
    ) -> Result<C::Answer, EtcdError> {
        let answered = self.call_counted(request, deadline).await;
        answered.map(|(answer, _)| answer)
    }

    /// The same, with the number of attempts. If there was one, the call reached the cluster no more than once.
    pub(crate) async fn call_counted<C: Call>(
        &self,
        request: &C,
        deadline: Instant,
    ) -> Result<(C::Answer, usize), EtcdError> {
        let attempts = AtomicUsize::new(0);
        let ask = async |endpoint: Arc<Endpoint>| {
            attempts.fetch_add(1, Ordering::Relaxed);
            let answer = endpoint.call(request).await?;
            self.check(&endpoint, C::header(&answer))?;
            Ok(answer)
        };
        let answer = self.ask(deadline, ask).await?;
        Ok((answer, attempts.load(Ordering::Relaxed)))
    }

    /// Asks one member after the other until one answers or refuses, or the deadline.
    pub(crate) async fn ask<V, F: Future<Output = Result<V, EtcdError>>>(
        &self,
        deadline: Instant,
        ask: impl Fn(Arc<Endpoint>) -> F,
    ) -> Result<V, EtcdError> {
        let began = Instant::now();
        // Members in a row that nothing can be had from.
        let mut useless = 0;
        let mut most_telling: Option<EtcdError> = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let (number, endpoint) = self.current();
            let limit = deadline.min(Instant::now() + self.call_timeout);
            let error = match timeout_at(limit, ask(Arc::clone(&endpoint))).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => EtcdError::Unresponsive {
                    endpoint: endpoint.url.clone(),
                    after: began.elapsed(),
                },
            };
            useless = match error.is_of_endpoint() {
                true => useless + 1,
                false => 0,
            };
            let is_final = !error.retry_helps() && !error.is_of_endpoint();
            let is_lease = matches!(error, EtcdError::LeaseGone { .. } | EtcdError::Compacted);
            if is_final || is_lease || useless == self.endpoints.len() {
                return Err(error);
            }
            let rank = most_telling.as_ref().map(EtcdError::rank);
            if rank.is_none_or(|rank| rank <= error.rank()) {
                most_telling = Some(error.clone());
            }
            self.move_on(number);
            if tries % self.endpoints.len() == 0 {
                sleep_until(deadline.min(Instant::now() + PAUSE)).await;
            }
            if Instant::now() >= deadline {
                return Err(most_telling.unwrap_or(error));
            }
        }
    }

    /// The member that is asked now, with its number.
    pub(crate) fn current(&self) -> (usize, Arc<Endpoint>) {
        let number = *self.current.borrow();
        let endpoint = &self.endpoints[number % self.endpoints.len()];
        (number, Arc::clone(endpoint))
    }

    /// Asks the next member from now on, unless another call has moved on already.
    pub(crate) fn move_on(&self, from: usize) {
        self.current.send_if_modified(|number| {
            let is_same = *number == from;
            *number = number.wrapping_add(usize::from(is_same));
            is_same
        });
    }

    /// Resolves when another member than the one with this number is asked.
    pub(crate) async fn moved_on(&self, from: usize) {
        let mut current = self.current.subscribe();
        // The sender lives as long as this.
        let _ = current.wait_for(|&number| number != from).await;
    }

    /// Checks that the answer is of the cluster of all answers before it.
    pub(crate) fn check(
        &self,
        endpoint: &Endpoint,
        header: Option<&Header>,
    ) -> Result<(), EtcdError> {
        let Some(header) = header else {
            return Ok(());
        };
        let first = self.identity.cluster.compare_exchange(
            0,
            header.cluster_id,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        match first {
            Err(expected) if expected != header.cluster_id => Err(EtcdError::WrongCluster {
                endpoint: endpoint.url.clone(),
                expected,
                found: header.cluster_id,
            }),
            _ => Ok(()),
        }
    }

    /// The newest revision that this process has seen a lock created at.
    pub(crate) fn newest_token(&self) -> i64 {
        self.identity.token.load(Ordering::SeqCst)
    }

    /// Notes the revision that a lock was created at. `before`: the newest token when that began.
    pub(crate) fn note_token(&self, token: i64, before: i64) -> Result<(), EtcdError> {
        if token <= before {
            return Err(EtcdError::WentBack {
                seen: before,
                found: token,
            });
        }
        self.identity.token.fetch_max(token, Ordering::SeqCst);
        Ok(())
    }
}
