//! The layout of a lock file: an interrupted write loses no earlier record. Bytes only, no I/O.
//!
//! One line for people, two slots of fixed size and a note, all within one 4 KiB page. A writer overwrites the slot that does
//! not hold the newest record, so the newest record stays until the write is complete. A slot begins with
//!
//! ```text
//! record 42 version 1 checksum 3f2a…
//! ```
//!
//! and continues with the ledger and a line `end`. The checksum covers the two numbers and all that follows. The form of the
//! first line and the coverage of the checksum are the same in all versions, so a newer record is told from a broken one.
//! Reading accepts any bytes and never panics.
//!
//! The note reports the end of a backend. It is written without the lock, so it has a checksum of its own:
//!
//! ```text
//! ended 1795548335141 orderly
//! checksum 3f2a…
//! ```

use std::ffi::CStr;

use sha2::{Digest, Sha256};

use crate::ledger::{BackendEnd, Ledger};
use crate::util::{hex, push_decimal};

/// The version that this crate writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// Start of the first slot. The bytes before hold the line for people. On Windows, the lock covers the first of them, and
/// locked bytes cannot be read.
pub(super) const FIRST_SLOT: u64 = 128;

const SLOT_LEN: usize = 1920;

const SLOTS_LEN: usize = 2 * SLOT_LEN;

/// Start of the note.
pub(super) const NOTE: u64 = FIRST_SLOT + SLOTS_LEN as u64;

pub(super) const NOTE_LEN: usize = 4096 - NOTE as usize;

/// The number of bytes that a reader reads, from [`FIRST_SLOT`] on.
pub(super) const RECORD_LEN: usize = SLOTS_LEN + NOTE_LEN;

/// Terminals do not show it, so `cat` prints the file well. A record ends at the first.
const PADDING: u8 = 0;

/// Digits of a record's checksum: 128 bits, against accidents only.
const SUM_DIGITS: usize = 32;

/// Digits of a note's checksum: all that there is room for.
const NOTE_SUM_DIGITS: usize = 16;

const LAST_LINE: &str = "end\n";

/// The content of the two slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// There are no bytes.
    Empty,
    /// The newest good record, and its sequence number.
    Found { ledger: Box<Ledger>, sequence: u64 },
    /// There are bytes, but no record.
    Unreadable,
    /// A good record of a newer version.
    Newer { version: u32 },
}

impl Reading {
    /// Reads the bytes after the line for people.
    pub(super) fn of(slots: &[u8]) -> Self {
        if slots.is_empty() {
            return Self::Empty;
        }
        let mut claims = slots.chunks(SLOT_LEN).map(Claim::parse);
        let mut next = || claims.next().flatten();
        let [one, other] = [next(), next()];
        let by_age = match one.as_ref().map(|one| one.sequence)
            < other.as_ref().map(|other| other.sequence)
        {
            true => [other, one],
            false => [one, other],
        };
        // The newer one counts, unless its write was cut short: then the older one counts.
        let mut records = by_age.into_iter().flatten();
        let Some((claim, ledger)) = records.find_map(Claim::checked) else {
            return Self::Unreadable;
        };
        if claim.version > VERSION {
            return Self::Newer {
                version: claim.version,
            };
        }
        let Ok(mut ledger) = ledger.parse::<Ledger>() else {
            return Self::Unreadable;
        };
        if let Some(end) = slots.get(SLOTS_LEN..).and_then(decode_note) {
            ledger.note_backend_end(&end);
        }
        Self::Found {
            ledger: Box::new(ledger),
            sequence: claim.sequence,
        }
    }
}

/// The bytes of a note.
pub(super) fn encode_note(end: &BackendEnd) -> Vec<u8> {
    let mut note = format!("ended {end}").into_bytes();
    let sum = checksum(VERSION, 0, &note);
    note.extend_from_slice(b"\nchecksum ");
    note.extend_from_slice(&sum[..NOTE_SUM_DIGITS]);
    note.push(b'\n');
    // It always fits, since a reason is cut.
    note.resize(NOTE_LEN, PADDING);
    note
}

