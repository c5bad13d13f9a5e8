//! What must hold of what a caller hears: it is the end of a flight that overlapped with its request.

use crate::checks::{Checks, Launch, Request};
use crate::model::Millis;

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

impl Checks {
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
    pub(crate) fn flight_ended(&self, key: &'static str, ended: u64, token: Option<u64>) -> u64 {
        let lease = token.and_then(|token| self.leases.get(&(key, token)));
        match lease {
            Some(lease) => lease
                .released
                .map_or(u64::MAX, |released| released.max(ended)),
            None => ended,
        }
    }

    /// The launch that a caller hears of is one of its flight's, and the lock was free before it was woken.
    pub(crate) fn ended_before(
        &mut self,
        number: u64,
        request: &Request,
        id: u64,
        heard: &Heard,
        rung: u64,
    ) {
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
