//! What must hold at every step: requests, flights and launches. `budgets.rs` has leases, budgets and refusals.
//!
//! The first promise that is broken is kept; the driver stops there.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use spawn_gate::Stage;

use crate::budgets::{Lease, Promise, Storm};
use crate::leash::Leash;
use crate::model::{Budget, Millis, Settled};
use crate::world::Config;

/// A key of one gate.
pub(crate) type Place = (usize, &'static str);

/// What a caller heard.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    Led(u64),
    Joined(u64),
    Found(u64),
    Refused {
        retry_after: Millis,
        first: bool,
    },
    /// The launch with this number failed.
    Failed(u64),
    /// The launch with this token failed.
    FailedElsewhere(u64),
    /// It had the permit, and has settled it.
    Settled,
    Closed,
    Other(#[expect(dead_code, reason = "for the log")] String),
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) place: Place,
    leash: Leash,
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
    by_launcher: bool,
}

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) config: Config,
    pub(crate) now: Millis,
    pub(crate) tick: u64,
    pub(crate) broken: Option<String>,
    pub(crate) log: VecDeque<String>,
    /// Of the whole log, for a comparison of two runs.
    pub(crate) digest: u64,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) launches: Vec<Launch>,
    /// The flights that are known to be in progress, by their leader.
    pub(crate) flights: BTreeMap<Place, u64>,
    /// The backends that flights ended with, and when; those that hold a lock end once they have released it.
    told: Vec<(Place, u64, u64, Option<u64>)>,
    interested: BTreeMap<Place, Millis>,
    pub(crate) resets: BTreeMap<Place, Millis>,
    lonely: BTreeMap<Place, Millis>,
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
            digest: 0,
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
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
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

    fn gone(&mut self, number: u64) {
        if let Some(request) = self.requests.get(&number) {
            self.interested.insert(request.place, self.now);
        }
    }

    /// A launcher is asked for the first time: its request leads.
    pub(crate) fn looks(&mut self, number: u64, place: Place) {
        self.note(format_args!("request {number} looks"));
        self.leads(number, place);
    }

    /// One flight at a time in a gate, and none by a caller that has a failure to hear.
    fn leads(&mut self, number: u64, place: Place) {
        if let Some(launch) = self
            .requests
            .get(&number)
            .and_then(|request| request.is_to_hear)
        {
            self.fail(format_args!(
                "request {number} leads instead of hearing of launch {launch}"
            ));
        }
        match self.flights.insert(place, number) {
            Some(other) if other != number => {
                self.fail(format_args!(
                    "requests {other} and {number} both lead at {place:?}"
                ));
            }
            _ => {}
        }
    }

    pub(crate) fn told(&mut self, place: Place, backend: u64) {
        self.note(format_args!("backend {backend} is told at {place:?}"));
        let held = self.leases.iter().rev();
        let held = held
            .filter(|(_, lease)| lease.gate == place.0 && lease.released.is_none())
            .find(|(of, _)| of.0 == place.1);
        let token = held.map(|(of, _)| of.1);
        self.told.push((place, backend, self.tick, token));
    }

    /// The leader's flight is over, or about to be: from here on it does not count as in progress.
    pub(crate) fn flight_over(&mut self, number: u64, place: Place) {
        if self.flights.get(&place) == Some(&number) {
            self.note(format_args!("the flight of request {number} is over"));
            self.flights.remove(&place);
            self.interested.insert(place, self.now);
        }
    }

    /// A launch begins; `running` is a backend that its look should have found.
    pub(crate) fn launch_began(
        &mut self,
        number: u64,
        place: Place,
        token: u64,
        (attempt, remaining): (u32, u32),
        running: Option<u64>,
        by_launcher: bool,
    ) -> u64 {
        let id = self.launches.len() as u64;
        self.note(format_args!(
            "launch {id} by request {number} at {place:?}: token {token}, attempt {attempt}"
        ));
        let is_aborted = self
            .requests
            .get(&number)
            .is_some_and(|request| request.is_aborted);
        if !is_aborted {
            self.leads(number, place);
        }
        let key = place.1;
        let at_once = self.launches.iter().position(|other| {
            let lease = self.leases.get(&(other.place.1, other.token));
            let is_lost = lease.is_none_or(|lease| lease.lost.is_some());
            other.place.1 == key && other.ended.is_none() && !is_lost
        });
        let is_lost = self
            .leases
            .get(&(key, token))
            .is_some_and(|lease| lease.lost.is_some());
        if let (Some(other), false) = (at_once, is_lost) {
            self.fail(format_args!("launches {other} and {id} at once"));
        }
        if let (Some(backend), true) = (running, by_launcher && !self.once_lost.contains(&key)) {
            self.fail(format_args!("launch {id} beside backend {backend}"));
        }
        self.launches.push(Launch {
            place,
            request: number,
            token,
            ended: None,
            is_aborted,
            must_fail: false,
            by_launcher,
        });
        self.charged(place, token, attempt, remaining, by_launcher);
        id
    }

    pub(crate) fn launch_over(&mut self, id: u64, how: Settled) {
        self.note(format_args!("launch {id} is over: {how:?}"));
        let tick = self.tick;
        let launch = &mut self.launches[usize::try_from(id).unwrap()];
        launch.ended = Some(tick);
        let (place, token, number) = (launch.place, launch.token, launch.request);
        let is_aborted = launch.is_aborted || self.closed.contains(&place.0);
        if let Some(lease) = self.leases.get_mut(&(place.1, token)) {
            lease.how = Some((how, is_aborted));
        }
        if how == Settled::Nothing || is_aborted {
            return;
        }
        for (&other, request) in &mut self.requests {
            let follows = !request.is_late && !request.leash.is_woken();
            if request.place == place && other != number && follows {
                request.is_to_hear = Some(id);
            }
        }
    }

    /// An operator ends the flight of a place: a caller's permit is no longer that of the flight.
    pub(crate) fn aborts(&mut self, place: Place, is_certain: bool) {
        self.note(format_args!("abort at {place:?}"));
        for launch in &mut self.launches {
            if launch.place == place && launch.ended.is_none() {
                launch.is_aborted = true;
                launch.must_fail |= is_certain && !launch.by_launcher;
                if !launch.by_launcher && self.flights.get(&place) == Some(&launch.request) {
                    self.flights.remove(&place);
                }
            }
        }
        for (of, lease) in &mut self.leases {
            if (lease.gate, of.0) == place && lease.released.is_none() {
                // It may be settled already, but for its flight's end.
                lease.how = lease.how.map(|(how, _)| (how, true));
            }
        }
        self.abort_uncollected(place);
        let here = self.requests.values_mut();
        for request in here.filter(|request| request.place == place) {
            request.is_aborted = true;
            // Who follows hears of the end of another flight.
            request.is_to_hear = None;
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

    /// What a gate shows of its flights.
    pub(crate) fn shown(&mut self, gate: usize, shown: &[(&'static str, Stage, Millis)]) {
        let known: Vec<Place> = self
            .flights
            .keys()
            .filter(|at| at.0 == gate)
            .copied()
            .collect();
        for place in known {
            if !shown.iter().any(|flight| flight.0 == place.1) {
                self.fail(format_args!("the flight at {place:?} is forgotten"));
            }
        }
        let slack = if self.config.slow > 0 || self.config.is_real {
            17_000
        } else {
            1_100
        };
        self.lonely
            .retain(|at, _| at.0 != gate || shown.iter().any(|flight| flight.0 == at.1));
        for &(key, stage, age) in shown {
            let place = (gate, key);
            let mut asking = self
                .requests
                .values()
                .filter(|request| request.place == place);
            let may_lead = asking.any(|request| {
                let is_kept = request.is_frozen && stage == Stage::Launch;
                !request.is_launch && !is_kept
            });
            // A caller may be held up while it settles its permit.
            let is_collected = self.leases.iter().any(|(of, lease)| {
                (lease.gate, of.0) == place && lease.is_held() && lease.is_launched
            });
            if may_lead || is_collected || self.flights.contains_key(&place) {
                self.lonely.remove(&place);
                continue;
            }
            let began = self.now.saturating_sub(age);
            let since = self.lonely.entry(place).or_insert(self.now);
            *since = (*since).max(began);
            if self.now - *since > 2_000 + slack {
                self.fail(format_args!("nobody comes for the flight at {place:?}"));
            }
        }
    }

    /// A caller hears, woken by what happened at `rung`.
    pub(crate) fn heard(&mut self, number: u64, heard: &Heard, rung: u64) {
        self.note(format_args!("request {number} hears {heard:?}"));
        self.gone(number);
        let Some(request) = self.requests.remove(&number) else {
            return;
        };
        let place = request.place;
        let flight = match heard {
            Heard::Joined(id) | Heard::Led(id) | Heard::Found(id) => {
                let mut told = self.told.iter().rev();
                let overlaps = told.any(|&(at, backend, told, token)| {
                    let ended = self.flight_ended(place.1, told, token);
                    at == place && backend == *id && ended >= request.began
                });
                if !overlaps {
                    self.fail(format_args!(
                        "no flight of request {number} ended with {id}"
                    ));
                }
                Some(*id)
            }
            Heard::Failed(id) => Some(*id),
            _ => None,
        };
        if let Some(id) = flight {
            self.ended_before(number, &request, id, heard, rung);
        }
        if let Heard::FailedElsewhere(token) = heard {
            let of_token = |launch: &&Launch| launch.place.1 == place.1 && launch.token == *token;
            let ended = self.launches.iter().find(of_token).map(|launch| {
                let ended = launch.ended.unwrap_or(u64::MAX);
                self.flight_ended(place.1, ended, Some(*token))
            });
            if ended.is_none_or(|ended| ended < request.since) {
                self.fail(format_args!(
                    "request {number} hears of the elder launch {token}"
                ));
            }
        }
        if !matches!(heard, Heard::Closed) && self.closed.contains(&place.0) {
            self.storm(place).is_clear = false;
        }
        self.refused(place, &request, heard);
    }

    /// When a flight ended whose work ended at a time.
    fn flight_ended(&self, key: &'static str, ended: u64, token: Option<u64>) -> u64 {
        let lease = token.and_then(|token| self.leases.get(&(key, token)));
        match lease {
            Some(lease) => lease
                .released
                .map_or(u64::MAX, |released| released.max(ended)),
            None => ended,
        }
    }

    /// The launch that a caller hears of is one of its flight's, and the lock was free before it was woken.
    fn ended_before(&mut self, number: u64, request: &Request, id: u64, heard: &Heard, rung: u64) {
        let launch = &self.launches[usize::try_from(id).unwrap()];
        if launch.place != request.place || launch.is_aborted {
            return;
        }
        let is_failed = matches!(heard, Heard::Failed(_));
        let (token, ended) = (launch.token, launch.ended);
        let ended = ended.map(|ended| self.flight_ended(request.place.1, ended, Some(token)));
        if is_failed && ended.is_none_or(|ended| ended < request.began) {
            self.fail(format_args!(
                "request {number} hears of the elder launch {id}"
            ));
            return;
        }
        let lease = &self.leases[&(request.place.1, token)];
        // A backend that was launched earlier may have been found by another flight.
        let is_of_flight = is_failed || ended.is_some_and(|ended| ended >= request.began);
        let is_found = matches!(heard, Heard::Found(_));
        if is_of_flight && !is_found && lease.released.is_none_or(|released| released >= rung) {
            self.fail(format_args!(
                "request {number} hears of {id} before the lock is free"
            ));
        } else if let (Heard::Led(_), Some(lost)) = (heard, lease.lost) {
            if self.launches[usize::try_from(id).unwrap()]
                .ended
                .is_some_and(|ended| lost < ended)
            {
                self.fail(format_args!(
                    "launch {id} succeeds though its lock was lost"
                ));
            }
        }
    }
}

/// The longest that the calls of a lock may hold up a leader: a try, two looks, and two calls each of its lease and at the end.
const LONGEST_CALLS: Millis = 25_000;
