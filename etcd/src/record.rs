//! What the entries of a key hold: the record, the lock, and the report of a backend's end, each as text.
//!
//! ```text
//! spawn-gate-etcd 1            in each entry: what it is of, and the version
//! token 4711                   in a registration: the fencing token of the launch; then what the backend registered
//! position 1502                in a record: the age of its lease when it was written, in milliseconds
//! launch 4711                  then the ledger
//! ```

use std::time::Duration;

use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading};

use crate::error::EtcdError;
use crate::registration::Registration;
use crate::wire::KeyValue;

const MAGIC: &str = "spawn-gate-etcd";
const VERSION: u32 = 1;

/// A record as it was read.
#[derive(Debug)]
pub(crate) struct Record {
    /// The age of its lease when it was written, rounded up.
    pub(crate) position: Duration,
    /// `None` if the text is no ledger.
    ledger: Option<Ledger>,
}

impl Record {
    pub(crate) fn parse(entry: &KeyValue) -> Result<Self, EtcdError> {
        let body = body(entry)?;
        let (line, ledger) = body.split_once('\n').unwrap_or((body, ""));
        let position = line
            .strip_prefix("position ")
            .and_then(|millis| millis.parse().ok());
        Ok(match position {
            Some(millis) => Self {
                position: Duration::from_millis(millis),
                ledger: ledger.parse().ok(),
            },
            None => Self {
                position: Duration::ZERO,
                ledger: None,
            },
        })
    }

    /// The ledger, if it can be read.
    pub(crate) fn into_ledger(self) -> Option<Ledger> {
        self.ledger
    }

    /// The ledger of this age, with the report of a backend's end.
    pub(crate) fn into_reading(self, age: Duration, end: Option<&BackendEnd>) -> LedgerReading {
        let Some(ledger) = self.ledger else {
            return LedgerReading::Unreadable;
        };
        let mut ledger = ledger.with_age(age);
        if let Some(end) = end {
            ledger.note_backend_end(end);
        }
        LedgerReading::Found(Box::new(ledger))
    }
}

/// The text of a record.
pub(crate) fn record_text(position: Duration, ledger: &Ledger) -> Vec<u8> {
    // Rounded up, so that a record never seems older than it is.
    let millis = position.as_millis() + 1;
    format!("{MAGIC} {VERSION}\nposition {millis}\n{ledger}").into_bytes()
}

/// Whether the ledger has the charge of the launch with this fencing token.
pub(crate) fn has_charge(ledger: &Ledger, token: u64) -> bool {
    let text = ledger.to_string();
    let mut charges = text
        .lines()
        .filter_map(|line| line.strip_prefix("charged "));
    charges.any(|line| line.split(' ').next() == Some(&token.to_string()))
}

/// The text of a lock. The holder is named in the record.
pub(crate) fn lock_text() -> Vec<u8> {
    format!("{MAGIC} {VERSION}\npid {}\n", std::process::id()).into_bytes()
}

/// Checks that a lock was made by this crate.
pub(crate) fn check_lock(entry: &KeyValue) -> Result<(), EtcdError> {
    body(entry).map(drop)
}

/// The process that made a lock.
pub(crate) fn pid_of_lock(entry: &KeyValue) -> Option<u32> {
    let line = body(entry).ok()?.lines().next()?;
    line.strip_prefix("pid ")?.parse().ok()
}

/// Whether this crate, in a version that this one can read, wrote the entry.
pub(crate) fn is_ours(entry: &KeyValue) -> bool {
    body(entry).is_ok()
}

/// The text of a backend's end.
pub(crate) fn end_text(end: &BackendEnd) -> Vec<u8> {
    format!("{MAGIC} {VERSION}\n{end}\n").into_bytes()
}

