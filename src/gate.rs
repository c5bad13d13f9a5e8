//! The gate: what callers await.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::MutexGuard;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

use crate::error::{GateError, LaunchError, Stage, TimeoutError};
use crate::flight::{Flight, Part};
use crate::handover::{Earned, off_caller};
use crate::inner::{Inner, Unneeded};
use crate::key::GateKey;
use crate::launcher::{BackendLauncher, How, Launched};
use crate::lead::{earn_permit, lead, permit_at_once};
use crate::lock::{FileSpawnLock, SpawnLockError};
use crate::outcome::{Following, Outcome};
use crate::permit::{LaunchPermit, Seat};
use crate::table::Table;

/// Starts each backend once, however many callers ask for it.
///
/// For a key that is not being launched, one caller becomes the leader; everybody else who asks meanwhile follows and
/// hears the same outcome, value or error. Failures are counted against a budget, and when it is used up callers are
/// refused at once and told when to retry. While it launches, the leader holds the key's spawn lock, so that another
/// process does not launch too.
///
/// The gate does not remember the backends it launched. Try the backend first, and ask the gate when it does not answer: it
/// looks for a running one only while it holds the spawn lock, one request after the other.
///
/// Handles are cheap to clone, and all clones are one gate. It needs a tokio runtime with time enabled; all its waiting
/// goes by tokio's clock, so tests can pause it.
///
/// # Cancel safety
///
/// Cancel safe means here: if the future is dropped at any point, no other caller is left waiting for it, no lock stays held
/// for it, and no attempt stays charged but for a launch that was made. Each method says what else goes on.
///
/// # Examples
///
/// ```
/// use spawn_gate::{Acquired, InMemorySpawnLock, SpawnGate};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), spawn_gate::GateError> {
/// let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
/// let port = match gate.acquire("indexer".to_owned()).await? {
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
    pub(crate) inner: Arc<Inner<K, T>>,
}

/// What [`SpawnGate::acquire`] returns.
#[derive(Debug)]
#[must_use = "dropping it abandons the launch, if this caller leads, and leaves its attempt charged"]
pub enum Acquired<K: GateKey, T> {
    /// This caller leads: launch the backend and settle the permit.
    Led(LaunchPermit<K, T>),
    /// Another caller launched or found it while this one waited.
    Joined(T),
}

impl<K, T> SpawnGate<K, T> {
    pub(crate) fn of(inner: Inner<K, T>) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl<K, T> SpawnGate<K, T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    /// Creates a gate with all defaults, whose spawn locks are files in `lock_directory`. See [`FileSpawnLock::new`] for
    /// what is asked of the directory.
    ///
    /// It makes a few short blocking calls.
    ///
    /// # Errors
    ///
    /// [`SpawnLockError`] if the directory cannot serve.
    pub fn new(lock_directory: impl Into<PathBuf>) -> Result<Self, SpawnLockError> {
        Ok(Self::builder(FileSpawnLock::new(lock_directory)?).build())
    }

