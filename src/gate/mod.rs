//! The gate: what callers await.
//!
//! - this file: a request, from entering the gate to its result. `detached`: acquires a permit in its own task.
//! - `builder`: how a gate is built. `admin`: the methods for operators.
//!
//! All of the crate's other rooms may be imported here.

mod admin;
mod builder;
mod detached;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::MutexGuard;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

pub use self::builder::SpawnGateBuilder;
use self::detached::{Collected, collect_permit};
use crate::error::{GateError, LaunchError, Stage, TimeoutError};
use crate::flight::{
    BackendLauncher, Flight, How, LaunchPermit, Launched, Leader, Leftovers, Outcome,
    OutcomeReceiver, Role, Shard, Shared, lead, prepare_now,
};
use crate::key::GateKey;
use crate::lock::{FileSpawnLock, SpawnLockError};
use crate::statistics::Request;
use crate::trace;

/// Starts each backend once, however many callers ask for it.
///
/// The first request for a key becomes the leader of a flight. Requests that come before it ends are followers and get the
/// same outcome, value or error. Each launch is charged to the key's budget; while no attempt is left, requests are refused
/// with the time to retry after. The leader holds the key's spawn lock while it launches, so other processes do not launch
/// too.
///
/// The gate does not remember the backends it launched: each flight of [`launch`](Self::launch) first looks for a running one,
/// without the spawn lock. Requests that come during that look share what it finds.
///
/// `T` is what a launch yields. Each caller gets a clone, so it is an address or an `Arc`, not a `Child`.
///
/// Handles are cheap to clone, and all clones are one gate. It needs a tokio runtime with time enabled. All waiting uses
/// tokio's clock, so tests can pause time.
///
/// A gate belongs to the process that made it. In a child that was forked and does not exec, a flight that was in progress in
/// the parent never ends: make a gate of its own there.
///
/// # Cancel safety
///
/// A method is called cancel safe if dropping its future at any point leaves no other caller waiting for it, no lock held,
/// and no attempt charged, except for a launch that was made. Each method says what continues after the drop.
///
/// # Examples
///
/// ```
/// use spawn_gate::{Acquired, InMemorySpawnLock, SpawnGate};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), spawn_gate::GateError> {
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// let port = match gate.acquire("indexer").await? {
///     Acquired::Led(permit) => {
///         let port = 7201; // start it here
///         permit.succeed(port).await?;
///         port
///     }
///     Acquired::Joined(port) => port,
/// };
/// assert_eq!(port, 7201);
/// # Ok(())
/// # }
/// ```
pub struct SpawnGate<K, T> {
    shared: Arc<Shared<K, T>>,
}

/// What [`SpawnGate::acquire`] returns.
#[derive(Debug)]
#[must_use = "dropping it abandons the launch, if this caller leads, and leaves its attempt charged"]
pub enum Acquired<K: GateKey, T> {
    /// This caller leads: launch the backend and settle the permit.
    Led(LaunchPermit<K, T>),
    /// Another caller launched or found it while this caller waited.
    Joined(T),
}

