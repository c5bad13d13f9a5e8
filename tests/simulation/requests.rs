//! Requests: what a caller does, and a launcher that does as the seed says.

use std::sync::Arc;
use std::time::Duration;

use spawn_gate::error::LaunchError;
use spawn_gate::{Acquired, GateError, How, SpawnGate};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::checks::Place;
use crate::config::Config;
use crate::heard::Heard;
use crate::launcher::{Begun, Launcher};
use crate::leash::Leash;
use crate::model::{Millis, Settled};
use crate::world::{Key, Permit, World};

pub(crate) type Gate = SpawnGate<Key, u64>;

/// What a request will do, if it comes to that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) look: Millis,
    pub(crate) look_fails: bool,
    pub(crate) work: Millis,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Up,
    Fail,
    Panic,
    Hang,
    Refund,
}

impl Plan {
    pub(crate) fn new(config: &Config, chance: &mut Chance) -> Self {
        let fails = chance.percent(config.failures);
        Self {
            look: chance.pick(&[0, 0, 1, 40, 400, 900]),
            look_fails: chance.percent(4),
            work: chance.pick(&[0, 1, 30, 500, 2_500]),
            end: match fails {
                true => chance.pick(&[End::Fail, End::Fail, End::Panic, End::Hang, End::Refund]),
                false => End::Up,
            },
        }
    }
}

/// Who asks, where, and for what.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) number: u64,
    pub(crate) place: Place,
    pub(crate) key: Key,
    pub(crate) plan: Plan,
    pub(crate) world: Arc<World>,
}

/// Asks for a launch.
pub(crate) async fn launch(asker: Asker, gate: Gate, leash: Leash) {
    let Asker {
        number,
        place,
        ref world,
        ref key,
        ..
    } = asker;
    world.see(|checks| checks.began(number, place, leash.clone(), true));
    let launcher = Launcher(asker.clone());
    let heard = match gate.launch(key.clone(), launcher).await {
        Ok(launched) => match launched.how {
            How::Led => Heard::Led(launched.value),
            How::Joined => Heard::Joined(launched.value),
            _ => Heard::Found(launched.value),
        },
        Err(error) => of_error(error),
    };
    world.see(|checks| checks.heard(number, &heard, leash.rung()));
}

/// Asks for a permit, and launches by itself.
pub(crate) async fn acquire(asker: Asker, gate: Gate, leash: Leash) {
    let Asker {
        number,
        place,
        ref world,
        ref key,
        ..
    } = asker;
    world.see(|checks| checks.began(number, place, leash.clone(), false));
    let heard = match gate.acquire(key.clone()).await {
        Ok(Acquired::Led(permit)) => {
            work(&asker, permit).await;
            Heard::Settled
        }
        Ok(Acquired::Joined(value)) => Heard::Joined(value),
        Err(error) => of_error(error),
    };
    world.see(|checks| checks.heard(number, &heard, leash.rung()));
}

/// Launches with a permit, and settles it.
async fn work(asker: &Asker, permit: Permit) {
    let Asker {
        number,
        place,
        plan,
        ..
    } = *asker;
    let world = &asker.world;
    let begun = Begun::new(asker, &permit, None, false);
    if let Some(found) = world.running(&asker.key) {
        begun.over(Settled::Nothing);
        world.see(|checks| {
            checks.flight_over(number, place);
            checks.told(place, found);
        });
        return permit.discovered(found).await;
    }
    sleep(Duration::from_millis(plan.work)).await;
    let id = begun.id;
    match plan.end {
        End::Up => {
            begun.up(permit.fencing_token());
            world.see(|checks| {
                checks.flight_over(number, place);
                checks.told(place, id);
            });
            let is_aborted = world.see(|checks| checks.is_aborted(id));
            let settled = permit.succeed(id).await;
            if settled.is_err() {
                world.stop(id);
            } else if is_aborted {
                world.see(|checks| {
                    checks.fail(format_args!("launch {id} succeeds, but was aborted"))
                });
            }
        }
        End::Fail => {
            begun.over(Settled::Failed);
            world.see(|checks| checks.flight_over(number, place));
            permit.fail(failure(id)).await;
        }
        End::Refund => {
            begun.over(Settled::Nothing);
            world.see(|checks| checks.flight_over(number, place));
            permit.refund().await;
        }
        End::Panic | End::Hang => {
            if plan.end == End::Hang {
                sleep(Duration::from_millis(9_000)).await;
            }
            begun.over(Settled::Failed);
            world.see(|checks| checks.flight_over(number, place));
            drop(permit);
        }
    }
}

pub(crate) fn failure(id: u64) -> String {
    format!("launch={id}")
}

/// The launch that a message is about.
fn failed(message: &str) -> Option<u64> {
    let (_, number) = message.rsplit_once("launch=")?;
    number.parse().ok()
}

fn of_error(error: GateError) -> Heard {
    match &error {
        GateError::BudgetExhausted(refusal) => Heard::Refused {
            retry_after: Millis::try_from(refusal.retry_after.as_millis()).unwrap(),
            first: refusal.first,
        },
        GateError::Launch(LaunchError::Failed { source, .. }) => {
            failed(&source.to_string()).map_or_else(|| other(&error), Heard::Failed)
        }
        GateError::Launch(LaunchError::Panicked { message, .. }) => {
            failed(message).map_or_else(|| other(&error), Heard::Failed)
        }
        GateError::Launch(LaunchError::FailedElsewhere { launch, .. }) => {
            Heard::FailedElsewhere(*launch)
        }
        GateError::Closed => Heard::Closed,
        _ => other(&error),
    }
}

fn other(error: &GateError) -> Heard {
    Heard::Other(format!("{error:#}"))
}
