//! A lock file with a record, by hand: what a careful user writes who wants a budget and an outcome that all processes share and
//! that a kill at any moment does not corrupt. Two hops to another thread: one takes the lock and charges, the other settles.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fd_lock::RwLock;
use rustix::fs::{FlockOperation, OFlags, flock, fstat, stat};
use tokio::task::spawn_blocking;

/// A record is written to the slot that does not hold the newest one, so a write that is cut short loses none.
const SLOT_LEN: usize = 128;

/// The default budget: so many attempts in so many milliseconds.
const MOST_ATTEMPTS: u32 = 3;
const WINDOW: u64 = 30_000;

/// What all processes share about a key. Empty if nothing was written yet.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    sequence: u64,
    /// The fencing token of the newest holder.
    launch: u64,
    /// The process that launches; zero if none does.
    holder: u32,
    window_began: u64,
    attempts: u32,
    /// The newest launch that succeeded.
    launched: u64,
}

impl Record {
    /// Reads the newest whole record.
    fn read(file: &File) -> io::Result<Self> {
        let mut slots = [0; 2 * SLOT_LEN];
        let len = file.read_at(&mut slots, 0)?;
        let records = slots[..len].chunks(SLOT_LEN).filter_map(Self::parse);
        let newest = records.max_by_key(|record| record.sequence);
        Ok(newest.unwrap_or_default())
    }

    fn parse(slot: &[u8]) -> Option<Self> {
        let (line, _) = std::str::from_utf8(slot).ok()?.split_once('\n')?;
        let (sum, body) = line.split_once(' ')?;
        if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(body.as_bytes()) {
            return None;
        }
        let mut numbers = body.split(' ');
        let mut next = || numbers.next()?.parse::<u64>().ok();
        Some(Self {
            sequence: next()?,
            launch: next()?,
            holder: u32::try_from(next()?).ok()?,
            window_began: next()?,
            attempts: u32::try_from(next()?).ok()?,
            launched: next()?,
        })
    }

    fn write(&mut self, file: &File) -> io::Result<()> {
        self.sequence += 1;
        let Self {
            sequence,
            launch,
            holder,
            window_began,
            attempts,
            launched,
        } = self;
        let body = format!("{sequence} {launch} {holder} {window_began} {attempts} {launched}");
        let mut slot = format!("{:08x} {body}\n", crc32fast::hash(body.as_bytes())).into_bytes();
        slot.resize(SLOT_LEN, b' ');
        file.write_all_at(&slot, *sequence % 2 * SLOT_LEN as u64)
    }

    /// Charges an attempt at the time `now`, for this process. False if none is left.
    fn charge(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.window_began) >= WINDOW {
            (self.window_began, self.attempts) = (now, 0);
        }
        if self.attempts >= MOST_ATTEMPTS {
            return false;
        }
        self.attempts += 1;
        self.launch = now.max(self.launch + 1);
        self.holder = std::process::id();
        true
    }
}

/// A held lock, and the record as it was written last.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
    record: Record,
}

/// Whether to wait for a holder, on the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfHeld {
    /// Wait.
    Wait,
    /// Fail.
    Fail,
}

/// Takes the lock and charges an attempt, in one hop.
///
/// # Errors
///
/// If the lock is held, or was replaced; if no attempt is left; if the file cannot be used.
///
/// # Panics
///
/// If the runtime ends meanwhile.
pub async fn take(path: PathBuf, if_held: IfHeld) -> io::Result<Held> {
    let taken = spawn_blocking(move || Held::take(path, if_held)).await;
    taken.expect("it does not panic")
}

/// Returns the newest launch that succeeded, without the lock.
///
/// # Errors
///
/// If the file cannot be read.
///
/// # Panics
///
/// If the runtime ends meanwhile.
pub async fn newest_success(path: PathBuf) -> io::Result<u64> {
    let look = move || match File::open(path) {
        Ok(file) => Ok(Record::read(&file)?.launched),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    spawn_blocking(look).await.expect("it does not panic")
}

impl Held {
    fn take(path: PathBuf, if_held: IfHeld) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = options.truncate(false).open(&path)?;
        let mut lock = RwLock::new(file);
        // The lock belongs to the open file, so forgetting this borrow keeps it.
        mem::forget(match if_held {
            IfHeld::Wait => lock.write()?,
            IfHeld::Fail => lock.try_write()?,
        });
        let file = lock.into_inner();
        verify(&file, &path)?;
        let mut record = Record::read(&file)?;
        if !record.charge(now()) {
            return Err(io::Error::other("no attempt is left"));
        }
        record.write(&file)?;
        Ok(Self { file, path, record })
    }

    /// Returns the newest launch that succeeded before this one.
    pub fn newest_success(&self) -> u64 {
        self.record.launched
    }

    /// Checks that the lock is still held, right before the launch.
    ///
    /// # Errors
    ///
    /// If it is lost.
    pub fn verify(&self) -> io::Result<()> {
        verify(&self.file, &self.path)
    }

    /// Writes a success, which resets the budget, and releases the lock, in one hop.
    ///
    /// # Errors
    ///
    /// If the lock was lost, or the record cannot be written.
    ///
    /// # Panics
    ///
    /// If the runtime ends meanwhile.
    pub async fn succeed(mut self) -> io::Result<()> {
        let settled = spawn_blocking(move || {
            self.verify()?;
            self.record.attempts = 0;
            self.record.holder = 0;
            self.record.launched = self.record.launch;
            self.record.write(&self.file)?;
            flock(&self.file, FlockOperation::Unlock)?;
            Ok(())
        });
        settled.await.expect("it does not panic")
    }
}

/// Compares the handle's identity with the path's.
fn verify(file: &File, path: &Path) -> io::Result<()> {
    let (opened, found) = (fstat(file)?, stat(path)?);
    if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::Error::other("the lock file was replaced"));
    }
    Ok(())
}

/// The wall clock in milliseconds, which all processes share.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
