//! The text form of a ledger.
//!
//! One fact per line, for programs and people. Times are in seconds, by the wall clock and, after `/`, since boot:
//!
//! ```text
//! launch 1795548335141                               the newest fencing token
//! boot 3f2a…                                         the boot that the times after `/` are of
//! written 1795548340.220/8383.873                    time of writing, by the writer's clock
//! window 1795548301.467/8345.120 2                   a fixed window: its begin, attempts in it
//! attempts 1795548301.467/8345.120 …                 or a sliding window: the time of each attempt
//! up-since 1795548301.467/8345.120                   the last success, if it is not yet stable
//! holder 4711 1795548335.140/8378.793 83787          the launching process: id, start of the launch, start of the process
//! host web-1 4026531836                              where that process id is valid: host, process namespace
//! charged 1795548335141 1795548335.140/8378.793      the newest charged launch, and the time of its charge
//! count-lost                                         the record before could not be read
//! outcome 1795548335141 launched 1795548340.2/…      the outcome of the newest ended launch: `launched`,
//! outcome 1795548335141 failed 1795548340.2/… text   or `failed` and why
//! elder 1795548330007                                the success before the newest charge
//! found 1795548335141                                the newest holder that found a backend running
//! ended 1795548335141 orderly                        the reported end of a backend, by its launch: `orderly`,
//! ended 1795548335141 failed text                    or `failed` and why
//! ```
//!
//! Unknown lines are skipped, so a later release can add lines within this version.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{BackendEnd, LastOutcome, Ledger, LedgerHolder, ProcessHost};
use crate::budget::{BootReading, Charges, ClockReading};
use crate::util::{hex, last_digit, push_decimal};

/// A sliding window in a ledger holds at most this many attempts; a larger maximum counts as this one. This many fit into a
/// lock file's record, whatever the clocks read.
pub(crate) const MAX_SLIDING_ATTEMPTS: u32 = 24;

/// Bytes kept of a failure's message, in its escaped form.
const MAX_MESSAGE_LEN: usize = 512;

/// Bytes kept of the reason why a backend ended.
pub(crate) const MAX_REASON_LEN: usize = 60;

/// Bytes kept of a host's name, which has 64 bytes at most on Linux.
const MAX_HOST_LEN: usize = 40;

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.push_text(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

impl Ledger {
    /// Appends its text.
    pub(crate) fn push_text(&self, text: &mut Vec<u8>) {
        let boot = self.newest_boot();
        let mut lines = Lines { text, boot };
        lines.begin("launch").number(self.launch).end();
        if let Some(boot) = boot {
            lines.begin("boot").hex(boot).end();
        }
        if let Some(written) = &self.written {
            lines.begin("written").time(written).end();
        }
        match &self.budget.charges {
            Charges::None => {}
            Charges::Fixed { window_began, used } => {
                let line = lines.begin("window").time(window_began);
                line.number((*used).into()).end();
            }
            Charges::Sliding(times) => {
                let line = lines.begin("attempts");
                // If there is no room for all, drop the oldest, which age out first.
                let surplus = times.len().saturating_sub(MAX_SLIDING_ATTEMPTS as usize);
                for at in times.iter().skip(surplus) {
                    line.time(at);
                }
                line.end();
            }
        }
        if let Some(since) = &self.budget.up_since {
            lines.begin("up-since").time(since).end();
        }
        if let Some(holder) = &self.holder {
            lines.push_holder(holder);
        }
        if self.charged > 0 {
            let line = lines.begin("charged").number(self.charged);
            if let Some(at) = &self.charged_at {
                line.time(at);
            }
            line.end();
        }
        if self.is_count_lost {
            lines.begin("count-lost").end();
        }
        if let Some(last) = &self.last_outcome {
            lines.push_outcome(last);
        }
        if self.elder > 0 {
            lines.begin("elder").number(self.elder).end();
        }
        if self.found > 0 {
            lines.begin("found").number(self.found).end();
        }
        if let Some(end) = &self.backend_end {
            lines.begin("ended").word(&end.to_string()).end();
        }
    }

    /// The boot of the record's times. Times of another boot are kept by the wall clock alone, since time since that boot can no
    /// longer be measured.
    fn newest_boot(&self) -> Option<u128> {
        self.times()
            .chain(&self.written)
            .max_by_key(|reading| reading.unix)
            .and_then(|reading| reading.boot)
            .map(|boot| boot.id)
    }
}

/// `1795548335141 orderly`, or `1795548335141 failed exit status: 1`
impl fmt::Display for BackendEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => write!(f, "{} orderly", self.launch),
            Some(why) => write!(f, "{} failed {}", self.launch, cut(why, MAX_REASON_LEN)),
        }
    }
}

