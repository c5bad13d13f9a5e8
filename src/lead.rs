//! What a leader does: take the lock, read the ledger, look for a running backend, charge, launch, settle. Each step has its
//! deadline, and whatever happens, also if a future here is dropped, the flight ends and says how.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::{Attempt, BudgetRefusal, Settlement};
use crate::catch_panic::{CatchPanic, caught};
use crate::error::{
    BudgetExhausted, GateError, LaunchError, LockError, SharedError, Stage, TimeoutError,
};
use crate::held::Held;
use crate::key::GateKey;
use crate::launcher::{BackendLauncher, BoxError};
use crate::ledger::Ledger;
use crate::lock::SpawnLockError;
use crate::lock_wait::LockWait;
use crate::open_ledger::{self, OpenLedger};
use crate::outcome::Outcome;
use crate::permit::{LaunchPermit, Seat};
use crate::slot::{Claim, Settling};
use crate::within::within;

/// Runs a flight to its end, and returns that.
pub(crate) async fn lead<K, T, L>(seat: Seat<K, T>, claim: Claim, launcher: L) -> Outcome<T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
    L: BackendLauncher<K, T>,
{
    let limit = seat.inner.timeouts.launch;
    let flight = seat.flight.clone();
    let (outcome, unwanted) = match earn_permit(seat, claim, Some(&launcher)).await {
        Ok(permit) => launch(permit, &launcher, limit).await,
        Err(outcome) => (outcome, None),
    };
    if let Some(value) = unwanted {
        // Apart, since all can be told meanwhile. However it goes, there is nobody to be told.
        tokio::spawn(async move {
            let discard = async || {
                launcher.discard(flight.key(), value).await;
                Ok(())
            };
            let _ = bounded(limit, discard).await;
        });
    } else {
        // The followers have heard the outcome, and the caller shall hear the same.
        let _ = caught(|| drop(launcher));
    }
    outcome
}

/// Runs the launcher, and settles. Returns the outcome, and a backend that nobody hears of.
async fn launch<K, T>(
    permit: LaunchPermit<K, T>,
    launcher: &impl BackendLauncher<K, T>,
    limit: Duration,
) -> (Outcome<T>, Option<T>)
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
{
    match bounded(limit, async || launcher.launch(&permit).await).await {
        Ok(Ok(value)) => {
            let kept = value.clone();
            match permit.succeed(value).await {
                Ok(()) => (Outcome::Launched(kept), None),
                Err(error) => (Outcome::Failed(error), Some(kept)),
            }
        }
        Ok(Err(error)) => (Outcome::Failed(permit.fail(error).await), None),
        Err(broken) => {
            let error = broken.into_error(permit.label(), Stage::Launch, limit);
            permit.end_failed(error.clone()).await;
            (Outcome::Failed(error), None)
        }
    }
}

/// Turns a seat into a permit if that takes no waiting: the lock is free, and there is neither a ledger to write nor a backend
/// to look for.
pub(crate) fn permit_at_once<K: GateKey, T>(
    seat: Seat<K, T>,
    claim: Claim,
) -> Result<LaunchPermit<K, T>, Seat<K, T>> {
    let (Claim::Launch(attempt), false) = (claim, seat.inner.policy.is_in_ledger) else {
        return Err(seat);
    };
    let lease = match seat.inner.lock.try_acquire_now(seat.flight.key()) {
        Some(Ok(lease)) if matches!(lease.verify_now(), Some(Ok(()))) => lease,
        unfit => {
            // While the seat is still here: a lease that panics when it is dropped must not leave the flight without its
            // leader.
            drop(unfit);
            return Err(seat);
        }
    };
    seat.flight.advance(Stage::Launch);
    let held = Held::new(lease, &seat.inner.policy, &seat.inner.clock);
    Ok(LaunchPermit::new(seat, held, attempt))
}

