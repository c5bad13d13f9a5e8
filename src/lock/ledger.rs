//! The ledger: the small record in a lock file, as bytes. No I/O here.
//!
//! A file holds one line for people and two slots of fixed size, all within one 4 KiB page. A writer overwrites the slot
//! that does not hold the newest record, so a write that is cut short leaves the record before it. A slot is text:
//!
//! ```text
//! record 42 version 1 checksum 3f2a…   the checksum covers the two numbers and all that follows
//! launch 1763999999123        the launch number
//! holder 4711 1763999999123   process id, since when (Unix milliseconds); absent when nobody holds the lock
//! end
//! ```
//!
//! Reading takes any bytes and never panics. The first line's form and what the checksum covers are the same in all
//! versions to come, so a newer record is told from a broken one. Unknown lines of this version are passed over.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac_sha256::Hash as Sha256;

/// The version that this crate writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// Where the first slot begins. The bytes before hold the line for people; on Windows the lock covers the first of them,
/// and locked bytes cannot be read there.
pub(super) const FIRST_SLOT: u64 = 128;

const SLOT_LEN: usize = 1920;

/// What a reader reads, from [`FIRST_SLOT`] on.
pub(super) const SLOTS_LEN: usize = 2 * SLOT_LEN;

/// Terminals show nothing for it, so the file reads well with `cat`.
const PADDING: u8 = 0;

/// How much of the checksum is written: 128 bits, against accidents only.
const SUM_DIGITS: usize = 32;

/// What a lock file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The number of the newest launch; grows with each holder.
    pub(super) launch: u64,
    pub(super) holder: Option<Holder>,
}

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) since: SystemTime,
}

/// What the two slots hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing was ever written.
    Empty,
    /// The newest good record, and its sequence number.
    Found { ledger: Ledger, sequence: u64 },
    /// Something stands there, but no record.
    Unreadable,
    /// A good record of a newer version.
    Newer { version: u32 },
}

impl Reading {
    /// Reads the bytes after the header.
    pub(super) fn of(slots: &[u8]) -> Self {
        if slots.is_empty() {
            return Self::Empty;
        }
        let newest = slots
            .chunks(SLOT_LEN)
            .take(2)
            .filter_map(Record::parse)
            .max_by_key(|record| record.sequence);
        match newest {
            None => Self::Unreadable,
            Some(record) if record.version > VERSION => Self::Newer {
                version: record.version,
            },
            Some(record) => match parse_body(record.body) {
                Some(ledger) => Self::Found {
                    ledger,
                    sequence: record.sequence,
                },
                None => Self::Unreadable,
            },
        }
    }
}

/// One write: the bytes and where in the file they go.
#[derive(Debug)]
pub(super) struct SlotWrite {
    pub(super) bytes: Vec<u8>,
    pub(super) offset: u64,
}

impl SlotWrite {
    /// Prepares the record with this sequence number, which must follow that of the newest record in the file.
    pub(super) fn new(ledger: &Ledger, sequence: u64) -> Self {
        let mut bytes = encode_slot(ledger, sequence);
        let slot_offset = FIRST_SLOT + (sequence % 2) * SLOT_LEN as u64;
        if sequence > FIRST_SEQUENCE {
            return Self {
                bytes,
                offset: slot_offset,
            };
        }
        // The first write makes the whole file, so that it never grows afterwards.
        let mut file = header();
        file.resize(FIRST_SLOT as usize + SLOTS_LEN, PADDING);
        let start = slot_offset as usize;
        file[start..start + SLOT_LEN].copy_from_slice(&bytes);
        bytes.clear();
        Self {
            bytes: file,
            offset: 0,
        }
    }
}

/// The sequence number of the first record in a file.
pub(super) const FIRST_SEQUENCE: u64 = 1;

fn header() -> Vec<u8> {
    let mut header =
        b"spawn-gate: the lock of one backend; do not delete or edit. Of the records, the one with the higher number counts.".to_vec();
    header.resize(FIRST_SLOT as usize - 1, b' ');
    header.push(b'\n');
    header
}

fn encode_slot(ledger: &Ledger, sequence: u64) -> Vec<u8> {
    let mut body = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(body, "launch {}", ledger.launch);
    if let Some(holder) = &ledger.holder {
        let _ = writeln!(body, "holder {} {}", holder.pid, unix_millis(holder.since));
    }
    body.push_str("end\n");
    let sum = checksum(VERSION, sequence, body.as_bytes());
    let mut slot =
        format!("record {sequence} version {VERSION} checksum {sum}\n{body}").into_bytes();
    slot.resize(SLOT_LEN, PADDING);
    slot
}

/// A slot whose checksum is right.
struct Record<'a> {
    version: u32,
    sequence: u64,
    body: &'a str,
}

impl<'a> Record<'a> {
    fn parse(slot: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(slot).ok()?;
        let (first, rest) = text.split_once('\n')?;
        let mut words = first.split(' ');
        let mut word_after = |name| (words.next()? == name).then(|| words.next()).flatten();
        let sequence = word_after("record")?.parse().ok();
        // The next record needs a number above this one.
        let sequence = sequence.filter(|&it| it < u64::MAX)?;
        let version = word_after("version")?.parse().ok()?;
        let sum = word_after("checksum")?;
        let body = &rest[..rest.rfind("end\n")? + "end\n".len()];
        (sum == checksum(version, sequence, body.as_bytes())).then_some(Self {
            version,
            sequence,
            body,
        })
    }
}

fn parse_body(body: &str) -> Option<Ledger> {
    let mut ledger = Ledger::default();
    for line in body.lines() {
        let mut words = line.split(' ');
        match words.next()? {
            "launch" => ledger.launch = words.next()?.parse().ok()?,
            "holder" => {
                ledger.holder = Some(Holder {
                    pid: words.next()?.parse().ok()?,
                    since: from_unix_millis(words.next()?.parse().ok()?),
                });
            }
            _ => {}
        }
    }
    Some(ledger)
}

fn checksum(version: u32, sequence: u64, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(version.to_le_bytes());
    hash.update(sequence.to_le_bytes());
    hash.update(body);
    let mut sum = String::with_capacity(SUM_DIGITS);
    for byte in &hash.finalize()[..SUM_DIGITS / 2] {
        let _ = write!(sum, "{byte:02x}");
    }
    sum
}

/// Microseconds since the Unix epoch: launch numbers grow slower than that, so the clock is never behind them.
pub(super) fn unix_micros(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch; times before it count as the epoch.
fn unix_millis(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

fn from_unix_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(millis))
        .unwrap_or(UNIX_EPOCH)
}