/// Reads the report of a backend's end. A report that cannot be read counts as none.
pub(crate) fn parse_end(entry: &KeyValue) -> Option<BackendEnd> {
    let line = body(entry).ok()?.lines().next()?;
    let (launch, rest) = line.split_once(' ')?;
    let launch = launch.parse().ok()?;
    match rest.split_once(' ').unwrap_or((rest, "")) {
        ("orderly", _) => Some(BackendEnd::orderly(launch)),
        ("failed", why) => Some(BackendEnd::failed(launch, why)),
        _ => None,
    }
}

/// The text of a registered backend.
pub(crate) fn backend_text(token: u64, value: &str) -> Vec<u8> {
    format!("{MAGIC} {VERSION}\ntoken {token}\n{value}").into_bytes()
}

/// Reads a registered backend.
pub(crate) fn parse_backend(entry: &KeyValue) -> Result<Registration, EtcdError> {
    let (line, value) = body(entry)?.split_once('\n').unwrap_or_default();
    let token = line
        .strip_prefix("token ")
        .and_then(|token| token.parse().ok());
    Ok(Registration {
        fencing_token: token.ok_or_else(|| EtcdError::Foreign {
            key: String::from_utf8_lossy(&entry.key).into_owned(),
        })?,
        value: value.to_owned(),
    })
}

/// What follows the first line, if that is ours.
fn body(entry: &KeyValue) -> Result<&str, EtcdError> {
    let key = || String::from_utf8_lossy(&entry.key).into_owned();
    let foreign = || EtcdError::Foreign { key: key() };
    let text = std::str::from_utf8(&entry.value).map_err(|_| foreign())?;
    let (line, body) = text.split_once('\n').unwrap_or((text, ""));
    let version = line
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.strip_prefix(' '))
        .and_then(|version| version.parse().ok());
    match version {
        Some(VERSION) => Ok(body),
        Some(found) if found > VERSION => Err(EtcdError::Version {
            key: key(),
            found,
            supported: VERSION,
        }),
        _ => Err(foreign()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &[u8]) -> KeyValue {
        KeyValue {
            key: b"gate/a/record".to_vec(),
            value: value.to_vec(),
            ..KeyValue::default()
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_never_older() {
        let ledger: Ledger = "launch 7\ncharged 7\n".parse().unwrap();
        let written = record_text(Duration::from_micros(1500), &ledger);
        let record = Record::parse(&entry(&written)).unwrap();
        assert_eq!(record.position, Duration::from_millis(2));
        let LedgerReading::Found(read) = record.into_reading(Duration::ZERO, None) else {
            panic!("unreadable");
        };
        assert_eq!(read.fencing_token(), 7);
        assert!(has_charge(&ledger, 7));
        assert!(!has_charge(&ledger, 70));
    }

    #[test]
    fn what_others_wrote_is_told_from_what_is_broken() {
        for foreign in [
            &b""[..],
            b"hello",
            b"\xff\xfe",
            b"spawn-gate-etcd",
            b"spawn-gate-etcd x\n",
        ] {
            let error = Record::parse(&entry(foreign)).unwrap_err();
            assert!(matches!(error, EtcdError::Foreign { .. }), "{error}");
            assert!(!error.retry_helps());
        }
        let newer = Record::parse(&entry(b"spawn-gate-etcd 2\n")).unwrap_err();
        assert!(matches!(newer, EtcdError::Version { found: 2, .. }));
        for broken in [
            "spawn-gate-etcd 1\n",
            "spawn-gate-etcd 1\nposition 1\nlaunch x\n",
        ] {
            let record = Record::parse(&entry(broken.as_bytes())).unwrap();
            let reading = record.into_reading(Duration::ZERO, None);
            assert_eq!(reading, LedgerReading::Unreadable);
        }
    }

    #[test]
    fn the_report_of_an_end_is_read_as_it_was_written() {
        for end in [
            BackendEnd::orderly(3),
            BackendEnd::failed(4, "exit status: 1"),
        ] {
            assert_eq!(parse_end(&entry(&end_text(&end))), Some(end));
        }
    }
}
