//! The contract's budget, naively: written from docs/design.md, promises 8 to 12, and nothing of the crate.
//!
//! What was written is not always known (a write can fail after it has been made), so a budget is a set of possible counts. An
//! unknown write forks it; an observed attempt keeps those counts that explain its number. No count left: a promise is broken.

use std::collections::BTreeSet;

/// Virtual time, in milliseconds from the start.
pub(crate) type Millis = u64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) max: u32,
    pub(crate) window: Millis,
    pub(crate) is_sliding: bool,
    pub(crate) stable_after: Option<Millis>,
}

/// One possible count.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count {
    /// Time and launch of each charge, oldest first. In a fixed window, only the first one's time counts.
    charges: Vec<(Millis, u64)>,
    /// The last success, if it is not stable yet.
    up_since: Option<Millis>,
    /// A launch is in progress, so that success cannot become stable.
    is_launching: bool,
}

impl Count {
    fn at(&self, rules: &Rules, now: Millis) -> Self {
        let mut aged = self.clone();
        let is_stable = match (self.up_since, rules.stable_after) {
            (Some(since), Some(after)) => now >= since + after && !self.is_launching,
            _ => false,
        };
        if is_stable {
            return Self::default();
        }
        let counts = |at: Millis| now < at + rules.window;
        if rules.is_sliding {
            aged.charges.retain(|&(at, _)| counts(at));
        } else if aged.charges.first().is_some_and(|&(at, _)| !counts(at)) {
            aged.charges.clear();
        }
        aged
    }

    fn used(&self, rules: &Rules, now: Millis) -> u32 {
        u32::try_from(self.at(rules, now).charges.len()).unwrap()
    }

    /// When an attempt is free again; `None` if one is free now.
    fn full_until(&self, rules: &Rules, now: Millis) -> Option<Millis> {
        let aged = self.at(rules, now);
        let freed_by = aged.charges.len().checked_sub(rules.max as usize)?;
        let by_age = aged.charges[freed_by].0 + rules.window;
        let by_success = match (aged.up_since, rules.stable_after) {
            (Some(since), Some(after)) if !aged.is_launching => since + after,
            _ => by_age,
        };
        Some(by_age.min(by_success))
    }

    fn charge(&self, rules: &Rules, at: Millis, launch: u64, looked: bool) -> Self {
        let mut charged = self.at(rules, at);
        charged.charges.push((at, launch));
        charged.is_launching = true;
        if looked {
            charged.up_since = None;
        }
        charged
    }

    fn take_back(&self, launch: u64, rules: &Rules) -> Self {
        let mut left = self.clone();
        let opened = left.charges.first().map(|&(at, _)| at);
        left.charges.retain(|&(_, of)| of != launch);
        // A fixed window stays where its first charge opened it.
        if let (Some(first), Some(opened), false) =
            (left.charges.first_mut(), opened, rules.is_sliding)
        {
            first.0 = opened;
        }
        left
    }

    fn settle(&self, rules: &Rules, launch: u64, how: Settled, now: Millis) -> Self {
        let mut settled = self.clone();
        if !self.is_launching {
            // An operator has reset the budget meanwhile.
            return settled;
        }
        settled.is_launching = false;
        match how {
            Settled::Up => match rules.stable_after {
                None => return Self::default(),
                Some(_) => settled.up_since = Some(now),
            },
            Settled::Failed => settled.up_since = None,
            Settled::Nothing => return settled.take_back(launch, rules),
        }
        settled
    }
}

/// How a launch was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Up,
    Failed,
    /// Nothing was launched.
    Nothing,
}

/// A launch is seen so long after its charge at the latest. What had aged by then may still have counted at the charge.
const LATEST_NEWS: Millis = 20_000;

/// The budget of a key, as far as it can be known.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    rules: Rules,
    possible: BTreeSet<Count>,
    now: Millis,
    /// When it was last possible that no attempt was free.
    pub(crate) last_full: Option<Millis>,
    /// When it was last possible that one was.
    pub(crate) last_free: Millis,
    /// Grows with each change that can use an attempt.
    pub(crate) charges: u64,
}

