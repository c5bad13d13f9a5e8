//! The ledger in the hands of a leader that holds the lock: what it reads there, and what it writes. Pure, but for the clock
//! and for what this process is.

use std::sync::Arc;

use tokio::time::Instant;

use crate::budget::{Attempt, BudgetRefusal, Settlement, Usage};
use crate::clock::{ClockReading, SharedClock, TimePoint};
use crate::ledger::{LastOutcome, Ledger, LedgerHolder};
use crate::lock::{LedgerReading, SpawnLease};
use crate::policy::BudgetPolicy;
use crate::slot::SeenLedger;

/// The id of the ledger's attempt: there is one at most, that of the leader that holds the lock.
const ATTEMPT: u64 = 1;

#[derive(Debug)]
pub(crate) struct OpenLedger {
    ledger: Box<Ledger>,
    /// The newest launch that was charged before this one.
    charged_before: u64,
    policy: BudgetPolicy,
    clock: Arc<dyn SharedClock>,
}

/// What a ledger that was only peeked at says is used.
pub(crate) fn usage(ledger: &Ledger, policy: &BudgetPolicy, clock: &dyn SharedClock) -> Usage {
    ledger.budget.usage(policy, clock.now())
}

/// What a ledger says that was seen at `at`, in this process's terms.
pub(crate) fn seen(
    ledger: &Ledger,
    policy: &BudgetPolicy,
    clock: &dyn SharedClock,
    at: Instant,
) -> SeenLedger {
    let shared_now = clock.now();
    let mut budget = ledger.budget.clone();
    budget.forget_aged(policy, shared_now);
    let now = Instant::now().into_std();
    SeenLedger {
        // A time before the start of this process's clock (boot, on some platforms) counts as now: that attempt ages out
        // later here, and the ledger is looked at before that matters.
        budget: budget.by_clock(|at| now.checked_sub(shared_now.since(at)).unwrap_or(now)),
        last_failure: ledger.last_failure().map(|why| Arc::new(why.to_owned())),
        at,
    }
}

impl OpenLedger {
    /// Takes over the ledger of a lock that was just taken; `None` if it keeps none.
    pub(crate) fn new(
        lease: &dyn SpawnLease,
        policy: &BudgetPolicy,
        clock: &Arc<dyn SharedClock>,
    ) -> Option<Self> {
        if !policy.is_in_ledger {
            return None;
        }
        let mut ledger = match lease.ledger() {
            LedgerReading::NotKept => return None,
            LedgerReading::Found(ledger) => ledger,
            LedgerReading::Unreadable => {
                // Never an unlimited budget: what was counted is lost, so all of it counts as used.
                let mut ledger = Box::<Ledger>::default();
                ledger.budget.use_up(policy, clock.now());
                ledger
            }
        };
        if ledger.holder.is_some() {
            // Whoever that was died, or dropped its permit: the backend of the last success was not proved stable.
            ledger.budget.found_down();
        }
        ledger.launch = lease.fencing_token();
        // Whatever attempt was in flight ended with its holder; as text a ledger does not tell of it.
        ledger.budget.forget_in_flight();
        ledger.holder = Some(this_process(clock.now()));
        Some(Self {
            charged_before: ledger.charged,
            ledger,
            policy: *policy,
            clock: Arc::clone(clock),
        })
    }

    /// What to write now.
    pub(crate) fn to_write(&self) -> &Ledger {
        &self.ledger
    }

    /// The failure of a launch that ended after the one with the number `seen`.
    pub(crate) fn failure_after(&self, seen: u64) -> Option<(u64, &str)> {
        let last = self.ledger.last_outcome.as_ref()?;
        let why = last.failure.as_deref()?;
        (last.launch > seen).then_some((last.launch, why))
    }

    /// Charges one attempt, if one is left for all processes together. `has_looked`: no backend runs, so a success that has yet
    /// to prove stable never will.
    pub(crate) fn charge(&mut self, has_looked: bool) -> Result<Attempt, BudgetRefusal> {
        let now = self.clock.now();
        let budget = &mut self.ledger.budget;
        let charged = budget.begin(&self.policy, ATTEMPT, now);
        match charged {
            Ok(_) => self.ledger.charged = self.ledger.launch,
            Err(_) => budget.note_refused(),
        }
        if has_looked {
            budget.found_down();
        }
        charged
    }

    /// Notes that this process is done without a launch that counts: nothing charged, or the charge taken back.
    pub(crate) fn leave(&mut self) {
        let now = self.clock.now();
        self.ledger
            .budget
            .settle(&self.policy, ATTEMPT, Settlement::Refund, now);
        self.ledger.charged = self.charged_before;
        self.ledger.holder = None;
    }

    /// Notes how the launch ended: `failure` is why there is no backend.
    pub(crate) fn settle(&mut self, failure: Option<String>) {
        let now = self.clock.now();
        let settlement = match failure {
            None => Settlement::Success,
            Some(_) => Settlement::Failed,
        };
        self.ledger
            .budget
            .settle(&self.policy, ATTEMPT, settlement, now);
        self.ledger.holder = None;
        self.ledger.last_outcome = Some(LastOutcome {
            launch: self.ledger.launch,
            at: now,
            failure,
        });
    }

    /// Forgets what was used.
    pub(crate) fn reset(&mut self) {
        self.ledger.budget.reset();
        self.ledger.holder = None;
    }

    /// What it says now, in this process's terms.
    pub(crate) fn seen(&self) -> SeenLedger {
        seen(&self.ledger, &self.policy, &*self.clock, Instant::now())
    }
}

fn this_process(since: ClockReading) -> LedgerHolder {
    LedgerHolder {
        pid: std::process::id(),
        since,
        process_started: process_started(),
    }
}

/// Field 22 of the process's `stat`; the fields before the last `)` may hold anything.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn process_started() -> Option<u64> {
    use std::sync::OnceLock;

    static STARTED: OnceLock<Option<u64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(19)?.parse().ok()
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn process_started() -> Option<u64> {
    None
}
