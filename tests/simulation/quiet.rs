//! The end of a seed: nothing goes wrong any more, and everything comes to its end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;

use crate::driver::Driver;
use crate::model::Millis;

impl Driver {
    pub(crate) fn look_at_gates(&self) {
        for (number, gate) in self.gates.iter().enumerate() {
            let shown: Vec<_> = ready(gate.snapshots())
                .into_iter()
                .filter_map(|shown| {
                    let flight = shown.flight?;
                    let age = Millis::try_from(flight.age.as_millis()).unwrap();
                    Some((shown.budget.key.name, flight.stage, age))
                })
                .collect();
            self.world.see(|checks| checks.shown(number, &shown));
        }
    }

    /// Nothing goes wrong any more, and nobody asks: everything comes to an end, and is forgotten.
    pub(crate) async fn quiet(&mut self) {
        self.world.calm_down();
        self.wait_in_vain().await;
        self.stranger = None;
        self.leashes.iter().for_each(|(number, leash)| {
            leash.thaw();
            self.world.see(|checks| checks.frozen(*number, false));
        });
        let mut left = 1;
        for _ in 0..400 {
            sleep(Duration::from_millis(700)).await;
            self.look_at_gates();
            left = self.world.see(|checks| checks.left());
            if self.is_broken() || left == 0 {
                break;
            }
        }
        self.expect(left == 0, "a request, a flight or a lock is left");
        self.compare().await;
        sleep(Duration::from_secs(100)).await;
        for key in &self.keys[..self.world.config.keys] {
            let is_free = self.take(key).await.is_some();
            self.expect(is_free, "a lock is held");
        }
        let other = self.keys[2].clone();
        // One that is closed is never asked again, and keeps what it knows until it is dropped.
        let closed = self.world.see(|checks| checks.closed.clone());
        let mut numbers = 0..;
        self.gates
            .retain(|_| !closed.contains(&numbers.next().unwrap()));
        for gate in &self.gates {
            let shown = ready(gate.snapshots());
            self.expect(shown.is_empty(), "a key is in use");
            // A request sweeps up what is idle.
            drop(gate.acquire(other.clone()).await);
        }
        sleep(Duration::from_secs(61)).await;
        for gate in &self.gates {
            drop(gate.acquire(other.clone()).await);
        }
        for key in &self.keys[..self.world.config.keys] {
            let copies = Arc::strong_count(&key.copies);
            self.expect(copies == 1, "a key is not forgotten");
        }
    }

    /// Requests that wait for a stranger's lock are dropped, or freeze as they begin: no flight may wait for either.
    pub(crate) async fn wait_in_vain(&mut self) {
        let key = self.any_key();
        self.stranger = None;
        let is_held = self.chance.percent(50);
        if is_held {
            self.stranger = self.take(&key).await;
        }
        for gate in 0..self.gates.len() {
            self.ask(gate, &key);
        }
        let asked = self.leashes.len() - self.gates.len();
        if is_held {
            sleep(Duration::from_millis(20)).await;
            for (number, leash) in self.leashes.split_off(asked) {
                self.world.see(|checks| checks.dropped(number));
                leash.cut();
            }
        } else {
            // Polled once, so that a permit may come that nobody collects.
            yield_now().await;
            for (number, leash) in &self.leashes[asked..] {
                leash.freeze();
                self.world.see(|checks| checks.frozen(*number, true));
            }
        }
        for _ in 0..30 {
            sleep(Duration::from_millis(700)).await;
            self.look_at_gates();
        }
    }

    /// What the gates show as used is possible.
    pub(crate) async fn compare(&self) {
        for (number, gate) in self.gates.iter().enumerate() {
            for key in &self.keys[..self.world.config.keys] {
                let used = gate.snapshot(key.clone()).await.budget.attempts_used;
                self.world
                    .see(|checks| checks.uses((number, key.name), used));
            }
        }
    }

    pub(crate) fn expect(&self, holds: bool, broken: &str) {
        if !holds {
            self.world
                .see(|checks| checks.fail(format_args!("{broken}")));
        }
    }
}

/// What a future gives that has nothing to wait for.
pub(crate) fn ready<V>(future: impl Future<Output = V>) -> V {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // Tokio lets a task do only so much at once.
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