/// Reads the bytes of a note; `None` if it is none, or damaged.
pub(super) fn decode_note(note: &[u8]) -> Option<BackendEnd> {
    if !note.starts_with(b"ended ") {
        // Most often there is none.
        return None;
    }
    let text = std::str::from_utf8(note).ok()?;
    let (line, rest) = text.split_once("\nchecksum ")?;
    let (sum, _) = rest.split_once('\n')?;
    let is_whole = sum.as_bytes() == &checksum(VERSION, 0, line.as_bytes())[..NOTE_SUM_DIGITS];
    BackendEnd::parse(line.strip_prefix("ended ")?).filter(|_| is_whole)
}

/// The sequence number of the first record in a file.
const FIRST_SEQUENCE: u64 = 1;

/// One write: the bytes and where in the file they go.
#[derive(Debug)]
pub(super) struct SlotWrite {
    pub(super) bytes: Vec<u8>,
    pub(super) offset: u64,
}

impl SlotWrite {
    /// Prepares the record after the one with the number `newest` (zero: after none).
    pub(super) fn after(newest: u64, ledger: &Ledger) -> Self {
        let sequence = newest.saturating_add(1);
        let slot = encode_slot(ledger, sequence);
        let offset = FIRST_SLOT + (sequence % 2) * SLOT_LEN as u64;
        if sequence > FIRST_SEQUENCE {
            return Self {
                bytes: slot,
                offset,
            };
        }
        // The first write creates the whole file, so that no later one needs disk space.
        let mut bytes = header();
        bytes.resize(FIRST_SLOT as usize + RECORD_LEN, PADDING);
        let start = offset as usize;
        bytes[start..start + SLOT_LEN].copy_from_slice(&slot);
        Self { bytes, offset: 0 }
    }
}

fn header() -> Vec<u8> {
    let mut header = b"spawn-gate: the lock of one backend; do not delete or edit. Of the records, the one with the higher number counts.".to_vec();
    header.resize(FIRST_SLOT as usize - 1, b' ');
    header.push(b'\n');
    header
}

fn encode_slot(ledger: &Ledger, sequence: u64) -> Vec<u8> {
    let mut slot = encode_record(ledger, sequence);
    if slot.len() > SLOT_LEN {
        // It is too long only with absurd clock readings. Without the failure's message it fits.
        slot = encode_record(&ledger.without_message(), sequence);
    }
    slot.resize(SLOT_LEN, PADDING);
    slot
}

fn encode_record(ledger: &Ledger, sequence: u64) -> Vec<u8> {
    let mut record = Vec::with_capacity(SLOT_LEN);
    record.extend_from_slice(b"record ");
    push_decimal(&mut record, sequence);
    record.extend_from_slice(b" version ");
    push_decimal(&mut record, VERSION.into());
    record.extend_from_slice(b" checksum ");
    // Its place is kept until the body is there.
    let sum_at = record.len();
    record.resize(sum_at + SUM_DIGITS, b'0');
    record.push(b'\n');
    let body_at = record.len();
    ledger.push_text(&mut record);
    record.extend_from_slice(LAST_LINE.as_bytes());
    let sum = checksum(VERSION, sequence, &record[body_at..]);
    record[sum_at..sum_at + SUM_DIGITS].copy_from_slice(&sum);
    record
}

/// What the first line of a slot claims; the checksum is not compared yet.
struct Claim<'a> {
    version: u32,
    sequence: u64,
    sum: &'a str,
    /// The bytes after that line.
    rest: &'a [u8],
}

impl<'a> Claim<'a> {
    fn parse(slot: &'a [u8]) -> Option<Self> {
        let end = slot.iter().position(|&byte| byte == b'\n')?;
        let first = std::str::from_utf8(&slot[..end]).ok()?;
        let mut words = first.split(' ');
        let mut word_after = |name| (words.next()? == name).then(|| words.next()).flatten();
        let sequence = word_after("record")?.parse().ok();
        Some(Self {
            // The next record needs a number above this one.
            sequence: sequence.filter(|&it| it < u64::MAX)?,
            version: word_after("version")?.parse().ok()?,
            sum: word_after("checksum")?,
            rest: &slot[end + 1..],
        })
    }