impl<K, T> SpawnGate<K, T> {
    fn of(shared: Shared<K, T>) -> Self {
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Creates a gate with all defaults, whose spawn locks are files in `lock_directory`. [`FileSpawnLock::new`] says what the
    /// directory must be like: on a local file system, and where nothing cleans up, such as `/run/NAME` or `$XDG_RUNTIME_DIR/NAME`.
    ///
    /// Makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError`] if the directory cannot be used.
    pub fn new(lock_directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Ok(Self::builder(FileSpawnLock::new(lock_directory)?).build())
    }

    /// Returns the permit to launch the backend of `key`, or the value of a launch that this caller joined.
    ///
    /// The leader gets its permit once the spawn lock is held; it drives the launch itself and settles the permit. It looks for
    /// a running backend itself, and settles with [`LaunchPermit::discovered`] if it finds one. For a launch that survives its
    /// caller, use [`launch`](Self::launch).
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken. [`GateError::retry_helps`] says whether a retry helps.
    /// - [`GateError::Timeout`]: the spawn lock was not free in time ([`Stage::Lock`]; nothing was charged), the launch
    ///   that this caller followed timed out ([`Stage::Discover`], [`Stage::Launch`]), or that launch continues but this
    ///   caller's wait is over ([`Stage::Follow`]). A retry helps.
    /// - [`GateError::Launch`]: a launch that this caller waited for, in this process or another, failed. A retry makes another
    ///   attempt.
    /// - [`GateError::Closed`]: the gate is closed. A retry does not help.
    /// - [`GateError::ShutDown`]: the runtime that led this request was shut down. A retry helps only on another runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A follower is charged nothing. If a leader is dropped before it has its permit, nothing stays charged and one
    /// of its followers takes over; a try at the lock that has begun finishes in the background and releases the lock. If the
    /// caller does not collect a ready permit within two seconds, it passes to a follower. No backend can have been started by
    /// then. For the permit, see [`LaunchPermit`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled. Tokio's timer also panics if that runtime is shut down while the future is
    /// polled on another one.
    pub fn acquire(
        &self,
        key: impl Into<K>,
    ) -> impl Future<Output = Result<Acquired<K, T>, GateError>> + Send {
        let mut key = key.into();
        // A block, since an `async fn` has room for its arguments twice, and followers are many.
        async move {
            let hash = self.shared.registry.hash(&key);
            let mut follow_until = None;
            loop {
                // Nothing is awaited while a role is matched: the future would have room for it.
                let mut leader = loop {
                    let shard = self.shared.registry.shard(hash).await;
                    let (mut following, at) = match self.enter(shard, key, hash, false)? {
                        Role::Lead(leader) => break leader,
                        Role::Follow(following, at) => (following, at),
                    };
                    let deadline = self.follow_until(&mut follow_until, at);
                    let outcome = following.outcome(deadline).await;
                    match self.followed(hash, &following, outcome, deadline)? {
                        Some(value) => return Ok(Acquired::Joined(value)),
                        // The leader is gone.
                        None => key = following.flight().key().clone(),
                    }
                };
                if prepare_now(&mut leader) {
                    self.count(hash, Request::Led);
                    return Ok(Acquired::Led(LaunchPermit::new(leader)));
                }
                let flight = leader.flight.clone();
                match Box::pin(self.collect(leader)).await? {
                    Some(acquired) => return Ok(acquired),
                    // This caller did not collect its permit in time.
                    None => key = flight.key().clone(),
                }
            }
        }
    }

    /// Returns the backend of `key`: finds a running one, launches it with `launcher`, or joins a launch in progress.
    ///
    /// Call it for each request to a backend; the caller need not look first. While no attempt is left, the gate looks for a
    /// running backend of the key at most once a second, and refuses the requests in between at once.
    ///
    /// The flight runs in its own task, on the runtime of the caller that leads it. Only the leader's launcher is used.
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken. [`GateError::retry_helps`] says whether a retry helps.
    /// - [`GateError::Timeout`]: a stage took too long; a retry helps. At [`Stage::Launch`] the attempt is charged, at
    ///   [`Stage::Follow`] the launch continues.
    /// - [`GateError::Launch`]: the launch failed; all callers share the failure. A retry makes another attempt.
    /// - [`GateError::Closed`]: the gate is closed. A retry does not help.
    /// - [`GateError::ShutDown`]: the runtime that led this request was shut down. A retry helps only on another runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A flight that has begun continues when any caller is dropped, also the one that began it: it is charged at
    /// most once, the followers get its outcome, and a child can be running. So a client that hangs up costs one launch at
    /// most.
    ///
    /// The flight needs its runtime to be driven. If a current-thread runtime is left with a flight in progress, as by
    /// `block_on(timeout(limit, gate.launch(..)))`, neither the launch timeout nor the release of the spawn lock happens until
    /// the runtime is driven again or dropped. Drop the runtime, or use a multi-thread runtime. The same holds for a launcher
    /// that blocks its thread: it ends when it returns.
    ///
    /// # Panics
    ///
    /// Like [`acquire`](Self::acquire). A panic of the launcher is caught and shared as
    /// [`LaunchError::Panicked`](crate::error::LaunchError::Panicked).
    ///
    /// # Examples
    ///
    /// See [`launcher_fn`](crate::launcher_fn) and [`BackendLauncher`].
    pub fn launch(
        &self,
        key: impl Into<K>,
        launcher: impl BackendLauncher<K, T>,
    ) -> impl Future<Output = Result<Launched<T>, GateError>> + Send {
        let mut key = key.into();
        // A block, since an `async fn` has room for its arguments twice.
        async move {
            let hash = self.shared.registry.hash(&key);
            let mut follow_until = None;
            // As in `acquire`, nothing is awaited while a role is matched.
            let leader = loop {
                let shard = self.shared.registry.shard(hash).await;
                let (mut following, at) = match self.enter(shard, key, hash, true)? {
                    Role::Lead(leader) => break leader,
                    Role::Follow(following, at) => (following, at),
                };
                let deadline = self.follow_until(&mut follow_until, at);
                let outcome = following.outcome(deadline).await;
                match self.followed(hash, &following, outcome, deadline)? {
                    Some(value) => {
                        let how = How::Joined;
                        return Ok(Launched { value, how });
                    }
                    None => key = following.flight().key().clone(),
                }
            };
            let deadline = self.follow_until(&mut follow_until, leader.began);
            let flight = leader.flight.clone();
            let span = leader.span.clone();
            // Boxed, since a task is moved a few times before it runs.
            let leading = span.instrument(Box::pin(lead(leader, launcher)));
            self.led(&flight, tokio::spawn(leading), deadline).await
        }
    }

    /// Acquires the permit of a leader that has to wait for it. `None` means retry.
    async fn collect(&self, leader: Leader<K, T>) -> Result<Option<Acquired<K, T>>, GateError> {
        let flight = leader.flight.clone();
        match collect_permit(leader).await {
            Collected::Permit(permit) => {
                let Some(error) = flight.hand_to_caller() else {
                    self.count(flight.hash(), Request::Led);
                    return Ok(Some(Acquired::Led(permit)));
                };
                // An operator has ended the flight meanwhile.
                let mut leader = permit.into_leader();
                leader.call_off_launch();
                leader.end(Outcome::Failed(error.clone())).await;
                Err(self.returned(flight.hash(), error))
            }
            Collected::Ended(outcome) => {
                let joined = self.joined(flight.hash(), outcome, || flight.clone())?;
                Ok(joined.map(Acquired::Joined))
            }
            Collected::TaskLost(why) => Err(self.returned(flight.hash(), task_lost(&flight, &why))),
        }
    }

    #[inline]
    fn count(&self, hash: u64, how: Request) {
        self.shared.recorder.request(hash, how);
    }

    /// Counts an error that a caller gets.
    fn returned(&self, hash: u64, error: GateError) -> GateError {
        self.count(hash, Request::from(&error));
        if let GateError::BudgetExhausted(refusal) = &error {
            trace::refused(refusal);
        }
        error
    }

    /// Enters the gate. A leader owns its flight before more user code runs.
    #[inline]
    fn enter(
        &self,
        shard: MutexGuard<'_, Shard<K, T>>,
        key: K,
        hash: u64,
        can_look: bool,
    ) -> Result<Role<K, T, Leader<K, T>>, GateError> {
        let Shared {
            registry, policy, ..
        } = &*self.shared;
        let mut leftovers = Leftovers::default();
        let role = registry.enter(shard, key, hash, policy, can_look, &mut leftovers);
        let role = role.map_err(|error| self.returned(hash, error))?;
        let role = match role {
            Role::Follow(following, at) => Role::Follow(following, at),
            Role::Lead(begun) => Role::Lead(Leader::new(Arc::clone(&self.shared), begun)),
        };
        // Drop them while the leader is still a variable: a return value is not dropped if a destructor panics.
        drop(leftovers);
        Ok(role)
    }

    /// Returns the deadline of this request's waits for a flight. The first, whose request came `at` that time, sets it for all.
    fn follow_until(&self, until: &mut Option<Instant>, at: Instant) -> Instant {
        *until.get_or_insert_with(|| at + self.shared.timeouts.follow)
    }

    /// Converts what a follower has waited for into its result: the value to join; `None` means retry.
    fn followed(
        &self,
        hash: u64,
        following: &OutcomeReceiver<Flight<K, T>, T>,
        outcome: Option<Outcome<T>>,
        deadline: Instant,
    ) -> Result<Option<T>, GateError> {
        let timed_out = || self.timed_out(&following.flight());
        let outcome = outcome.ok_or_else(timed_out)?;
        match self.joined(hash, outcome, || following.flight())? {
            Some(value) => {
                let began = || deadline - self.shared.timeouts.follow;
                trace::joined(|| following.flight().label(), || began().elapsed());
                Ok(Some(value))
            }
            None if Instant::now() >= deadline => Err(timed_out()),
            None => Ok(None),
        }
    }

    /// Converts a flight's outcome into the result for one caller, and counts it.
    fn joined(
        &self,
        hash: u64,
        outcome: Outcome<T>,
        flight: impl FnOnce() -> Flight<K, T>,
    ) -> Result<Option<T>, GateError> {
        match outcome.joined() {
            Ok(Some(value)) => {
                self.count(hash, Request::Joined);
                Ok(Some(value))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.returned(hash, heard_by_caller(error, &flight()))),
        }
    }

    /// Waits for the outcome of the flight that this caller's request leads in its own task.
    async fn led(
        &self,
        flight: &Flight<K, T>,
        leading: JoinHandle<Outcome<T>>,
        deadline: Instant,
    ) -> Result<Launched<T>, GateError> {
        let asker = flight.asker();
        let led = Box::pin(timeout_at(deadline, leading)).await;
        let led = led.map_err(|_| self.timed_out(flight))?;
        asker.answered();
        let (value, how) = match led {
            Ok(Outcome::Launched(value)) => {
                self.count(flight.hash(), Request::Led);
                (value, How::Led)
            }
            Ok(Outcome::Discovered(value)) => {
                self.count(flight.hash(), Request::Discovered);
                (value, How::Discovered)
            }
            Ok(Outcome::Failed(error)) => {
                return Err(self.returned(flight.hash(), heard_by_caller(error, flight)));
            }
            // Its runtime is being shut down.
            Ok(Outcome::LeaderGone) => {
                return Err(self.returned(flight.hash(), GateError::ShutDown));
            }
            Err(why) => return Err(self.returned(flight.hash(), task_lost(flight, &why))),
        };
        Ok(Launched { value, how })
    }

    fn timed_out(&self, flight: &Flight<K, T>) -> GateError {
        let error = TimeoutError {
            key: Some(flight.label()),
            stage: Stage::Follow,
            after: self.shared.timeouts.follow,
            waiting_for: flight.waiting_for(),
            attempts_left: None,
        };
        let error = self.returned(flight.hash(), error.into());
        trace::failed(&error, None, Stage::Follow.as_str());
        error
    }
}

impl<K, T> Clone for SpawnGate<K, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, T> fmt::Debug for SpawnGate<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnGate")
            .field("lock", &self.shared.lock)
            .finish_non_exhaustive()
    }
}