impl BackendEnd {
    /// Reads what [`Display`](fmt::Display) writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (launch, rest) = text.split_once(' ')?;
        let (word, why) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self {
            launch: launch.parse().ok()?,
            failure: match word {
                "orderly" => None,
                "failed" => Some(why.to_owned()),
                _ => return None,
            },
        })
    }
}

/// The text is not a [`Ledger`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a ledger: cannot read the line {line:?}")]
pub struct ParseLedgerError {
    /// The line that cannot be read.
    pub line: String,
}

impl FromStr for Ledger {
    type Err = ParseLedgerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ledger = Self::default();
        let mut boot = None;
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            read_line(&mut ledger, &mut boot, word, rest).ok_or_else(|| ParseLedgerError {
                line: line.chars().take(80).collect(),
            })?;
        }
        Ok(ledger)
    }
}

fn read_line(ledger: &mut Ledger, boot: &mut Option<u128>, word: &str, rest: &str) -> Option<()> {
    let mut words = rest.split(' ');
    let mut next = || words.next().filter(|word| !word.is_empty());
    match word {
        "launch" => ledger.launch = next()?.parse().ok()?,
        "boot" => *boot = Some(u128::from_str_radix(next()?, 16).ok()?),
        "window" => {
            ledger.budget.charges = Charges::Fixed {
                window_began: read_time(next()?, *boot)?,
                used: next()?.parse().ok()?,
            };
        }
        "attempts" => {
            let times = rest.split(' ').map(|word| read_time(word, *boot));
            let times: Box<[_]> = times.collect::<Option<_>>()?;
            if times.len() > MAX_SLIDING_ATTEMPTS as usize {
                return None;
            }
            ledger.budget.charges = Charges::Sliding(times);
        }
        "up-since" => ledger.budget.up_since = Some(read_time(next()?, *boot)?),
        "holder" => {
            ledger.holder = Some(LedgerHolder {
                pid: next()?.parse().ok()?,
                since: read_time(next()?, *boot)?,
                process_started: next().map(str::parse).transpose().ok()?,
                host: None,
            });
        }
        "host" => {
            if let Some(holder) = &mut ledger.holder {
                holder.host = Some(ProcessHost {
                    name: next()?.to_owned(),
                    pid_namespace: next().map(str::parse).transpose().ok()?,
                });
            }
        }
        "charged" => {
            ledger.charged = next()?.parse().ok()?;
            ledger.charged_at = match next() {
                Some(word) => Some(read_time(word, *boot)?),
                None => None,
            };
        }
        "elder" => ledger.elder = next()?.parse().ok()?,
        "found" => ledger.found = next()?.parse().ok()?,
        "count-lost" => ledger.is_count_lost = true,
        "written" => ledger.written = Some(read_time(next()?, *boot)?),
        "ended" => ledger.backend_end = Some(BackendEnd::parse(rest)?),
        "outcome" => {
            let launch = next()?.parse().ok()?;
            let failed = match next()? {
                "launched" => false,
                "failed" => true,
                _ => return None,
            };
            ledger.last_outcome = Some(LastOutcome {
                launch,
                at: read_time(next()?, *boot)?,
                failure: failed.then(|| rest.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()),
            });
        }
        _ => {}
    }
    Some(())
}

