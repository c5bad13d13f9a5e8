//! What must hold in a round, read from its journal. See "What may overlap" in `main.rs`.

use std::collections::{HashMap, HashSet};

use crate::config::{Config, ENDLESS};
use crate::harm::Harm;
use crate::journal::Event;

/// What happened in the rounds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) launches: usize,
    led: usize,
    joined: usize,
    discovered: usize,
    refused: usize,
    failed_elsewhere: usize,
    lost: usize,
    dropped: usize,
    killed: usize,
    overlaps: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.launches += other.launches;
        self.led += other.led;
        self.joined += other.joined;
        self.discovered += other.discovered;
        self.refused += other.refused;
        self.failed_elsewhere += other.failed_elsewhere;
        self.lost += other.lost;
        self.dropped += other.dropped;
        self.killed += other.killed;
        self.overlaps += other.overlaps;
    }
}

/// A launch. Places are those in the journal.
#[derive(Debug)]
struct Launch {
    process: usize,
    token: u64,
    begin: usize,
    end: usize,
    how: String,
    /// Its leader told its caller of a success.
    is_success: bool,
    /// A caller of `acquire` holds the permit.
    is_permit: bool,
    /// How many files the path had named by then, at least and at most, when its lock was taken.
    least_file: usize,
    most_file: usize,
}

impl Launch {
    fn overlaps(&self, later: &Self) -> bool {
        later.begin < self.end
    }

    /// Whether both have certainly locked the same file.
    fn shares_file(&self, other: &Self) -> bool {
        self.least_file == self.most_file
            && (other.least_file, other.most_file) == (self.least_file, self.most_file)
    }
}

type Checked = Result<(), String>;

pub(crate) fn check(config: &Config, events: &[Event]) -> Result<Tally, String> {
    if let Some(unanswered) = unanswered(events).first() {
        return Err(unanswered.clone());
    }
    check_answers(events)?;
    let mut tally = Tally::default();
    for key in config.keys {
        let events: Vec<_> = events.iter().enumerate().collect();
        let launches = launches(&events, key)?;
        check_values(&events, key, &launches)?;
        let has_aborted = |process| {
            let is_abort = |event: &Event| event.what == "abort" && event.process == process;
            events
                .iter()
                .any(|(_, event)| event.key == *key && is_abort(event))
        };
        tally.overlaps += check_overlaps(key, &launches, has_aborted)?;
        check_tokens(key, &launches)?;
        check_budget(config, &events, key)?;
        tally.launches += launches.len();
    }
    let count = |what: &str, how: &str| {
        let is_such = |event: &&Event| event.what == what && (how.is_empty() || event.how == how);
        events.iter().filter(is_such).count()
    };
    Ok(Tally {
        led: count("heard", "led"),
        joined: count("heard", "joined"),
        discovered: count("heard", "discovered"),
        refused: count("heard", "refused"),
        failed_elsewhere: count("heard", "failed-elsewhere"),
        lost: count("heard", "lost"),
        dropped: count("gone", ""),
        killed: count("killed", ""),
        ..tally
    })
}

/// The harm that was done to the key's lock file.
pub(crate) fn harms(events: &[Event], key: &str) -> Vec<Harm> {
    let of_key = |event: &&Event| event.what == "harm" && event.key == key;
    events
        .iter()
        .filter(of_key)
        .map(|event| Harm::of(&event.how))
        .collect()
}

/// The newest launch of the key that a caller heard to be a success, if the key's ledger was not damaged.
pub(crate) fn newest_success(events: &[Event], key: &str) -> Option<u64> {
    if harms(events, key).iter().any(|harm| harm.is_of_ledger()) {
        return None;
    }
    let led = |event: &&Event| event.key == key && event.how == "led";
    of("heard", events)
        .filter(led)
        .map(|event| event.token)
        .max()
}

/// The requests of processes that were not killed that have no answer.
pub(crate) fn unanswered(events: &[Event]) -> Vec<String> {
    let killed: HashSet<_> = of("killed", events).map(|event| event.process).collect();
    let answered: HashSet<_> = of("heard", events)
        .chain(of("gone", events))
        .map(|event| (event.process, event.request))
        .collect();
    of("ask", events)
        .filter(|ask| !killed.contains(&ask.process))
        .filter(|ask| !answered.contains(&(ask.process, ask.request)))
        .map(|ask| {
            format!(
                "request {} of process {} ({} {}) has no answer",
                ask.request, ask.process, ask.how, ask.key
            )
        })
        .collect()
}

fn of<'a>(what: &'a str, events: &'a [Event]) -> impl Iterator<Item = &'a Event> {
    events.iter().filter(move |event| event.what == what)
}

/// An error needs a cause. A `timeout` is that of an impatient process: the others wait for longer than a round lasts.
fn check_answers(events: &[Event]) -> Checked {
    for (place, heard) in events.iter().enumerate() {
        if heard.what != "heard" {
            continue;
        }
        let before = harms(&events[..place], &heard.key);
        let is_caused = match &*heard.how {
            "led" | "joined" | "discovered" | "dropped" => true,
            "refused" | "failed" | "failed-elsewhere" | "abandoned" | "aborted" | "timeout" => true,
            "lost" | "replaced" => before.iter().any(|harm| harm.is_loss()),
            "unsafe" | "denied" => before.iter().any(|harm| Harm::OF_MODE.contains(harm)),
            _ => false,
        };
        if !is_caused {
            return Err(format!("an answer without a cause: {heard}"));
        }
    }
    Ok(())
}