/// Sets `first` for exactly one of the callers that share a refusal.
fn heard_by_caller<K, T>(error: GateError, flight: &Flight<K, T>) -> GateError {
    match error {
        GateError::BudgetExhausted(mut refusal) => {
            refusal.first = flight.is_first_refusal();
            refusal.into()
        }
        error => error,
    }
}

/// The error for a caller whose flight was led by a task that is gone.
fn task_lost<K: GateKey, T>(flight: &Flight<K, T>, why: &JoinError) -> GateError {
    if why.is_panic() {
        LaunchError::task_panicked(flight.label()).into()
    } else {
        GateError::ShutDown
    }
}

// The feature adds a span to each leader.
#[cfg(all(test, target_pointer_width = "64", not(feature = "tracing")))]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::key::{BackendKey, BrokerInstanceKey};
    use crate::lock::InMemorySpawnLock;

    /// So large is the future of a follower, without its key. It is moved into a task, and followers are many.
    const MOST_OF_A_REQUEST: usize = 384;

    /// The C library's allocator takes a slower way for what is larger than 1,032 bytes.
    const MOST_OF_A_FLIGHT: usize = 1024;

    /// The outcome, and the permit.
    const MOST_OF_A_SETTLEMENT: usize = 96;

    /// Returns what a future yields that needs no waiting.
    fn ready<F: Future>(future: F) -> F::Output {
        let context = &mut Context::from_waker(Waker::noop());
        match pin!(future).poll(context) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn the_futures_of_a_request_are_small() {
        let gate: SpawnGate<BackendKey, u64> = SpawnGate::builder(InMemorySpawnLock::new()).build();
        let key = || BackendKey::new(BrokerInstanceKey::Shared, "indexer", "1.0");
        let most = MOST_OF_A_REQUEST + size_of::<BackendKey>();
        let launcher = crate::launcher_fn(|_| async { Ok(None) }, |_| async { Ok(1) });
        assert!(size_of_val(&gate.launch(key(), launcher)) <= most);
        let hash = gate.shared.registry.hash(&key());
        let shard = ready(gate.shared.registry.shard(hash));
        let Ok(Role::Lead(leader)) = gate.enter(shard, key(), hash, true) else {
            panic!("nobody else asks");
        };
        assert!(size_of_val(&lead(leader, launcher)) <= MOST_OF_A_FLIGHT);
        let acquiring = gate.acquire(key());
        assert!(size_of_val(&acquiring) <= most);
        let Ok(Acquired::Led(permit)) = ready(acquiring) else {
            panic!("nobody else asks");
        };
        let settling = permit.succeed(1);
        assert!(size_of_val(&settling) <= MOST_OF_A_SETTLEMENT);
        ready(settling).unwrap();
    }
}