    /// Returns the text of the ledger if the record is whole.
    fn checked(self) -> Option<(Self, &'a str)> {
        let body = CStr::from_bytes_until_nul(self.rest).map_or(self.rest, CStr::to_bytes);
        let ledger = body.strip_suffix(LAST_LINE.as_bytes())?;
        let is_whole = self.sum.as_bytes() == checksum(self.version, self.sequence, body);
        let ledger = std::str::from_utf8(ledger).ok().filter(|_| is_whole)?;
        Some((self, ledger))
    }
}

fn checksum(version: u32, sequence: u64, body: &[u8]) -> [u8; SUM_DIGITS] {
    let mut hash = Sha256::new();
    hash.update(version.to_le_bytes());
    hash.update(sequence.to_le_bytes());
    hash.update(body);
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::budget::{BootReading, Charges, ClockReading, KeyBudget};
    use crate::ledger::{LastOutcome, LedgerHolder, MAX_SLIDING_ATTEMPTS, ProcessHost};

    /// A lock file after these ledgers were written to it in turn.
    fn file_of(ledgers: &[Ledger]) -> Vec<u8> {
        let mut file = Vec::new();
        for (newest, ledger) in ledgers.iter().enumerate() {
            apply(&mut file, &SlotWrite::after(newest as u64, ledger));
        }
        file
    }

    fn apply(file: &mut Vec<u8>, write: &SlotWrite) {
        let start = write.offset as usize;
        let end = start + write.bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(&write.bytes);
    }

    fn read(file: &[u8]) -> Reading {
        Reading::of(file.get(FIRST_SLOT as usize..).unwrap_or_default())
    }

    fn found(ledger: &Ledger, sequence: u64) -> Reading {
        Reading::Found {
            ledger: Box::new(ledger.clone()),
            sequence,
        }
    }

    /// Readings as they are written: whole milliseconds, and one boot in a record.
    fn reading(largest: u64) -> impl Strategy<Value = ClockReading> {
        (0..largest, prop::option::of(0..largest)).prop_map(|(unix, boot)| ClockReading {
            unix: Duration::from_millis(unix),
            boot: boot.map(|elapsed| BootReading {
                id: 0xb007,
                elapsed: Duration::from_millis(elapsed),
            }),
        })
    }

    fn budget(largest: u64) -> impl Strategy<Value = KeyBudget<ClockReading>> {
        let max = MAX_SLIDING_ATTEMPTS as usize;
        let charges = prop_oneof![
            Just(Charges::None),
            (reading(largest), any::<u32>())
                .prop_map(|(window_began, used)| Charges::Fixed { window_began, used }),
            prop::collection::vec(reading(largest), 1..=max)
                .prop_map(|times| Charges::Sliding(times.into())),
        ];
        (charges, prop::option::of(reading(largest)))
            .prop_map(|(charges, up_since)| KeyBudget { charges, up_since })
    }

    fn holder(largest: u64) -> impl Strategy<Value = LedgerHolder> {
        let host = ("[a-z-]{0,80}", any::<Option<u64>>());
        let host = host.prop_map(|(name, pid_namespace)| ProcessHost {
            name,
            pid_namespace,
        });
        let process = (any::<u32>(), reading(largest), any::<Option<u64>>());
        (process, prop::option::of(host)).prop_map(|((pid, since, process_started), host)| {
            LedgerHolder {
                pid,
                since,
                process_started,
                host,
            }
        })
    }

    fn backend_end() -> impl Strategy<Value = BackendEnd> {
        (any::<u64>(), any::<Option<String>>())
            .prop_map(|(launch, failure)| BackendEnd { launch, failure })
    }

    /// Ledgers whose times are shorter than `largest` milliseconds.
    fn ledgers(largest: u64) -> impl Strategy<Value = Ledger> {
        let outcome = (any::<u64>(), reading(largest), any::<Option<String>>());
        let outcome = outcome.prop_map(|(launch, at, failure)| LastOutcome {
            launch,
            at,
            failure,
        });
        let written = prop::option::of(reading(largest));
        let charged_at = prop::option::of(reading(largest));
        (
            (any::<u64>(), any::<bool>(), written),
            (any::<u64>(), charged_at),
            budget(largest),
            prop::option::of(holder(largest)),
            prop::option::of(outcome),
            prop::option::of(backend_end()),
        )
            .prop_map(
                |(head, charge, budget, holder, last_outcome, backend_end)| {
                    let (launch, is_count_lost, written) = head;
                    let (charged, charged_at) = charge;
                    Ledger {
                        launch,
                        elder: launch / 2,
                        found: charged,
                        is_count_lost,
                        written,
                        charged,
                        charged_at,
                        budget,
                        holder,
                        last_outcome,
                        backend_end,
                        age: None,
                    }
                },
            )
    }

    /// Times up to the year 2286 and 300 years since boot.
    const USUAL: u64 = 10_000_000_000_000;

    /// A ledger as its text keeps it: times of one boot only, and each message as one line.
    fn as_text(ledger: &Ledger) -> Ledger {
        ledger.to_string().parse().unwrap()
    }

    #[test]
    fn a_file_that_was_never_written_to_is_empty_and_one_of_something_else_is_unreadable() {
        assert_eq!(read(b""), Reading::Empty);
        assert_eq!(read(&[b' '; FIRST_SLOT as usize]), Reading::Empty);
        assert_eq!(read(&[b'x'; 5000]), Reading::Unreadable);
        assert_eq!(read(&[0; 4096]), Reading::Unreadable);
    }

    #[test]
    fn the_line_for_people_is_one_and_ends_where_the_records_begin() {
        let header = String::from_utf8(header()).unwrap();
        assert_eq!(header.len(), FIRST_SLOT as usize);
        assert_eq!(header.find('\n'), Some(header.len() - 1));
    }

    #[test]
    fn the_bytes_of_a_record_and_of_a_note_are_always_the_same() {
        let ledger = Ledger {
            launch: 1_795_548_335_141,
            written: Some(ClockReading {
                unix: Duration::from_millis(1_795_548_340_020),
                boot: Some(BootReading {
                    id: 0xb007,
                    elapsed: Duration::from_millis(8_383_873),
                }),
            }),
            ..Ledger::default()
        };
        let record = "record 42 version 1 checksum 674191686a44a4c91c5f635dab37faa7\n\
            launch 1795548335141\n\
            boot 0000000000000000000000000000b007\n\
            written 1795548340.020/8383.873\n\
            end\n";
        let encoded = encode_record(&ledger, 42);
        assert_eq!(String::from_utf8(encoded).unwrap(), record);
        let note = "ended 1795548335141 orderly\nchecksum 6d92318b2a9935e9\n";
        let encoded = encode_note(&BackendEnd::orderly(1_795_548_335_141));
        let encoded = String::from_utf8(encoded).unwrap();
        assert_eq!(encoded.trim_end_matches('\0'), note);
    }

    #[test]
    fn a_note_leaves_the_newest_record_whole_in_whichever_slot_it_is() {
        let ledger = Ledger {
            launch: 7,
            ..Ledger::default()
        };
        for newest in 1..=2 {
            let mut file = file_of(&vec![ledger.clone(); newest]);
            let note = SlotWrite {
                bytes: encode_note(&BackendEnd::orderly(1)),
                offset: NOTE,
            };
            apply(&mut file, &note);
            assert_eq!(file.len(), 4096);
            assert_eq!(read(&file), found(&ledger, newest as u64));
        }
    }

    #[test]
    fn the_last_number_is_never_reached_by_a_record_that_is_read() {
        let write = SlotWrite::after(u64::MAX - 1, &Ledger::default());
        assert_eq!(Claim::parse(&write.bytes).map(|claim| claim.sequence), None);
    }

    #[test]
    fn a_ledger_that_is_too_long_for_its_slot_loses_its_messages_and_nothing_else() {
        let late = ClockReading {
            unix: Duration::from_millis(u64::MAX),
            boot: Some(BootReading {
                id: u128::MAX,
                elapsed: Duration::from_millis(u64::MAX),
            }),
        };
        let most = MAX_SLIDING_ATTEMPTS as usize;
        let mut ledger = Ledger {
            launch: u64::MAX,
            holder: Some(LedgerHolder {
                pid: u32::MAX,
                since: late,
                process_started: Some(u64::MAX),
                host: None,
            }),
            charged: u64::MAX,
            charged_at: Some(late),
            last_outcome: Some(LastOutcome {
                launch: 6,
                at: late,
                failure: Some("m".repeat(500)),
            }),
            written: Some(late),
            backend_end: Some(BackendEnd::failed(5, "exit status: 1")),
            ..Ledger::default()
        };
        ledger.budget.charges = Charges::Sliding(vec![late; most].into());
        ledger.budget.up_since = Some(late);
        let surplus = encode_record(&ledger, 2).len() - SLOT_LEN;
        assert!(surplus > 0);
        let mut just_fits = ledger.clone();
        let last = just_fits.last_outcome.as_mut().unwrap();
        last.failure.as_mut().unwrap().truncate(500 - surplus);
        let mut file = file_of(&[Ledger::default()]);
        apply(&mut file, &SlotWrite::after(1, &just_fits));
        assert_eq!(read(&file), found(&just_fits, 2));

        let mut file = file_of(&[Ledger::default()]);
        apply(&mut file, &SlotWrite::after(1, &ledger));

        let last = ledger.last_outcome.as_mut().unwrap();
        last.failure = Some(String::new());
        ledger.backend_end = Some(BackendEnd::failed(5, ""));
        assert_eq!(read(&file), found(&ledger, 2));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ledger in ledgers(USUAL), newest in 0..u64::MAX - 2) {
            let mut file = file_of(&[Ledger::default()]);
            apply(&mut file, &SlotWrite::after(newest + 1, &ledger));
            prop_assert_eq!(read(&file), found(&as_text(&ledger), newest + 2));
        }

        #[test]
        fn text_that_was_read_is_written_again_the_same(ledger in ledgers(USUAL)) {
            let once = as_text(&ledger);
            prop_assert_eq!(as_text(&once), once);
        }

        #[test]
        fn any_ledger_fits_its_slot_whatever_the_clocks_read(ledger in ledgers(u64::MAX)) {
            prop_assert_eq!(encode_slot(&ledger, u64::MAX).len(), SLOT_LEN);
            prop_assert!(encode_record(&ledger.without_message(), u64::MAX).len() <= SLOT_LEN);
        }

        #[test]
        fn a_write_cut_short_anywhere_leaves_the_record_before_it_or_the_new_one(
            before in prop::collection::vec(ledgers(USUAL), 1..5),
            new in ledgers(USUAL),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut file = file_of(&before);
            let newest = before.len() as u64;
            let mut write = SlotWrite::after(newest, &new);
            let written = cut.index(write.bytes.len() + 1);
            write.bytes.truncate(written);
            apply(&mut file, &write);
            let old = found(&as_text(&before[before.len() - 1]), newest);
            let new = found(&as_text(&new), newest + 1);
            let got = read(&file);
            prop_assert!(got == old || got == new, "{:?}", got);
        }

        #[test]
        fn a_flipped_bit_never_makes_another_record(
            ledger in ledgers(USUAL),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let mut file = file_of(std::slice::from_ref(&ledger));
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            match read(&file) {
                Reading::Unreadable => {}
                got => prop_assert_eq!(got, found(&as_text(&ledger), 1)),
            }
        }

        #[test]
        fn a_note_is_read_as_it_was_written_and_a_damaged_one_is_none(
            end in backend_end(),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let mut note = encode_note(&end);
            prop_assert_eq!(note.len(), NOTE_LEN);
            let whole = decode_note(&note);
            let read = whole.as_ref().map(|read| (read.launch, read.failure.is_some()));
            prop_assert_eq!(read, Some((end.launch, end.failure.is_some())));
            let at = at.index(note.len());
            note[at] ^= 1 << bit;
            let damaged = decode_note(&note);
            prop_assert!(damaged.is_none() || damaged == whole, "{:?}", damaged);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            let is_record = matches!(read(&bytes), Reading::Found { .. });
            prop_assert!(!is_record);
        }

        #[test]
        fn any_text_is_read_as_a_ledger_or_refused_without_a_panic(
            text in "((launch|boot|window|attempts|up-since|holder|charged|outcome|x) [0-9a-f./ ]{0,40}\n?){0,8}",
        ) {
            let _ = text.parse::<Ledger>();
        }
    }
}
