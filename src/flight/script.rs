//! The order of a leader's steps, from the begin of its flight to the end. See "Data flow" in docs/design.md.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::Instant;

use super::entry::Flight;
use super::launcher::BackendLauncher;
use super::leader::Leader;
use super::lock_wait::LockWait;
use super::outcome::{Outcome, Step, lock_failed};
use super::permit::LaunchPermit;
use super::steps::call;
use super::waiting::{LONG_WAIT, Notice, Waiting};
use crate::error::Stage;
use crate::key::GateKey;
use crate::lock::SpawnLockError;
use crate::util::caught;

/// Takes all steps up to the permit that need no waiting, for a leader without a launcher. `false`, with nothing changed, if the
/// lock is not free, or there is a ledger to write or a refusal to check.
pub(crate) fn prepare_now<K: GateKey, T>(leader: &mut Leader<K, T>) -> bool {
    if !leader.take_lock_now() {
        return false;
    }
    // No clock is read on this path.
    let began = leader.began;
    let is_ready = matches!(leader.verify_and_charge_now(true, began), Ok(true));
    if !is_ready {
        drop(leader.held.take());
    }
    is_ready
}

/// Takes all steps up to the permit. Without a launcher, it skips the looks for a running backend.
pub(crate) async fn prepare<K: GateKey, T: 'static>(
    leader: &mut Leader<K, T>,
    launcher: Option<&dyn BackendLauncher<K, T>>,
) -> Step<T> {
    let mut wait = LockWait::default();
    // A lock without a ledger that needs no waiting is taken first, so that one look is enough.
    if !leader.take_lock_now() {
        if launcher.is_some() || leader.refusal.is_some() {
            leader.read_ledger().await;
            leader.look(launcher).await?;
            leader.confirm_refusal().await?;
        }
        // Boxed, here and below, to keep this future small.
        Box::pin(leader.take_lock(&mut wait, launcher)).await?;
    }
    loop {
        let mut charged = Ok(());
        if leader.attempt.is_none() {
            // The lock was held by another since the last look, or there is no ledger to tell.
            leader.look(launcher).await?;
            charged = match leader.verify_and_charge_now(false, Instant::now()) {
                Ok(true) => return Ok(()),
                Ok(false) => leader.charge().await?,
                Err(error) => Err(error),
            };
        }
        let ready = match charged {
            // The last step before the launch.
            Ok(()) => leader.verify().await,
            error => error,
        };
        let Err(error) = ready else {
            return leader.begin_launch();
        };
        if error.is_lost() {
            leader.count_lock_lost();
        }
        Box::pin(take_lock_again(leader, &mut wait, error, launcher)).await?;
    }
}

/// Lets go of a lock that cannot be verified or written to, and takes it again, if that may help.
async fn take_lock_again<K: GateKey, T: 'static>(
    leader: &mut Leader<K, T>,
    wait: &mut LockWait,
    error: SpawnLockError,
    launcher: Option<&dyn BackendLauncher<K, T>>,
) -> Step<T> {
    wait.began_at(leader.began, &leader.shared);
    // A lock that did not answer is not asked again.
    if !error.is_lost() && !matches!(error, SpawnLockError::Unresponsive { .. }) {
        leader.take_back_charge().await;
    }
    wait.note_error(error, leader.flight.key())
        .map_err(lock_failed)?;
    leader.let_go();
    wait.until_released(&leader.shared, leader.flight.key())
        .await;
    leader.take_lock(wait, launcher).await
}

/// Leads a flight to its end and returns the outcome.
pub(crate) async fn lead<K, T, L>(mut leader: Leader<K, T>, launcher: L) -> Outcome<T>
where
    K: GateKey,
    T: Clone + Send + Sync + 'static,
    L: BackendLauncher<K, T>,
{
    let flight = leader.flight.clone();
    let prepared = {
        let preparing = pin!(prepare(&mut leader, Some(&launcher)));
        or_interrupted(&flight, preparing).await
    };
    let (launched, leader) = match prepared {
        Ok(()) => launch(leader, &launcher).await,
        Err(outcome) => (outcome, leader),
    };
    let value = match &launched {
        Outcome::Launched(value) => Some(value.clone()),
        _ => None,
    };
    let limit = leader.shared.timeouts.launch;
    let outcome = leader.end(launched).await;
    match (value, &outcome) {
        (Some(unheard_of), Outcome::Failed(_)) => {
            // In its own task: the caller does not wait for it, and nobody needs its result.
            tokio::spawn(async move {
                let discard = async || {
                    launcher.discard(flight.key(), unheard_of).await;
                    Ok(())
                };
                let _ = call(limit, None, discard).await;
            });
        }
        // A panic in the launcher's `Drop` must not change the outcome for this caller.
        _ => _ = caught(|| drop(launcher)),
    }
    outcome
}

/// Runs the launcher.
async fn launch<K, T>(
    leader: Leader<K, T>,
    launcher: &impl BackendLauncher<K, T>,
) -> (Outcome<T>, Leader<K, T>)
where
    K: GateKey,
    T: Send + Sync + 'static,
{
    let limit = leader.shared.timeouts.launch;
    let flight = leader.flight.clone();
    let on_wait = leader.shared.on_wait.clone();
    let permit = LaunchPermit::new(leader);
    let notice = on_wait.map(|on_wait| {
        let label = flight.label();
        let notice: Notice<'_> = Box::new(move || {
            on_wait.tell(&Waiting {
                key: label,
                stage: Stage::Launch,
                waited: LONG_WAIT,
                left: limit - LONG_WAIT,
                holder: None,
            });
        });
        notice
    });
    let launched = {
        let launching = pin!(call(limit, notice, async || launcher.launch(&permit).await));
        let launching = pin!(or_lost(&permit, launching));
        or_interrupted(&flight, launching).await
    };
    let mut leader = permit.into_leader();
    let outcome = match launched {
        Ok(Ok(Ok(value))) => Outcome::Launched(value),
        Ok(Ok(Err(error))) => Outcome::Failed(leader.launch_failed(error)),
        Ok(Err(no_answer)) => {
            let left = Some(leader.attempts_left());
            Outcome::Failed(no_answer.into_error(&flight, Stage::Launch, limit, left))
        }
        Err(outcome) => outcome,
    };
    (outcome, leader)
}

/// Awaits a step, unless an operator ends the flight first.
pub(crate) async fn or_interrupted<K, T, V>(
    flight: &Flight<K, T>,
    mut step: Pin<&mut impl Future<Output = Step<T, V>>>,
) -> Step<T, V> {
    poll_fn(|context| match step.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(ended),
        Poll::Pending => {
            let interrupted = flight.poll_interrupted(context);
            interrupted.map(|error| Err(Outcome::Failed(error)))
        }
    })
    .await
}

/// Awaits the launcher, unless the lock is lost first.
async fn or_lost<K: GateKey, T, V>(
    permit: &LaunchPermit<K, T>,
    mut launching: Pin<&mut impl Future<Output = V>>,
) -> Step<T, V> {
    let at_once = poll_fn(|context| Poll::Ready(launching.as_mut().poll(context)));
    if let Poll::Ready(launched) = at_once.await {
        return Ok(launched);
    }
    // Boxed, to keep this future small.
    let mut lost = Box::pin(permit.lost());
    poll_fn(|context| match launching.as_mut().poll(context) {
        Poll::Ready(launched) => Poll::Ready(Ok(launched)),
        Poll::Pending => {
            let lost = lost.as_mut().poll(context);
            lost.map(|error| Err(Outcome::Failed(permit.lock_lost(error))))
        }
    })
    .await
}
