//! A flight that `launch` leads: lock, discover, launch, settle, each with its deadline, in a task of its own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::catch_panic::CatchPanic;
use crate::error::{
    BudgetExhausted, GateError, LaunchError, LockError, SharedError, Stage, TimeoutError,
};
use crate::flight::{Claim, Outcome};
use crate::key::GateKey;
use crate::launcher::BackendLauncher;
use crate::lock::SpawnLease;
use crate::lock_wait::LockWait;
use crate::permit::{LaunchPermit, Seat};

type LauncherError = Box<dyn std::error::Error + Send + Sync>;

/// How a call of the launcher did not return.
enum Broken {
    Panicked(String),
    TimedOut,
}

/// Runs the flight to its end. Whatever happens here, also if this future is dropped, the flight ends and says how.
pub(crate) async fn run<K, T, L>(seat: Seat<K, T>, launcher: Arc<L>)
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
    L: BackendLauncher<K, T> + ?Sized,
{
    let mut wait = LockWait::new(Instant::now() + seat.inner.timeouts.lock);
    let lease = loop {
        if !seat.flight.advance(Stage::Lock) {
            return;
        }
        let lease = match wait.take(&seat).await {
            Ok(lease) => lease,
            Err(error) => return seat.end_without_launch(Outcome::Failed(error)).await,
        };
        match discover(&seat, &*launcher).await {
            Ok(Some(value)) => {
                drop(lease);
                return seat.end_without_launch(Outcome::Discovered(value)).await;
            }
            Ok(None) => {}
            Err(error) => {
                drop(lease);
                return seat.end_without_launch(Outcome::Failed(error)).await;
            }
        }
        match lease.verify().await {
            Ok(()) => break lease,
            Err(error) if wait.may_retry_after(&error) => {}
            Err(error) => {
                drop(lease);
                let error = LockError::new(seat.label(), error);
                return seat.end_without_launch(Outcome::Failed(error.into())).await;
            }
        }
    };
    if let Claim::Look(mut refusal) = seat.flight.claim {
        drop(lease);
        refusal.retry_after = refusal
            .retry_after
            .saturating_sub(seat.flight.began.elapsed());
        let refusal = BudgetExhausted::new(seat.label(), refusal);
        return seat.fail(refusal).await;
    }
    launch(seat, lease, &*launcher).await;
}

async fn discover<K, T, L>(seat: &Seat<K, T>, launcher: &L) -> Result<Option<T>, GateError>
where
    K: GateKey,
    L: BackendLauncher<K, T> + ?Sized,
{
    seat.flight.advance(Stage::Discover);
    let limit = seat.inner.timeouts.discover;
    match bounded(limit, launcher.discover(&seat.key)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(LaunchError::Discover {
            key: seat.label().into(),
            source: SharedError::new(error),
        }
        .into()),
        Err(broken) => Err(broken.into_error(seat.label(), Stage::Discover, limit)),
    }
}

async fn launch<K, T, L>(seat: Seat<K, T>, lease: Box<dyn SpawnLease>, launcher: &L)
where
    K: GateKey,
    L: BackendLauncher<K, T> + ?Sized,
{
    let limit = seat.inner.timeouts.launch;
    let label = seat.label();
    let Some(permit) = LaunchPermit::new(seat, lease) else {
        return;
    };
    // Whether all hear of it, and as what, is decided there; nobody is left to be told here.
    match bounded(limit, launcher.launch(&permit)).await {
        Ok(Ok(value)) => drop(permit.succeed(value).await),
        Ok(Err(error)) => drop(permit.fail(error).await),
        Err(broken) => {
            let error = broken.into_error(label, Stage::Launch, limit);
            permit.end_charged(error).await;
        }
    }
}

/// Runs a call of the launcher, for as long as it may take.
async fn bounded<V>(
    limit: Duration,
    call: impl Future<Output = Result<V, LauncherError>>,
) -> Result<Result<V, LauncherError>, Broken> {
    match timeout(limit, CatchPanic::new(call)).await {
        Ok(Ok(returned)) => Ok(returned),
        Ok(Err(message)) => Err(Broken::Panicked(message)),
        Err(_) => Err(Broken::TimedOut),
    }
}

impl Broken {
    fn into_error(self, key: String, stage: Stage, limit: Duration) -> GateError {
        match self {
            Self::Panicked(message) => LaunchError::Panicked {
                key: key.into(),
                message: message.into(),
            }
            .into(),
            Self::TimedOut => TimeoutError {
                key: Some(key.into()),
                stage,
                after: limit,
                waiting_for: None,
            }
            .into(),
        }
    }
}
