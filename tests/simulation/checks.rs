//! What must hold at every step: requests, flights and launches. `budgets.rs` has leases, budgets and refusals.
//!
//! The first promise that is broken is kept; the driver stops there.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::budgets::{Promise, Storm};
use crate::config::Config;
use crate::leases::Lease;
use crate::leash::Leash;
use crate::model::{Budget, Millis};

/// A key of one gate.
pub(crate) type Place = (usize, &'static str);

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) place: Place,
    pub(crate) leash: Leash,
    pub(crate) is_launch: bool,
    pub(crate) began: u64,
    /// Its deadlines count from here.
    pub(crate) began_at: Millis,
    pub(crate) asked_at: Millis,
    /// Its place's oldest request or flight when it began: it may follow that one.
    pub(crate) since: u64,
    /// The change of the budget that was the newest when it began.
    pub(crate) charges: u64,
    pub(crate) is_frozen: bool,
    /// It was not polled in time once.
    pub(crate) is_late: bool,
    /// The flight that it follows has failed.
    pub(crate) is_to_hear: Option<u64>,
    /// If it has a permit, that may be one of a flight that an operator has ended.
    pub(crate) is_aborted: bool,
}

#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) place: Place,
    pub(crate) request: u64,
    pub(crate) token: u64,
    pub(crate) ended: Option<u64>,
    /// Its flight may have been ended by an operator, and was for certain.
    pub(crate) is_aborted: bool,
    pub(crate) must_fail: bool,
    pub(crate) by_launcher: bool,
}

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) config: Config,
    pub(crate) now: Millis,
    pub(crate) tick: u64,
    pub(crate) broken: Option<String>,
    pub(crate) log: VecDeque<String>,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) launches: Vec<Launch>,
    /// The flights that are known to be in progress, by their leader.
    pub(crate) flights: BTreeMap<Place, u64>,
    /// The backends that flights ended with, and when; those that hold a lock end once they have released it.
    pub(crate) told: Vec<(Place, u64, u64, Option<u64>)>,
    pub(crate) interested: BTreeMap<Place, Millis>,
    pub(crate) resets: BTreeMap<Place, Millis>,
    pub(crate) lonely: BTreeMap<Place, Millis>,
    pub(crate) closed: Vec<usize>,
    /// The ends of backends by token, and when their report was done. Who had decided by then did not know of it.
    pub(crate) reported: Vec<(Place, u64, Option<u64>)>,
    pub(crate) leases: BTreeMap<(&'static str, u64), Lease>,
    pub(crate) budgets: BTreeMap<Place, Budget>,
    pub(crate) storms: BTreeMap<Place, Storm>,
    pub(crate) promises: Vec<(Place, Promise)>,
    /// When a gate last used an attempt, or may have.
    pub(crate) charged: BTreeMap<Place, Millis>,
    /// Keys whose lock file was deleted: their count is unknown from then on.
    pub(crate) unknown: Vec<&'static str>,
    /// Keys whose lock was lost once: a backend may run beside another since.
    pub(crate) once_lost: Vec<&'static str>,
}

/// Also lets the reader of a failure see what happened before it.
const LOGGED: usize = 70;