/// Lines of words, appended to a text.
struct Lines<'a> {
    text: &'a mut Vec<u8>,
    /// The boot of the record's times.
    boot: Option<u128>,
}

impl Lines<'_> {
    fn push_holder(&mut self, holder: &LedgerHolder) {
        let line = self.begin("holder").number(holder.pid.into());
        line.time(&holder.since);
        if let Some(started) = holder.process_started {
            line.number(started);
        }
        line.end();
        if let Some(host) = &holder.host {
            let line = self.begin("host").word(&one_word(&host.name));
            if let Some(namespace) = host.pid_namespace {
                line.number(namespace);
            }
            line.end();
        }
    }

    fn push_outcome(&mut self, last: &LastOutcome) {
        let line = self.begin("outcome").number(last.launch);
        match &last.failure {
            None => line.word("launched").time(&last.at),
            Some(why) => line.word("failed").time(&last.at).word(&escaped(why)),
        };
        line.end();
    }

    fn begin(&mut self, name: &str) -> &mut Self {
        self.text.extend_from_slice(name.as_bytes());
        self
    }

    fn end(&mut self) {
        self.text.push(b'\n');
    }

    fn word(&mut self, word: &str) -> &mut Self {
        self.text.push(b' ');
        self.text.extend_from_slice(word.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.text.push(b' ');
        push_decimal(self.text, number);
        self
    }

    fn hex(&mut self, number: u128) -> &mut Self {
        self.text.push(b' ');
        self.text.extend(hex::<32>(&number.to_be_bytes()));
        self
    }

    /// Seconds by the wall clock and, if it is of the record's boot, seconds since boot.
    fn time(&mut self, reading: &ClockReading) -> &mut Self {
        self.text.push(b' ');
        push_seconds(self.text, reading.unix);
        match reading.boot {
            Some(boot) if Some(boot.id) == self.boot => {
                self.text.push(b'/');
                push_seconds(self.text, boot.elapsed);
            }
            _ => {}
        }
        self
    }
}

/// Appends seconds with milliseconds. That is precise enough, and keeps a record short.
fn push_seconds(text: &mut Vec<u8>, time: Duration) {
    push_decimal(text, time.as_secs());
    text.push(b'.');
    let millis = u64::from(time.subsec_millis());
    text.extend([100, 10, 1].map(|unit| last_digit(millis / unit)));
}

fn read_time(word: &str, boot: Option<u128>) -> Option<ClockReading> {
    let (wall, since_boot) = match word.split_once('/') {
        Some((wall, since_boot)) => (wall, Some(since_boot)),
        None => (word, None),
    };
    let boot = match since_boot {
        Some(elapsed) => Some(BootReading {
            id: boot?,
            elapsed: read_seconds(elapsed)?,
        }),
        None => None,
    };
    Some(ClockReading {
        unix: read_seconds(wall)?,
        boot,
    })
}

fn read_seconds(text: &str) -> Option<Duration> {
    let (seconds, millis) = text.split_once('.')?;
    if millis.len() != 3 {
        return None;
    }
    Some(Duration::new(
        seconds.parse().ok()?,
        1_000_000 * millis.parse::<u32>().ok()?,
    ))
}

/// A message as one line, cut to the room in a record.
pub(crate) fn escaped(message: &str) -> String {
    cut(message, MAX_MESSAGE_LEN)
}

/// A text as one line of at most `most` bytes, with `…` if it was longer.
fn cut(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars() {
        let before = line.len();
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        if line.len() > most {
            line.truncate(before);
            line.push('…');
            break;
        }
    }
    line
}

