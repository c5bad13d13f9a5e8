//! What is noted of an operator's calls, and of the world's.

use crate::checks::{Checks, Place};

impl Checks {
    /// Its flight was ended while its caller had the permit.
    pub(crate) fn is_aborted(&self, id: u64) -> bool {
        self.launches[usize::try_from(id).unwrap()].must_fail
    }

    /// A look found no backend, which may end a success's wait for stability.
    pub(crate) fn found_none(&mut self, place: Place) {
        self.note(format_args!("nothing is found at {place:?}"));
        if self.config.rules.stable_after.is_some() {
            self.budget(place).perhaps_ended(None);
        }
    }

    pub(crate) fn stopped(&mut self, place: Place, launch: u64, is_told: bool) {
        self.note(format_args!(
            "backend {launch} of {place:?} stops, told: {is_told}"
        ));
    }

    /// The end of a backend is being reported: that can be seen at any time from now on.
    pub(crate) fn reports_end(&mut self, place: Place, token: u64) {
        self.note(format_args!(
            "the end of {token} is being reported at {place:?}"
        ));
        self.reported.push((place, token, None));
    }

    /// The end of a backend was reported.
    pub(crate) fn ended(&mut self, place: Place, token: u64) {
        self.note(format_args!("the end of {token} at {place:?} is reported"));
        if self.config.rules.stable_after.is_some() {
            self.budget(place).perhaps_ended(Some(token));
        }
        let tick = self.tick;
        let mut reported = self.reported.iter_mut();
        if let Some(reported) = reported.find(|reported| reported.1 == token) {
            reported.2 = Some(tick);
        }
    }

    pub(crate) fn resets_at(&mut self, place: Place) {
        self.note(format_args!("reset at {place:?}"));
        let until = self.now + self.config.lock + 10_000;
        self.resets.insert(place, until);
        self.storm(place).is_clear = false;
    }

    /// A gate that counts by itself has done so now.
    pub(crate) fn is_reset(&mut self, place: Place) {
        if !self.config.has_ledger {
            self.budget(place).reset(true);
            for (of, lease) in &mut self.leases {
                lease.is_reset |= (lease.gate, of.0) == place && lease.released.is_none();
            }
        }
    }

    /// All handles of the file are of one that nobody else can open.
    pub(crate) fn deleted(&mut self, key: &'static str) {
        self.note(format_args!("the lock file of {key} is deleted"));
        let tick = self.tick;
        self.unknown.push(key);
        self.once_lost.push(key);
        for ((of, _), lease) in &mut self.leases {
            if *of == key && lease.released.is_none() {
                lease.lost = Some(tick);
            }
        }
    }

    /// How many requests, flights, resets and locks may still be in progress.
    pub(crate) fn left(&self) -> usize {
        let resets = self.resets.values().filter(|&&until| until >= self.now);
        let held = self.leases.values().filter(|lease| lease.is_held());
        self.requests.len() + self.flights.len() + resets.count() + held.count()
    }

    /// A gate shows how much of a budget is used, while nothing is in progress.
    pub(crate) fn uses(&mut self, place: Place, used: u32) {
        self.note(format_args!("{used} attempts are used at {place:?}"));
        self.note_reports(place.1);
        let is_known = !self.unknown.contains(&place.1);
        let before = self.budget(place).to_string();
        if !self.budget(place).seen_used(used) && is_known {
            self.fail(format_args!(
                "{used} attempts are used at {place:?}, but: {before}"
            ));
        }
    }

    pub(crate) fn closes(&mut self, gate: usize) {
        self.note(format_args!("gate {gate} closes"));
        self.closed.push(gate);
        for key in ["a", "b"] {
            self.aborts((gate, key), false);
        }
    }

    pub(crate) fn is_closed(&mut self, gate: usize, is_idle: bool) {
        self.note(format_args!("gate {gate} is closed"));
        if !is_idle {
            self.fail(format_args!(
                "gate {gate} is closed with a flight in progress"
            ));
        }
    }
}
