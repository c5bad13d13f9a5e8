//! What must hold of flights and launches: one at a time, and none that nobody comes for.

use spawn_gate::error::Stage;

use crate::checks::{Checks, Launch, Place};
use crate::model::{Millis, Settled};

impl Checks {
    /// A launcher is asked for the first time: its request leads.
    pub(crate) fn looks(&mut self, number: u64, place: Place) {
        self.note(format_args!("request {number} looks"));
        self.leads(number, place);
    }

    /// One flight at a time in a gate, and none by a caller that has a failure to hear.
    pub(crate) fn leads(&mut self, number: u64, place: Place) {
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
}