/// A name without white space, since that separates words.
fn one_word(name: &str) -> String {
    let name = name.replace(char::is_whitespace, "_");
    let name = cut(&name, MAX_HOST_LEN);
    if name.is_empty() {
        "_".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: u64) -> ClockReading {
        ClockReading {
            unix: Duration::from_millis(1_800_000_000_000 + seconds * 1001),
            boot: Some(BootReading {
                id: 0xb007,
                elapsed: Duration::from_millis(seconds * 1001),
            }),
        }
    }

    /// A ledger that has every line but those of its charges.
    fn with_every_line() -> Ledger {
        let mut ledger = Ledger {
            launch: 19,
            holder: Some(LedgerHolder {
                pid: 4711,
                since: reading(5),
                process_started: Some(83_787),
                host: Some(ProcessHost {
                    name: "web-1".to_owned(),
                    pid_namespace: Some(4_026_531_836),
                }),
            }),
            charged: 19,
            charged_at: Some(reading(6)),
            last_outcome: Some(LastOutcome {
                launch: 18,
                at: reading(4),
                failure: Some("no such program".to_owned()),
            }),
            elder: 17,
            found: 16,
            backend_end: Some(BackendEnd::failed(17, "exit status: 1")),
            is_count_lost: true,
            written: Some(reading(7)),
            ..Ledger::default()
        };
        ledger.budget.up_since = Some(reading(3));
        ledger
    }

    #[test]
    fn the_text_of_a_ledger_is_always_the_same() {
        let mut ledger = with_every_line();
        // Of another boot: by the wall clock alone.
        ledger.last_outcome.as_mut().unwrap().at.boot = Some(BootReading {
            id: 0xb006,
            elapsed: Duration::from_secs(1),
        });
        ledger.budget.charges = Charges::Fixed {
            window_began: reading(1),
            used: 2,
        };
        let text = "\
            launch 19\n\
            boot 0000000000000000000000000000b007\n\
            written 1800000007.007/7.007\n\
            window 1800000001.001/1.001 2\n\
            up-since 1800000003.003/3.003\n\
            holder 4711 1800000005.005/5.005 83787\n\
            host web-1 4026531836\n\
            charged 19 1800000006.006/6.006\n\
            count-lost\n\
            outcome 18 failed 1800000004.004 no such program\n\
            elder 17\n\
            found 16\n\
            ended 17 failed exit status: 1\n";
        assert_eq!(ledger.to_string(), text);

        ledger.budget.charges = Charges::Sliding(Box::new([reading(1), reading(2)]));
        let attempts = "attempts 1800000001.001/1.001 1800000002.002/2.002\n";
        let text = text.replace("window 1800000001.001/1.001 2\n", attempts);
        assert_eq!(ledger.to_string(), text);
    }

    #[test]
    fn a_ledger_with_every_line_is_read_as_it_was_written() {
        let mut ledger = with_every_line();
        let charges = [
            Charges::None,
            Charges::Fixed {
                window_began: reading(1),
                used: 2,
            },
            Charges::Sliding(Box::new([reading(1), reading(2)])),
        ];
        for charges in charges {
            ledger.budget.charges = charges;
            assert_eq!(ledger.to_string().parse(), Ok(ledger.clone()));
        }
    }

    #[test]
    fn what_has_not_happened_has_no_line() {
        assert_eq!(Ledger::default().to_string(), "launch 0\n");
    }

    #[test]
    fn a_message_is_cut_only_if_it_is_longer_than_its_room() {
        let just_fits = "m".repeat(MAX_MESSAGE_LEN);
        assert_eq!(escaped(&just_fits), just_fits);
        assert_eq!(escaped(&format!("{just_fits}m")), format!("{just_fits}…"));
        // A character that crosses the end is left out as a whole.
        let crosses = format!("{}éé", &just_fits[1..]);
        assert_eq!(escaped(&crosses), format!("{}…", &just_fits[1..]));
    }

    #[test]
    fn a_host_name_is_one_word_and_no_longer_than_its_room() {
        assert_eq!(one_word("web 1"), "web_1");
        assert_eq!(one_word(""), "_");
        let cut = one_word(&"w".repeat(MAX_HOST_LEN + 1));
        assert_eq!(cut, format!("{}…", "w".repeat(MAX_HOST_LEN)));
    }
}
