//! What must hold of leases, budgets and refusals.

use crate::checks::{Checks, Place, Request};
use crate::heard::Heard;
use crate::model::{Budget, Millis};

/// The refusals of a gate since an attempt was last free.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    pub(crate) last_first: Option<Millis>,
    /// Nothing but refusals was heard since. What else is heard may begin a new storm where a ledger counts: the mark is not
    /// in the record.
    pub(crate) is_clear: bool,
    /// The first one may have been told to a caller that did not hear it.
    pub(crate) is_told: bool,
}

/// After that time an attempt is free, if nobody else uses it.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) due: Millis,
    pub(crate) charges: u64,
}

impl Checks {
    /// The budget that counts for a place: that of its key, if there is a ledger.
    pub(crate) fn budget(&mut self, place: Place) -> &mut Budget {
        let scope = match self.config.has_ledger {
            true => (0, place.1),
            false => place,
        };
        let (rules, now) = (self.config.rules, self.now);
        let budget = self.budgets.entry(scope);
        budget.or_insert_with(|| {
            let mut budget = Budget::new(rules);
            budget.advance(now);
            budget
        })
    }

    pub(crate) fn storm(&mut self, place: Place) -> &mut Storm {
        self.storms.entry(place).or_default()
    }

    pub(crate) fn charged(
        &mut self,
        place: Place,
        token: u64,
        attempt: u32,
        remaining: u32,
        by_launcher: bool,
    ) {
        let key = place.1;
        let newest = self
            .leases
            .iter()
            .rev()
            .find(|(of, lease)| of.0 == key && lease.is_launched);
        if let Some((&(_, newest), false)) = newest.map(|(of, _)| (of, self.is_lost(key, token))) {
            if newest >= token {
                self.fail(format_args!("token {token} after {newest}"));
            }
        }
        let lease = self.lease(key, token);
        lease.is_launched = true;
        let is_verified = lease
            .verified
            .is_some_and(|verified| verified > lease.written);
        let (is_reset, decided) = (lease.is_reset, lease.decided);
        let (is_released, is_lost) = (lease.released.is_some(), lease.lost.is_some());
        let mut times = lease.times.clone();
        times.dedup();
        if !is_verified || is_released || (by_launcher && is_lost) {
            self.fail(format_args!(
                "token {token} launches without a lock that was verified"
            ));
        }
        let max = self.config.rules.max;
        // What was charged when a lock was lost is known as far as it can be.
        if self.unknown.contains(&key) || (is_lost && self.config.has_ledger) {
            return;
        }
        self.charged.insert(place, self.now);
        self.note_reports(key);
        let budget = self.budget(place);
        if is_reset {
            budget.launched_or_reset(token, &times, attempt);
            return;
        }
        let before = budget.to_string();
        if !budget.launched(token, &times, attempt, by_launcher) || remaining != max - attempt {
            let rules = self.config.rules;
            self.fail(format_args!(
                "attempt {attempt}, {remaining} left, cannot be: {before}, charged at {times:?}, {rules:?}"
            ));
        }
        self.note_reports(key);
        self.reported
            .retain(|(at, _, done)| at.1 != key || done.is_none_or(|done| done > decided));
    }

    pub(crate) fn note_reports(&mut self, key: &'static str) {
        for (at, ended, _) in self.reported.clone() {
            if at.1 == key && self.config.rules.stable_after.is_some() {
                self.budget(at).perhaps_ended(Some(ended));
            }
        }
    }

    /// What a caller hears of the budget.
    pub(crate) fn refused(&mut self, place: Place, request: &Request, heard: &Heard) {
        let &Heard::Refused { retry_after, first } = heard else {
            let storm = self.storm(place);
            storm.is_clear = false;
            storm.is_told |= request.is_late;
            return;
        };
        if self.unknown.contains(&place.1) {
            return;
        }
        let (now, window) = (self.now, self.config.rules.window);
        if retry_after > window {
            self.fail(format_args!(
                "a refusal for {retry_after} ms, which is more than the window"
            ));
        }
        let budget = self.budget(place);
        let (last_full, last_free) = (budget.last_full, budget.last_free);
        let (is_new, charges) = (budget.charges == request.charges, budget.charges);
        // Another process's reset is noticed within a second, after a look that may take one as well.
        if last_full.is_none_or(|full| full + 2_000 < request.asked_at)
            && !self.may_be_charging(place, request.asked_at)
        {
            let shown = self.budget(place).to_string();
            self.fail(format_args!("refused with an attempt free: {shown}"));
        }
        // What others did is noticed within a second.
        let is_seen = self.charged.iter().all(|(at, charged)| {
            at.1 != place.1 || at.0 == place.0 || charged + 2_000 < request.asked_at
        });
        if is_new && is_seen && !request.is_late {
            let due = now + retry_after;
            self.promises.push((place, Promise { due, charges }));
        }
        let is_resetting = self.resets.get(&place).is_some_and(|&until| until >= now);
        let storm = self.storm(place);
        let is_again = !is_resetting
            && storm.is_clear
            && storm.last_first.is_some_and(|last| last > last_free);
        let is_untold = !first && storm.last_first.is_none() && !storm.is_told;
        if first {
            storm.last_first = Some(now);
            storm.is_clear = true;
        }
        if first && is_again {
            self.fail(format_args!("two refusals at {place:?} are the first"));
        }
        if is_untold {
            self.fail(format_args!("no refusal at {place:?} is the first"));
        }
    }

    /// Whether a charge of the last attempt may have been seen that was taken back later.
    pub(crate) fn may_be_charging(&mut self, place: Place, since: Millis) -> bool {
        let is_one_left = self.budget(place).may_be_full_with_one();
        let mut leases = self.leases.iter().filter(|(of, _)| of.0 == place.1);
        let is_held = leases.any(|(_, lease)| {
            let released = lease.released_at;
            !lease.times.is_empty() && released.is_none_or(|released| released + 2_000 >= since)
        });
        is_one_left && is_held
    }

    /// Holds the refusals to their word.
    pub(crate) fn keep_promises(&mut self, now: Millis) {
        let (due, later) = std::mem::take(&mut self.promises)
            .into_iter()
            .partition(|(_, promise)| promise.due <= now);
        self.promises = later;
        for (place, promise) in due {
            let budget = self.budget(place);
            let is_kept = budget.charges != promise.charges || budget.may_be_free(promise.due);
            if !is_kept && !self.unknown.contains(&place.1) {
                let shown = self.budget(place).to_string();
                self.fail(format_args!(
                    "no attempt is free at {} ms: {shown}",
                    promise.due
                ));
            }
        }
    }
}