impl Checks {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            now: 0,
            tick: 0,
            broken: None,
            log: VecDeque::new(),
            requests: BTreeMap::new(),
            launches: Vec::new(),
            flights: BTreeMap::new(),
            told: Vec::new(),
            interested: BTreeMap::new(),
            resets: BTreeMap::new(),
            lonely: BTreeMap::new(),
            closed: Vec::new(),
            reported: Vec::new(),
            leases: BTreeMap::new(),
            budgets: BTreeMap::new(),
            storms: BTreeMap::new(),
            promises: Vec::new(),
            charged: BTreeMap::new(),
            unknown: Vec::new(),
            once_lost: Vec::new(),
        }
    }

    /// All that is due at a time.
    pub(crate) fn at(&mut self, now: Millis, tick: u64) {
        self.tick = tick;
        if now == self.now {
            return;
        }
        self.keep_promises(now);
        self.now = now;
        for (number, request) in &self.requests {
            let most = match request.is_launch {
                true => self.config.follow,
                false => self.config.follow + self.config.lock + LONGEST_CALLS,
            };
            if !request.is_frozen && now > request.began_at + most + 5 {
                let broken = format!("request {number} outlives its deadline: {request:?}");
                self.broken.get_or_insert(broken);
            }
        }
        self.budgets
            .values_mut()
            .for_each(|budget| budget.advance(now));
    }

    pub(crate) fn note(&mut self, event: fmt::Arguments<'_>) {
        let line = format!("{:>7} ms #{} {event}", self.now, self.tick);
        self.log.push_back(line);
        // A replay shows all.
        if self.log.len() > LOGGED && std::env::var_os("SIMULATION").is_none() {
            self.log.pop_front();
        }
    }

    pub(crate) fn fail(&mut self, broken: fmt::Arguments<'_>) {
        if self.broken.is_none() {
            self.note(format_args!("BROKEN: {broken}"));
            self.broken = Some(broken.to_string());
        }
    }

    pub(crate) fn began(&mut self, number: u64, place: Place, leash: Leash, is_launch: bool) {
        self.note(format_args!(
            "request {number} began at {place:?}, launch: {is_launch}"
        ));
        let flight = self.flights.get(&place).copied();
        let here = self
            .requests
            .iter()
            .filter(|(_, other)| other.place == place);
        let oldest = here.map(|(_, other)| other.since).min();
        let since = match flight {
            // Its leader's caller may be gone.
            Some(_) => 0,
            None => oldest.unwrap_or(self.tick),
        };
        let charges = self.budget(place).charges;
        let request = Request {
            place,
            leash,
            is_launch,
            began: self.tick,
            began_at: self.now,
            asked_at: self.now,
            since,
            charges,
            is_frozen: false,
            is_late: false,
            is_to_hear: None,
            is_aborted: false,
        };
        self.requests.insert(number, request);
    }

    pub(crate) fn frozen(&mut self, number: u64, is_frozen: bool) {
        self.note(format_args!("request {number} frozen: {is_frozen}"));
        let now = self.now;
        if let Some(request) = self.requests.get_mut(&number) {
            request.is_frozen = is_frozen;
            request.is_late = true;
            // Its deadlines may have passed meanwhile, and what it did then it has to do again.
            request.began_at = now;
        }
    }

    pub(crate) fn dropped(&mut self, number: u64) {
        self.note(format_args!("request {number} dropped"));
        self.gone(number);
        let place = self.requests.remove(&number).map(|request| request.place);
        if let Some(place) = place {
            self.storm(place).is_clear = false;
            self.storm(place).is_told = true;
        }
    }

    pub(crate) fn gone(&mut self, number: u64) {
        if let Some(request) = self.requests.get(&number) {
            self.interested.insert(request.place, self.now);
        }
    }

    pub(crate) fn tries(&mut self, key: &'static str, gate: usize) {
        let place = (gate, key);
        // At the end, the driver asks by itself.
        let is_asked = key == "another"
            || self.requests.values().any(|request| request.place == place)
            || self.flights.contains_key(&place)
            || self
                .resets
                .get(&place)
                .is_some_and(|&until| until >= self.now);
        let last = self.interested.get(&place).copied().unwrap_or(0);
        // Time only passes once nobody is ready: whoever was dropped before has been told so.
        if !is_asked && last < self.now && self.config.slow == 0 {
            self.fail(format_args!(
                "nobody asks at {place:?}, but its lock is tried"
            ));
        }
    }
}

/// The longest that the calls of a lock may hold up a leader: a try, two looks, and two calls each of its lease and at the end.
const LONGEST_CALLS: Millis = 25_000;
