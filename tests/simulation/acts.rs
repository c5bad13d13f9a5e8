//! What operators do, and the world: it stops backends, and takes locks away.

use std::future::Future;
use std::sync::Arc;

use spawn_gate::admin::BackendEnd;
use spawn_gate::lock::{LedgerUpdate, LockRequest, SpawnLease, TryAcquire};
use tokio::time::Instant;

use crate::checks::Place;
use crate::driver::{Driver, Locks};
use crate::leash::Leash;
use crate::quiet::ready;
use crate::world::Key;

impl Driver {
    /// Takes a lock from its holder.
    pub(crate) fn lose(&mut self) {
        let key = self.any_key();
        match &self.locks {
            Locks::Scripted(store) => {
                if let Some(token) = store.revoke(&key) {
                    self.world.see(|checks| checks.lost(key.name, token));
                }
            }
            Locks::Real(lock, _) => {
                self.world.see(|checks| checks.deleted(key.name));
                let _ = std::fs::remove_file(lock.path_of(&key));
            }
        }
    }

    pub(crate) fn stop_backend(&mut self) {
        let running = self.world.backends.lock().unwrap().clone();
        if running.is_empty() {
            return;
        }
        let backend = self.chance.pick(&running);
        self.world.stop(backend.launch);
        let gate = self.any_gate();
        let (is_told, is_orderly) = (self.chance.percent(70), self.chance.percent(50));
        self.world
            .see(|checks| checks.stopped((gate, backend.key), backend.launch, is_told));
        let key = self
            .keys
            .iter()
            .find(|key| key.name == backend.key)
            .cloned();
        let (Some(key), true) = (key, is_told) else {
            return;
        };
        let end = match is_orderly {
            true => BackendEnd::orderly(backend.token),
            false => BackendEnd::failed(backend.token, "it died"),
        };
        let place = (gate, backend.key);
        let (gate, world) = (self.gates[gate].clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            world.see(|checks| checks.reports_end(place, backend.token));
            let _ = gate.backend_ended(key, end).await;
            world.see(|checks| checks.ended(place, backend.token));
        });
    }

    pub(crate) fn reset(&mut self) {
        let (gate, key) = (self.any_gate(), self.any_key());
        let place: Place = (gate, key.name);
        self.world.see(|checks| checks.resets_at(place));
        let (gate, world) = (self.gates[gate].clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            let _ = gate.reset(key).await;
            world.see(|checks| checks.is_reset(place));
        });
    }

    pub(crate) fn abort(&mut self) {
        let (number, key) = (self.any_gate(), self.any_key());
        let (gate, world) = (self.gates[number].clone(), Arc::clone(&self.world));
        self.on_leash(async move {
            world.see(|checks| checks.aborts((number, key.name), true));
            gate.abort(key).await;
        });
    }

    pub(crate) fn close(&mut self) {
        let number = self.any_gate();
        let (gate, world) = (self.gates[number].clone(), Arc::clone(&self.world));
        self.world.see(|checks| checks.closes(number));
        self.on_leash(async move {
            // What has not drained in time may still have to settle.
            if gate.close().await.is_err() {
                return;
            }
            let shown = ready(gate.snapshots());
            let is_idle = shown.iter().all(|shown| shown.flight.is_none());
            world.see(|checks| checks.is_closed(number, is_idle));
        });
    }

    /// Somebody else takes a lock, or lets it go.
    pub(crate) async fn hold(&mut self) {
        if self.stranger.take().is_some() {
            return;
        }
        let key = self.any_key();
        self.stranger = self.take(&key).await;
    }

    pub(crate) async fn take(&self, key: &Key) -> Option<Box<dyn SpawnLease>> {
        let request = LockRequest::new(LedgerUpdate::none(), Instant::now());
        match self.inner().try_acquire(key, request).await {
            Ok(TryAcquire::Acquired(lease)) => Some(lease),
            _ => None,
        }
    }

    /// Runs what waits for a flight, woken in the herd's order.
    fn on_leash(&mut self, call: impl Future<Output = ()> + Send + 'static) {
        self.last_request += 1;
        Leash::new(self.last_request, &self.world.ticks, &self.world.herd).run(call);
    }
}