    /// Asks for the right to launch the backend of `key`, or for what another caller's launch yields.
    ///
    /// The leader gets its permit once the spawn lock is held; it drives the launch itself and settles the permit. For a
    /// launch that survives its caller, use [`launch`](Self::launch).
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken; its source tells whether a retry helps.
    /// - [`GateError::Timeout`]: the spawn lock was not free in time ([`Stage::Lock`]; the attempt was refunded), the launch
    ///   that this caller followed ran out of time ([`Stage::Discover`], [`Stage::Launch`]), or it goes on but this caller's
    ///   wait is over ([`Stage::Follow`]). A retry helps.
    /// - [`GateError::Launch`]: a launch that this caller waited for, in this process or another, failed. A retry makes another
    ///   attempt.
    /// - [`GateError::Closed`]: the gate is closed. A retry does not help.
    /// - [`GateError::ShutDown`]: the runtime that led this request was shut down. A retry helps on another one only.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A follower that is dropped is charged nothing. A leader that is dropped before it has its permit refunds
    /// its attempt, and one of its followers takes over; a try at the lock that is under way then finishes by itself and
    /// lets the lock go. A leader that is kept but not polled loses its permit to a follower if it does not come for it within
    /// two seconds. No backend can have been started by then. For the permit, see [`LaunchPermit`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled; or, in tokio's timer, if that runtime is shut down while the future is
    /// polled elsewhere.
    pub async fn acquire(&self, key: K) -> Result<Acquired<K, T>, GateError> {
        let mut key = key;
        let hash = self.inner.hash(&key);
        let mut follow_until = None;
        loop {
            let table = self.inner.table(hash).await;
            let part = self.enter(table, key, hash, false)?;
            let (flight, joined) = match part {
                Part::Follow(flight, following) => {
                    let joined = self.follow(&flight, following, &mut follow_until).await?;
                    (flight, joined)
                }
                Part::Lead(seat, claim) => {
                    let seat = match permit_at_once(seat, claim) {
                        Ok(permit) => return Ok(Acquired::Led(permit)),
                        Err(seat) => seat,
                    };
                    let flight = seat.flight.clone();
                    let earning = Box::pin(earn_permit(seat, claim, None));
                    match Box::pin(off_caller(earning, &flight)).await {
                        Earned::Permit(permit) => return Ok(Acquired::Led(permit)),
                        Earned::Ended(outcome) => (flight, outcome.joined()?),
                        Earned::TaskLost(why) => return Err(task_lost(&flight, &why)),
                    }
                }
            };
            match joined {
                Some(value) => return Ok(Acquired::Joined(value)),
                // Another leader is gone; or the permit was there, and this caller did not come for it in time.
                None => key = flight.key().clone(),
            }
        }
    }