/// The key's launches in the order of their begin.
fn launches(events: &[(usize, &Event)], key: &str) -> Result<Vec<Launch>, String> {
    let of_key = events.iter().filter(|(_, event)| event.key == key);
    let mut launches: Vec<Launch> = Vec::new();
    let mut asked = HashMap::new();
    let (mut harm, mut harmed) = (0, 0);
    for &(place, event) in of_key {
        let is_loss = || Harm::of(&event.how).is_loss();
        match &*event.what {
            "ask" => drop(asked.insert((event.process, event.request), (harmed, &*event.how))),
            "harm" if is_loss() => harm += 1,
            "harmed" if is_loss() => harmed += 1,
            "begin" => {
                let (least_file, how) = asked[&(event.process, event.request)];
                launches.push(Launch {
                    process: event.process,
                    token: event.token,
                    begin: place,
                    end: usize::MAX,
                    how: "cut short".to_owned(),
                    is_success: false,
                    is_permit: how == "acquire",
                    least_file,
                    most_file: harm,
                });
            }
            "end" => {
                let launch = launches.iter_mut().find(|it| it.token == event.token);
                let launch = launch.ok_or_else(|| format!("never begun: {event}"))?;
                (launch.end, launch.how) = (place, event.how.clone());
            }
            "heard" if event.how == "led" => {
                let led = launches.iter_mut().find(|it| it.token == event.token);
                let led = led.filter(|led| led.process == event.process && led.how == "ok");
                led.ok_or_else(|| format!("led without a launch: {event}"))?
                    .is_success = true;
            }
            _ => {}
        }
    }
    for launch in launches.iter_mut().filter(|it| it.end == usize::MAX) {
        // It ended between these two notes, so it was surely in progress at the first one.
        let kill = events
            .iter()
            .find(|(_, event)| event.what == "killing" && event.process == launch.process);
        let &(place, _) = kill.ok_or_else(|| format!("no end: {launch:?}"))?;
        launch.end = place;
    }
    Ok(launches)
}

/// What callers hear was launched.
fn check_values(events: &[(usize, &Event)], key: &str, launches: &[Launch]) -> Checked {
    for (place, heard) in events {
        if heard.what != "heard" || heard.key != key || heard.token == 0 {
            continue;
        }
        let is_launched = |it: &Launch| it.token == heard.token && it.begin < *place;
        if !launches.iter().any(is_launched) {
            return Err(format!("never launched: {heard}"));
        }
    }
    Ok(())
}

/// Returns how many launches overlapped.
fn check_overlaps(
    key: &str,
    launches: &[Launch],
    has_aborted: impl Fn(usize) -> bool,
) -> Result<usize, String> {
    let mut overlaps = 0;
    for (place, one) in launches.iter().enumerate() {
        for other in launches[place + 1..].iter().filter(|it| one.overlaps(it)) {
            let is_of_one = one.process == other.process;
            let broken = if is_of_one && !(one.is_permit && has_aborted(one.process)) {
                "in one process"
            } else if one.shares_file(other) {
                "with the same file"
            } else if one.is_success && other.is_success {
                "and both succeeded"
            } else {
                overlaps += 1;
                continue;
            };
            return Err(format!(
                "two launches of {key} at the same time {broken}: {one:?}, {other:?}"
            ));
        }
    }
    Ok(overlaps)
}

/// Fencing tokens grow from holder to holder. A holder that was stopped right before its launch begins late, with the token of
/// its lock; it cannot succeed then.
fn check_tokens(key: &str, launches: &[Launch]) -> Checked {
    for (place, one) in launches.iter().enumerate() {
        for other in &launches[place + 1..] {
            let is_earlier = one.shares_file(other)
                || one.most_file < other.least_file
                || (one.is_success && other.is_success);
            let is_later = other.most_file < one.least_file;
            let is_broken = one.token == other.token
                || (is_earlier && one.token > other.token)
                || (is_later && one.token < other.token);
            if is_broken {
                return Err(format!(
                    "fencing tokens of {key} do not grow: {one:?}, {other:?}"
                ));
            }
        }
    }
    Ok(())
}

/// In one window, at most `max_attempts` launches begin between two successes, by all processes together and also across kills, as
/// long as the ledger is not damaged.
fn check_budget(config: &Config, events: &[(usize, &Event)], key: &str) -> Checked {
    if config.window < ENDLESS {
        return Ok(());
    }
    let mut begun = 0;
    for (_, event) in events.iter().filter(|(_, event)| event.key == key) {
        match &*event.what {
            "harm" if Harm::of(&event.how).is_of_ledger() => return Ok(()),
            "begin" => begun += 1,
            // Perhaps it was no success in the end; then fewer are left.
            "end" if event.how == "ok" => begun = 0,
            _ => {}
        }
        if begun > config.max_attempts {
            return Err(format!("too many launches of {key}: {event}"));
        }
    }
    Ok(())
}
