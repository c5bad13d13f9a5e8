//! Launches: what holds while one is in progress, and a launcher that does as its plan says.

use std::time::Duration;

use spawn_gate::{BackendLauncher, BoxError, async_trait};
use tokio::time::sleep;

use crate::model::Settled;
use crate::requests::{Asker, End, failure};
use crate::world::{Backend, Key, Permit};

/// A launch in progress. Dropping it ends it as one that was cut short.
pub(crate) struct Begun {
    pub(crate) id: u64,
    is_over: bool,
    asker: Asker,
}

impl Begun {
    pub(crate) fn new(
        asker: &Asker,
        permit: &Permit,
        running: Option<u64>,
        by_launcher: bool,
    ) -> Self {
        let Asker { number, place, .. } = *asker;
        let attempt = (permit.attempt_number(), permit.remaining_after_begin());
        let token = permit.fencing_token();
        let id = asker
            .world
            .see(|checks| checks.launch_began(number, place, token, attempt, running, by_launcher));
        let (is_over, asker) = (false, asker.clone());
        Self { id, is_over, asker }
    }

    pub(crate) fn over(mut self, how: Settled) {
        self.is_over = true;
        self.asker
            .world
            .see(|checks| checks.launch_over(self.id, how));
    }

    pub(crate) fn up(self, token: u64) {
        let (key, launch) = (self.asker.place.1, self.id);
        let backend = Backend { key, launch, token };
        self.asker.world.backends.lock().unwrap().push(backend);
        self.over(Settled::Up);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_over {
            let Asker { number, place, .. } = self.asker;
            self.asker.world.see(|checks| {
                checks.launch_over(self.id, Settled::Failed);
                checks.flight_over(number, place);
            });
        }
    }
}

pub(crate) struct Launcher(pub(crate) Asker);

impl Drop for Launcher {
    fn drop(&mut self) {
        let Asker { number, place, .. } = self.0;
        self.0.world.see(|checks| checks.flight_over(number, place));
    }
}

#[async_trait]
impl BackendLauncher<Key, u64> for Launcher {
    async fn discover(&self, key: &Key) -> Result<Option<u64>, BoxError> {
        let Asker {
            number,
            place,
            plan,
            ..
        } = self.0;
        let world = &self.0.world;
        world.see(|checks| checks.looks(number, place));
        if plan.look > 0 {
            sleep(Duration::from_millis(plan.look)).await;
        }
        if plan.look_fails {
            return Err("cannot look".into());
        }
        let found = world.running(key);
        world.see(|checks| match found {
            Some(found) => checks.told(place, found),
            None => checks.found_none(place),
        });
        Ok(found)
    }

    async fn launch(&self, permit: &Permit) -> Result<u64, BoxError> {
        let Asker {
            number,
            place,
            plan,
            ..
        } = self.0;
        let world = &self.0.world;
        let begun = Begun::new(&self.0, permit, world.running(permit.key()), true);
        let id = begun.id;
        if plan.work > 0 {
            sleep(Duration::from_millis(plan.work)).await;
        }
        match plan.end {
            End::Up => {
                begun.up(permit.fencing_token());
                world.see(|checks| {
                    checks.told(place, id);
                    // The launcher may live on to discard the backend.
                    checks.flight_over(number, place);
                });
                Ok(id)
            }
            End::Fail | End::Refund => {
                begun.over(Settled::Failed);
                Err(failure(id).into())
            }
            End::Panic => {
                begun.over(Settled::Failed);
                // No hook runs, so nothing is printed.
                std::panic::resume_unwind(Box::new(failure(id)))
            }
            End::Hang => std::future::pending().await,
        }
    }

    async fn discard(&self, _key: &Key, value: u64) {
        self.0.world.stop(value);
    }
}