    /// Returns the backend of `key`: launches it with `launcher`, joins a launch in progress, or finds one running.
    ///
    /// While no attempt is left, requests are refused without a look for a running backend, unless the last success is younger
    /// than [`stable_after`](crate::SpawnGateBuilder::stable_after).
    ///
    /// The flight runs in a task of its own, on the runtime of the caller who leads it. Only the leader's launcher is used.
    ///
    /// # Errors
    ///
    /// - [`GateError::BudgetExhausted`]: no attempt is left; retry after the time it names.
    /// - [`GateError::Lock`]: the spawn lock cannot be taken; its source tells whether a retry helps.
    /// - [`GateError::Timeout`]: a stage took too long; a retry helps. At [`Stage::Launch`] the attempt is charged, at
    ///   [`Stage::Follow`] the launch goes on.
    /// - [`GateError::Launch`]: the launch failed, for all callers alike. A retry makes another attempt.
    /// - [`GateError::Closed`]: the gate is closed. A retry does not help.
    /// - [`GateError::ShutDown`]: the runtime that led this request was shut down. A retry helps on another one only.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Once a flight has begun, it goes on when any caller is dropped, the one that began it included: it is
    /// charged once, the followers hear its outcome, and a child can be running. So a client that connects and hangs up
    /// costs nothing more than the launch that it asked for.
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire). A panic of the launcher is caught and shared as
    /// [`LaunchError::Panicked`](crate::LaunchError::Panicked).
    pub async fn launch(
        &self,
        key: K,
        launcher: impl BackendLauncher<K, T>,
    ) -> Result<Launched<T>, GateError> {
        let mut key = key;
        let hash = self.inner.hash(&key);
        let mut follow_until = None;
        loop {
            let table = self.inner.table(hash).await;
            let part = self.enter(table, key, hash, true)?;
            let (flight, following) = match part {
                Part::Follow(flight, following) => (flight, following),
                Part::Lead(seat, claim) => {
                    let flight = seat.flight.clone();
                    // Boxed, since a task is moved a few times before it runs.
                    let leading = Box::pin(lead(seat, claim, launcher));
                    return self.led(&flight, tokio::spawn(leading), follow_until).await;
                }
            };
            let joined = self.follow(&flight, following, &mut follow_until).await?;
            if let Some(value) = joined {
                let how = How::Joined;
                return Ok(Launched { value, how });
            }
            key = flight.key().clone();
        }
    }

    /// Enters the gate. A leader has its seat before any more code of the user's is run.
    #[inline]
    fn enter(
        &self,
        table: MutexGuard<'_, Table<K, T>>,
        key: K,
        hash: u64,
        can_discover: bool,
    ) -> Result<Part<K, T, Seat<K, T>>, GateError> {
        let mut unneeded = Unneeded::default();
        let inner = &self.inner;
        let part = inner.enter(table, key, hash, can_discover, &mut unneeded)?;
        let seated = match part {
            Part::Follow(flight, following) => Part::Follow(flight, following),
            Part::Lead(flight, claim) => Part::Lead(Seat::new(Arc::clone(inner), flight), claim),
        };
        // While the seat is a variable yet: a return value is not dropped if a destructor panics.
        drop(unneeded);
        Ok(seated)
    }

    /// When a request that follows a flight from now on gives up; set at its first wait, and then the same for its further
    /// ones.
    fn follow_until(&self, until: &mut Option<Instant>) -> Instant {
        *until.get_or_insert_with(|| Instant::now() + self.inner.timeouts.follow)
    }

    /// Waits for a flight's outcome, and returns what there is to join: nothing if this caller has to ask again.
    async fn follow(
        &self,
        flight: &Flight<K, T>,
        mut following: Following<T>,
        until: &mut Option<Instant>,
    ) -> Result<Option<T>, GateError> {
        let deadline = self.follow_until(until);
        let outcome = following.outcome(deadline).await;
        let joined = outcome.ok_or_else(|| self.timed_out(flight))?.joined();
        match joined {
            Err(GateError::BudgetExhausted(mut refusal)) => {
                refusal.first = false;
                Err(refusal.into())
            }
            Ok(None) if Instant::now() >= deadline => Err(self.timed_out(flight)),
            joined => joined,
        }
    }

    /// Waits for the outcome of the flight that this caller's request leads, in a task of its own.
    async fn led(
        &self,
        flight: &Flight<K, T>,
        leading: JoinHandle<Outcome<T>>,
        mut until: Option<Instant>,
    ) -> Result<Launched<T>, GateError> {
        let _waits = flight.count_asker();
        let deadline = self.follow_until(&mut until);
        let led = Box::pin(timeout_at(deadline, leading)).await;
        let led = led.map_err(|_| self.timed_out(flight))?;
        let (value, how) = match led {
            Ok(Outcome::Launched(value)) => (value, How::Led),
            Ok(Outcome::Discovered(value)) => (value, How::Discovered),
            Ok(Outcome::Failed(error)) => return Err(error),
            // Only a seat that was dropped, with its task, is vacated; then there is an error instead.
            Ok(Outcome::Vacated) => return Err(GateError::ShutDown),
            Err(why) => return Err(task_lost(flight, &why)),
        };
        Ok(Launched { value, how })
    }

    fn timed_out(&self, flight: &Flight<K, T>) -> GateError {
        TimeoutError {
            key: Some(flight.label()),
            stage: Stage::Follow,
            after: self.inner.timeouts.follow,
            waiting_for: flight.waiting_for(),
        }
        .into()
    }
}

impl<K, T> Clone for SpawnGate<K, T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K, T> fmt::Debug for SpawnGate<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnGate")
            .field("lock", &self.inner.lock)
            .finish_non_exhaustive()
    }
}

/// What a request hears whose flight was led by a task that is gone.
fn task_lost<K: GateKey, T>(flight: &Flight<K, T>, why: &JoinError) -> GateError {
    if why.is_panic() {
        LaunchError::task_panicked(flight.label()).into()
    } else {
        GateError::ShutDown
    }
}
