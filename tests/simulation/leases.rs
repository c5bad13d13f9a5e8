//! What is known of the locks that gates have taken, and so of what they have charged.

use spawn_gate::admin::Ledger;

use crate::checks::{Checks, Place};
use crate::model::{Millis, Settled};

/// A lock that a gate has taken.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    pub(crate) gate: usize,
    /// When its charge may have been made.
    pub(crate) times: Vec<Millis>,
    pub(crate) is_taken: bool,
    /// When it was decided on.
    pub(crate) decided: u64,
    /// The newest write, and the newest check that found it held.
    pub(crate) written: u64,
    pub(crate) verified: Option<u64>,
    pub(crate) is_launched: bool,
    pub(crate) how: Option<(Settled, bool)>,
    pub(crate) settling: Option<Millis>,
    pub(crate) is_settled: bool,
    /// The budget was reset while it was held.
    pub(crate) is_reset: bool,
    /// What came of it is in the budget.
    pub(crate) is_applied: bool,
    pub(crate) lost: Option<u64>,
    pub(crate) released: Option<u64>,
    pub(crate) released_at: Option<Millis>,
}

impl Lease {
    /// A gate has it, and has not let it go.
    pub(crate) fn is_held(&self) -> bool {
        self.is_taken && self.released.is_none()
    }
}

impl Checks {
    pub(crate) fn lease(&mut self, key: &'static str, token: u64) -> &mut Lease {
        self.leases.entry((key, token)).or_default()
    }

    /// A ledger was decided on, with the lock held. A record without a holder is a reset's, if nothing is charged there.
    pub(crate) fn applied(
        &mut self,
        key: &'static str,
        gate: usize,
        token: u64,
        written: Option<&Ledger>,
    ) {
        let (now, tick) = (self.now, self.tick);
        self.note(format_args!(
            "gate {gate} decides on {key} with token {token}"
        ));
        self.settle_elders(key, token);
        let lease = self.lease(key, token);
        lease.gate = gate;
        (lease.decided, lease.written) = (tick, tick);
        if let Some(ledger) = written {
            if ledger.holder().is_some() {
                lease.times.push(now);
            } else if ledger.attempts_charged() == 0 {
                // The write can fail.
                self.budget((gate, key)).reset(false);
            }
        }
    }

    /// A lock file is free as soon as a thread has settled it, which its gate may learn later than the next holder.
    fn settle_elders(&mut self, key: &'static str, token: u64) {
        let elders = self.leases.iter().filter(|((of, other), lease)| {
            let is_settling = lease.settling.is_some() && lease.lost.is_none();
            *of == key && *other != token && is_settling && lease.is_held()
        });
        let elders: Vec<u64> = elders.map(|((_, other), _)| *other).collect();
        for elder in elders {
            self.lease(key, elder).is_settled = true;
            self.apply(key, elder);
        }
    }

    pub(crate) fn undelivered(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("the try with token {token} is given up"));
        self.perhaps_charged(key, token);
    }

    pub(crate) fn taken(&mut self, key: &'static str, gate: usize, token: u64) {
        self.note(format_args!("gate {gate} takes {key} with token {token}"));
        let (now, tick, has_ledger) = (self.now, self.tick, self.config.has_ledger);
        let lease = self.lease(key, token);
        lease.gate = gate;
        lease.is_taken = true;
        if !has_ledger {
            lease.times.push(now);
            (lease.decided, lease.written) = (tick, tick);
        }
    }

    pub(crate) fn writes(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("a write with token {token}"));
        let (now, tick) = (self.now, self.tick);
        let lease = self.lease(key, token);
        lease.times.push(now);
        lease.written = tick;
    }

    pub(crate) fn verifies(&mut self, key: &'static str, token: u64) {
        let (now, has_ledger) = (self.now, self.config.has_ledger);
        if !has_ledger {
            // Without a record, the charge is made right before that.
            self.lease(key, token).times.push(now);
        }
    }

    pub(crate) fn verified(&mut self, key: &'static str, token: u64, is_held: bool) {
        self.note(format_args!("token {token} is verified: {is_held}"));
        let tick = self.tick;
        self.lease(key, token).verified = is_held.then_some(tick);
    }

    pub(crate) fn is_lost(&self, key: &'static str, token: u64) -> bool {
        let lease = self.leases.get(&(key, token));
        lease.is_some_and(|lease| lease.lost.is_some())
    }

    pub(crate) fn settles(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("token {token} settles"));
        let now = self.now;
        self.lease(key, token).settling = Some(now);
    }

    pub(crate) fn settled(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("token {token} is settled"));
        let has_launched_lost = self.is_lost(key, token);
        self.lease(key, token).is_settled = true;
        if has_launched_lost && !self.config.is_real {
            self.fail(format_args!("token {token} settles though it was lost"));
        }
    }

    /// The world takes a lock away. What its holder wrote so far stands.
    pub(crate) fn lost(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("token {token} of {key} is lost"));
        let tick = self.tick;
        self.once_lost.push(key);
        self.lease(key, token).lost = Some(tick);
        // Without a ledger, its gate still settles what it counts by itself.
        if self.config.has_ledger {
            self.apply(key, token);
        }
    }

    pub(crate) fn released(&mut self, key: &'static str, token: u64) {
        self.note(format_args!("token {token} of {key} is released"));
        let (now, tick) = (self.now, self.tick);
        let lease = self.lease(key, token);
        (lease.released, lease.released_at) = (Some(tick), Some(now));
        if !self.is_lost(key, token) || !self.config.has_ledger {
            self.apply(key, token);
        }
    }

    /// Settles a launch in the ways that are possible.
    pub(crate) fn apply(&mut self, key: &'static str, token: u64) {
        let (now, has_ledger) = (self.now, self.config.has_ledger);
        let lease = self.lease(key, token);
        if std::mem::replace(&mut lease.is_applied, true) {
            return;
        }
        let place = (lease.gate, key);
        let is_certain = lease.is_settled && lease.lost.is_none();
        if !lease.is_launched {
            if has_ledger && !is_certain {
                self.perhaps_charged(key, token);
            }
            return;
        }
        let (how, is_aborted) = lease.how.unwrap_or((Settled::Failed, false));
        let is_begun = lease.settling.is_some();
        let mut times = vec![lease.settling.unwrap_or(now), now];
        times.dedup();
        let ways = match how {
            how if is_certain && !is_aborted => vec![how],
            how if is_begun => vec![how, Settled::Failed],
            _ => vec![Settled::Failed],
        };
        self.budget(place).settled(token, &ways, &times);
    }

    /// Without a ledger, a permit that its caller has not collected stays charged if its flight is aborted. See `found.rs`.
    pub(crate) fn abort_uncollected(&mut self, place: Place) {
        if self.config.has_ledger {
            return;
        }
        let uncollected = self.leases.iter().find(|(of, lease)| {
            let is_held = lease.gate == place.0 && lease.released.is_none();
            of.0 == place.1 && is_held && !lease.is_launched && lease.verified.is_some()
        });
        if let Some((&(key, token), _)) = uncollected {
            self.perhaps_charged(key, token);
        }
    }

    pub(crate) fn perhaps_charged(&mut self, key: &'static str, token: u64) {
        let lease = self.lease(key, token);
        let (gate, times) = (lease.gate, lease.times.clone());
        self.charged.insert((gate, key), self.now);
        self.budget((gate, key)).perhaps_charged(token, &times);
    }
}