/// Turns a seat into a permit. If there is none to be had, or none is needed, the flight has ended when this returns, and the
/// outcome says why. Without a launcher it is not known whether a backend runs.
pub(crate) async fn earn_permit<K: GateKey, T: Clone + 'static>(
    seat: Seat<K, T>,
    claim: Claim,
    launcher: Option<&dyn BackendLauncher<K, T>>,
) -> Result<LaunchPermit<K, T>, Outcome<T>> {
    if let Some((error, settling)) = confirmed_refusal(&seat, claim, launcher.is_some()).await {
        let outcome = Outcome::Failed(error);
        seat.end(outcome.clone(), settling);
        return Err(outcome);
    }
    match prepare(&seat, claim, launcher).await {
        Ok((held, attempt)) => {
            seat.flight.advance(Stage::Launch);
            Ok(LaunchPermit::new(seat, held, attempt))
        }
        Err((ending, held)) => {
            let settling = ending.settling();
            let settling = match held {
                Some(held) => held.leave(settling).await,
                None => settling,
            };
            let outcome = ending.into_outcome();
            let shared = match &outcome {
                // The followers may be on a runtime that is not shut down: one of them takes over.
                Outcome::Failed(GateError::Lock(error)) if is_shutdown(&error.source) => {
                    Outcome::Vacated
                }
                outcome => outcome.clone(),
            };
            seat.end(shared, settling);
            Err(outcome)
        }
    }
}

fn is_shutdown(error: &SpawnLockError) -> bool {
    matches!(error, SpawnLockError::RuntimeShutDown { .. })
}

/// Asks the ledger whether a refusal still stands, without waiting for the lock. `None` if it does not, if that cannot be told,
/// or if somebody seems to be launching just now, or a backend to be up that can be looked for.
async fn confirmed_refusal<K: GateKey, T>(
    seat: &Seat<K, T>,
    claim: Claim,
    can_discover: bool,
) -> Option<(GateError, Settling)> {
    let inner = &*seat.inner;
    let Claim::Look(BudgetRefusal { first, .. }) = claim else {
        return None;
    };
    if !inner.policy.is_in_ledger {
        return None;
    }
    // Before the look: a reset that comes while it is under way knows better.
    let seen_at = Instant::now();
    let ledger = inner.peek(seat.flight.key()).await?;
    if ledger.holder().is_some() || (can_discover && ledger.budget.may_be_up()) {
        return None;
    }
    let retry_after = open_ledger::usage(&ledger, &inner.policy, &*inner.clock).retry_after?;
    let mut seen = open_ledger::seen(&ledger, &inner.policy, &*inner.clock, seen_at);
    seen.budget.note_refused();
    let refusal = BudgetRefusal { retry_after, first };
    let error = refused(seat, refusal, Some(&ledger));
    Some((error, Settling::Ledger(Box::new(seen))))
}

/// What a request hears for which no attempt is left.
fn refused<K: GateKey, T>(
    seat: &Seat<K, T>,
    refusal: BudgetRefusal,
    ledger: Option<&Ledger>,
) -> GateError {
    let last_failure = ledger
        .and_then(Ledger::last_failure)
        .map(|why| Arc::new(why.to_owned()));
    BudgetExhausted::new(seat.flight.label(), refusal, last_failure).into()
}

/// How a flight ends before it has its permit.
enum Ending<T> {
    /// A backend runs.
    Discovered(T),
    /// No attempt is left.
    Refused(GateError),
    /// Something else is in the way; nothing is charged for it.
    Failed(GateError),
}

impl<T> Ending<T> {
    fn settling(&self) -> Settling {
        match self {
            Self::Refused(_) => Settling::Attempt(Settlement::Failed, None),
            Self::Discovered(_) | Self::Failed(_) => Settling::REFUND,
        }
    }

    fn into_outcome(self) -> Outcome<T> {
        match self {
            Self::Discovered(value) => Outcome::Discovered(value),
            Self::Refused(error) | Self::Failed(error) => Outcome::Failed(error),
        }
    }
}

/// Takes all steps up to the permit.
async fn prepare<K: GateKey, T: 'static>(
    seat: &Seat<K, T>,
    claim: Claim,
    launcher: Option<&dyn BackendLauncher<K, T>>,
) -> Result<(Held, Attempt), (Ending<T>, Option<Held>)> {
    let inner = &*seat.inner;
    let mut wait = LockWait::new(inner);
    loop {
        seat.flight.advance(Stage::Lock);
        let taken = wait
            .take(inner, seat.flight.key(), |holder| {
                seat.flight.note_holder(holder)
            })
            .await;
        let mut held = match taken {
            Ok(lease) => Held::new(lease, &inner.policy, &inner.clock),
            Err(error) => return Err((Ending::Failed(error), None)),
        };
        seat.flight.note_lock_held();
        match prepare_held(seat, claim, launcher, &wait, &mut held).await {
            Ok(attempt) => return Ok((held, attempt)),
            // Taken back all the same: a lock service's ledger outlives the lost lease.
            Err(Stop::LockLost(error)) if wait.may_retry_after(&error) => {
                wait.began_before(seat.flight.age(), inner);
                drop(held.leave(Settling::REFUND).await);
            }
            Err(Stop::LockLost(error)) => return Err((lock_failed(seat, error), Some(held))),
            Err(Stop::Ending(ending)) => return Err((ending, Some(held))),
        }
    }
}