impl Budget {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            possible: BTreeSet::from([Count::default()]),
            now: 0,
            last_full: None,
            last_free: 0,
            charges: 0,
        }
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, now: Millis) {
        let (rules, then) = (self.rules, self.now);
        for count in &self.possible {
            match count.full_until(&rules, then) {
                Some(until) => {
                    self.last_full = self.last_full.max(Some(until.min(now)));
                    if until <= now {
                        self.last_free = now;
                    }
                }
                None => self.last_free = now,
            }
        }
        self.now = now;
        let aged = now.saturating_sub(LATEST_NEWS);
        self.possible = self.possible.iter().map(|c| c.at(&rules, aged)).collect();
    }

    fn change(&mut self, change: impl Fn(&Count) -> Vec<Count>) {
        self.possible = self.possible.iter().flat_map(change).collect();
        self.advance(self.now);
    }

    /// A launch was seen, whose charge was made at one of these times. False if no possible count explains its number.
    pub(crate) fn launched(
        &mut self,
        launch: u64,
        at: &[Millis],
        number: u32,
        looked: bool,
    ) -> bool {
        let rules = self.rules;
        self.charges += 1;
        self.change(|count| {
            let explains = |at: &&Millis| count.used(&rules, **at) + 1 == number;
            let charged = |at: &Millis| count.charge(&rules, *at, launch, looked);
            at.iter().filter(explains).map(charged).collect()
        });
        number <= rules.max && !self.possible.is_empty()
    }

    /// A launch was seen, whose charge may have been reset since.
    pub(crate) fn launched_or_reset(&mut self, launch: u64, at: &[Millis], number: u32) {
        let reset = self.possible.clone();
        self.launched(launch, at, number, false);
        self.possible.extend(reset);
        self.advance(self.now);
    }

    /// It is unknown whether a launch was charged that was not begun.
    pub(crate) fn perhaps_charged(&mut self, launch: u64, at: &[Millis]) {
        let rules = self.rules;
        self.charges += 1;
        self.change(|count| {
            let mut down = count.clone();
            down.up_since = None;
            let mut counts = vec![count.clone(), down];
            for &at in at {
                if count.used(&rules, at) < rules.max {
                    let charged = count.charge(&rules, at, launch, true);
                    counts.push(charged.settle(&rules, launch, Settled::Failed, at));
                }
            }
            counts
        });
    }

    /// A launch was settled in one of these ways, at one of these times.
    pub(crate) fn settled(&mut self, launch: u64, ways: &[Settled], times: &[Millis]) {
        let rules = self.rules;
        self.change(|count| {
            let settle = |&how| {
                times
                    .iter()
                    .map(move |&at| count.settle(&rules, launch, how, at))
            };
            ways.iter().flat_map(settle).collect()
        });
    }

    pub(crate) fn reset(&mut self, is_certain: bool) {
        if is_certain {
            self.possible.clear();
        }
        self.possible.insert(Count::default());
        self.advance(self.now);
    }

    /// A backend's end was reported, or a look found none: in what way that counts depends on what was known.
    pub(crate) fn perhaps_ended(&mut self, launch: Option<u64>) {
        let rules = self.rules;
        self.change(|count| {
            let mut down = count.clone();
            down.up_since = None;
            let back = launch.map(|launch| down.take_back(launch, &rules));
            [Some(count.clone()), Some(down), back]
                .into_iter()
                .flatten()
                .collect()
        });
    }

    /// Whether it is possible that an attempt was free at `at`.
    pub(crate) fn may_be_free(&self, at: Millis) -> bool {
        let mut possible = self.possible.iter();
        possible.any(|count| count.full_until(&self.rules, at).is_none())
    }

    /// Whether it is possible that there is one attempt left at most.
    pub(crate) fn may_be_full_with_one(&self) -> bool {
        let mut possible = self.possible.iter();
        possible.any(|count| count.used(&self.rules, self.now) + 1 >= self.rules.max)
    }

    /// Keeps the counts that have used so much. False if there is none.
    pub(crate) fn seen_used(&mut self, used: u32) -> bool {
        let (rules, now) = (self.rules, self.now);
        self.possible
            .retain(|count| count.used(&rules, now) == used);
        !self.possible.is_empty()
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {}: {:?}", self.now, self.possible)
    }
}