/// Why the steps with a held lock ended before the permit.
enum Stop<T> {
    LockLost(SpawnLockError),
    Ending(Ending<T>),
}

impl<T> From<Ending<T>> for Stop<T> {
    fn from(ending: Ending<T>) -> Self {
        Self::Ending(ending)
    }
}

/// Takes the steps from the lock to the written charge.
async fn prepare_held<K: GateKey, T: 'static>(
    seat: &Seat<K, T>,
    claim: Claim,
    launcher: Option<&dyn BackendLauncher<K, T>>,
    wait: &LockWait,
    held: &mut Held,
) -> Result<Attempt, Stop<T>> {
    let failure = match (&held.ledger, wait.ended_before) {
        (Some(ledger), Some(seen)) => ledger.failure_after(seen),
        _ => None,
    };
    if let Some((launch, message)) = failure {
        let error = LaunchError::FailedElsewhere {
            key: seat.flight.label(),
            launch,
            message: message.into(),
        };
        return Err(Ending::Failed(error.into()).into());
    }
    if let Some(launcher) = launcher {
        // From here on whoever waits can see who is at work. That is for people only, so it may fail.
        let _ = held.write_ledger().await;
        if let Some(value) = discover(seat, launcher).await.map_err(Ending::Failed)? {
            return Err(Ending::Discovered(value).into());
        }
    }
    let attempt = held
        .charge(claim, launcher.is_some())
        .map_err(|mut refusal| {
            if held.ledger.is_none() {
                // It was made when the flight was begun.
                let waited = seat.flight.age();
                refusal.retry_after = refusal.retry_after.saturating_sub(waited);
            }
            let ledger = held.ledger.as_deref().map(OpenLedger::to_write);
            Ending::Refused(refused(seat, refusal, ledger))
        })?;
    seat.flight.note_attempt(attempt.number);
    let written = held.write_ledger().await;
    written.map_err(|error| lock_failed(seat, error))?;
    // Last of all: what follows is the launch.
    held.verify().await.map_err(Stop::LockLost)?;
    Ok(attempt)
}

/// Looks for a running backend, for as long as that may take.
async fn discover<K: GateKey, T: 'static>(
    seat: &Seat<K, T>,
    launcher: &dyn BackendLauncher<K, T>,
) -> Result<Option<T>, GateError> {
    seat.flight.advance(Stage::Discover);
    let limit = seat.inner.timeouts.discover;
    match bounded(limit, async || launcher.discover(seat.flight.key()).await).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(LaunchError::Discover {
            key: seat.flight.label(),
            source: SharedError::new(error),
        }
        .into()),
        Err(broken) => Err(broken.into_error(seat.flight.label(), Stage::Discover, limit)),
    }
}

fn lock_failed<K: GateKey, T>(seat: &Seat<K, T>, error: SpawnLockError) -> Ending<T> {
    Ending::Failed(LockError::new(seat.flight.label(), error).into())
}

/// Runs a call of the launcher, for as long as it may take.
async fn bounded<V>(
    limit: Duration,
    call: impl AsyncFnOnce() -> Result<V, BoxError>,
) -> Result<Result<V, BoxError>, Broken> {
    // A launcher can panic before it returns a future, too.
    match within(limit, CatchPanic::new(async { call().await })).await {
        Some(Ok(returned)) => Ok(returned),
        Some(Err(message)) => Err(Broken::Panicked(message)),
        None => Err(Broken::TimedOut),
    }
}

/// How a call of the launcher did not return.
enum Broken {
    Panicked(String),
    TimedOut,
}

impl Broken {
    fn into_error(self, key: Arc<str>, stage: Stage, limit: Duration) -> GateError {
        match self {
            Self::Panicked(message) => LaunchError::Panicked {
                key,
                message: message.into(),
            }
            .into(),
            Self::TimedOut => TimeoutError {
                key: Some(key),
                stage,
                after: limit,
                waiting_for: None,
            }
            .into(),
        }
    }
}
