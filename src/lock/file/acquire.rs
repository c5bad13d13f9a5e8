//! One try at a lock file: take the lock, read the ledger, write what was decided on it, in one step off the runtime's threads.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::descriptors::{self, Slot};
use super::guard::{Opened, SpawnLockGuard, Try};
use super::lease::{FileLease, LockFile};
use super::off_thread::off_thread_again;
use super::record;
use crate::ledger::LedgerReading;
use crate::lock::error::SpawnLockError;
use crate::lock::traits::{LockRequest, TryAcquire};

/// The directory may be gone, then its mode and that of the file may be wrong.
const MOST_MENDS: u32 = 3;

/// Tries to lock a file once.
pub(super) async fn try_acquire(
    file: LockFile,
    request: LockRequest,
) -> Result<TryAcquire, SpawnLockError> {
    let slot = match descriptors::for_lease_now() {
        Some(slot) => slot,
        // Boxed, to keep this future small.
        None => match Box::pin(lease_or_answer(&file, &request)).await? {
            Ok(slot) => slot,
            Err(ledger) => return Ok(TryAcquire::Answered(ledger)),
        },
    };
    // If this future is dropped, the closure still runs. Its lease is dropped with its task, which takes back what it wrote and
    // unlocks.
    let path = Arc::clone(&file.path);
    let tried = off_thread_again(path, move |_| file.take(request, Some(slot))).await?;
    Ok(match tried {
        Tried::Taken(mut lease) => {
            lease.undo = None;
            TryAcquire::Acquired(Box::new(lease))
        }
        Tried::Held { lock, ledger } => TryAcquire::Held { lock, ledger },
        Tried::Answered(ledger) => TryAcquire::Answered(ledger),
    })
}

/// How often a caller in the queue for a lease looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits for a lease. Meanwhile, a caller that waits for another's launch looks for its outcome, which takes no lease.
fn lease_or_answer<'a>(
    file: &'a LockFile,
    request: &LockRequest,
) -> impl Future<Output = Result<Result<Slot, LedgerReading>, SpawnLockError>> + use<'a> {
    let (known, deadline) = (request.known, request.deadline);
    let looks = request.is_waiting && file.keeps_ledger;
    async move {
        // One future, which keeps its place in the queue.
        let mut slot = pin!(descriptors::for_lease(&file.path, deadline));
        if !looks {
            return slot.await.map(Ok);
        }
        loop {
            match look(Arc::clone(&file.path)).await {
                Ok(ledger) if known.is_answered_by(&ledger) => return Ok(Err(ledger)),
                _ => {}
            }
            if let Ok(slot) = timeout(LOOK_EVERY, slot.as_mut()).await {
                return slot.map(Ok);
            }
        }
    }
}

/// Reads the ledger of the lock file at `path` without touching the lock.
pub(super) async fn look(path: Arc<Path>) -> Result<LedgerReading, SpawnLockError> {
    let slot = descriptors::for_look().await;
    let peek = move |path: &Path| {
        let _slot = slot;
        record::peek(path)
    };
    off_thread_again(path, peek).await
}

/// The result of a try: the lock `L`, or why it was not taken.
enum Tried<L> {
    Taken(L),
    Held {
        lock: PathBuf,
        ledger: LedgerReading,
    },
    Answered(LedgerReading),
}

impl LockFile {
    /// Takes the lock, reads its ledger, applies the update, and writes the result.
    fn take(
        self,
        request: LockRequest,
        slot: Option<Slot>,
    ) -> Result<Tried<FileLease>, SpawnLockError> {
        let path = &*self.path;
        let mut mends = 0;
        let locked = loop {
            let mended = match self.lock(&request) {
                Err(error) if mends < MOST_MENDS => self.home.mend(path, error),
                locked => break locked?,
            };
            mended?;
            mends += 1;
        };
        let guard = match locked {
            Tried::Taken(guard) => guard.with(slot),
            Tried::Held { lock, ledger } => return Ok(Tried::Held { lock, ledger }),
            Tried::Answered(ledger) => return Ok(Tried::Answered(ledger)),
        };
        if !self.keeps_ledger {
            let lease = FileLease::new(guard, &self, unrecorded_launch(), 0);
            return Ok(Tried::Taken(lease));
        }
        let (ledger, sequence) = record::read(path, guard.file())?;
        let launch = match &ledger {
            LedgerReading::Found(ledger) => launch_after(ledger.fencing_token()),
            _ => launch_after(0),
        };
        let mut lease = FileLease::new(guard, &self, launch, sequence);
        let undo = match &ledger {
            LedgerReading::Found(ledger) => Some(ledger.clone()),
            _ => None,
        };
        if let Some(updated) = request.update.apply(ledger, launch) {
            lease.write_now(&updated)?;
            lease.undo = undo;
        }
        Ok(Tried::Taken(lease))
    }

    /// Locks the file, unless the record answers the request or the lock is held.
    fn lock(&self, request: &LockRequest) -> Result<Tried<SpawnLockGuard>, SpawnLockError> {
        let kind = match request.is_waiting {
            true => Try::WhileWaiting,
            false => Try::First,
        };
        let opened = Opened::open(Arc::clone(&self.path), self.filesystem, kind)?;
        // A caller that has not read the ledger yet is told what it had before the try: what a holder writes from then on is news.
        let reads_first = request.is_waiting || request.known.news_seen.is_none();
        let bytes = (self.keeps_ledger && reads_first).then(|| record::Bytes::read(opened.file()));
        let parse = || match &bytes {
            // It may be unknown what a holder wrote.
            Some(bytes) => bytes
                .as_ref()
                .map_or(LedgerReading::Unreadable, record::Bytes::ledger),
            None if self.keeps_ledger => {
                record::peek(&self.path).unwrap_or(LedgerReading::Unreadable)
            }
            None => LedgerReading::NotKept,
        };
        let mut read = None;
        if request.is_waiting {
            let ledger = parse();
            if request.is_answered_by(&ledger) {
                return Ok(Tried::Answered(ledger));
            }
            read = Some(ledger);
        }
        match opened.lock() {
            Err(SpawnLockError::AlreadyLocked { path: lock }) => Ok(Tried::Held {
                lock,
                ledger: read.unwrap_or_else(parse),
            }),
            locked => locked.map(Tried::Taken),
        }
    }
}

/// The fencing token after `last`: the wall clock's microseconds, so that it grows also if the lock file was deleted; but at
/// least `last + 1`, so that it grows also if the clock was set back.
fn launch_after(last: u64) -> u64 {
    let micros = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    last.saturating_add(1).max(micros)
}

/// A fencing token without a ledger: it grows within this process, and from process to process with the wall clock.
fn unrecorded_launch() -> u64 {
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    token_after(&NEWEST, launch_after(0))
}

/// `now` if that is above the newest token, otherwise the number after that.
fn token_after(newest: &AtomicU64, now: u64) -> u64 {
    if newest.fetch_max(now, Ordering::Relaxed) < now {
        return now;
    }
    newest.fetch_add(1, Ordering::Relaxed) + 1
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::checks::Filesystem;
    use super::super::home::Home;
    use super::*;
    use crate::budget::ClockReading;
    use crate::ledger::{Known, LastOutcome, Ledger};
    use crate::lock::traits::LedgerUpdate;

    fn ledger(launch: u64) -> Ledger {
        Ledger {
            launch,
            ..Ledger::default()
        }
    }

    fn home(path: &Path) -> Arc<Home> {
        Arc::new(Home::make(path.parent().unwrap()).unwrap())
    }

    fn take(path: &Path, update: LedgerUpdate) -> FileLease {
        let file = LockFile {
            path: path.into(),
            home: home(path),
            filesystem: Filesystem::Local,
            keeps_ledger: true,
        };
        match file
            .take(LockRequest::new(update, Instant::now()), None)
            .unwrap()
        {
            Tried::Taken(lease) => lease,
            _ => panic!("it is not free"),
        }
    }

    fn found(path: &Path) -> LedgerReading {
        record::peek(path).unwrap()
    }

    #[test]
    fn a_lease_that_nobody_came_for_takes_back_what_it_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut first = take(&path, LedgerUpdate::new(|_, _| Some(ledger(1))));
        first.undo = None;
        drop(first);

        drop(take(&path, LedgerUpdate::new(|_, _| Some(ledger(2)))));
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(1))));
    }

    #[test]
    fn fencing_tokens_without_a_ledger_grow_also_within_a_microsecond_and_if_the_clock_is_set_back()
    {
        let newest = AtomicU64::new(0);
        let tokens = [5, 5, 6, 9, 2, 10, 12].map(|now| token_after(&newest, now));
        assert_eq!(tokens, [5, 6, 7, 9, 10, 11, 12]);
        assert!(unrecorded_launch() < unrecorded_launch());
    }

    #[test]
    fn a_directory_that_is_wrong_again_and_again_is_mended_a_few_times_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let file = LockFile {
            // The directory of this file is not the one that is made again.
            path: directory.path().join("gone").join("indexer.lock").into(),
            home: Arc::new(Home::make(directory.path()).unwrap()),
            filesystem: Filesystem::Local,
            keeps_ledger: true,
        };
        let taken = file.take(LockRequest::new(LedgerUpdate::none(), Instant::now()), None);
        assert!(matches!(taken, Err(SpawnLockError::Open { .. })));
    }

    #[test]
    fn a_try_while_waiting_ends_by_a_record_that_tells_enough_and_takes_the_lock_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let at = ClockReading {
            unix: Duration::ZERO,
            boot: None,
        };
        let launched = Ledger {
            last_outcome: Some(LastOutcome {
                launch: 7,
                at,
                failure: None,
            }),
            ..ledger(7)
        };
        let mut first = take(&path, LedgerUpdate::new(|_, _| Some(launched)));
        first.undo = None;
        drop(first);
        for (is_waiting, news_seen, can_look, is_answer) in [
            (true, Some(6), true, true),
            // Without a look, a success is no answer.
            (true, Some(6), false, false),
            (true, Some(7), true, false),
            (true, None, true, false),
            (false, Some(6), true, false),
        ] {
            let mut request = LockRequest::new(LedgerUpdate::none(), Instant::now());
            request.is_waiting = is_waiting;
            request.known = Known {
                news_seen,
                can_look,
                ..Known::default()
            };
            let file = LockFile {
                path: path.as_path().into(),
                home: home(&path),
                filesystem: Filesystem::Local,
                keeps_ledger: true,
            };
            let tried = file.take(request, None).unwrap();
            assert_eq!(matches!(tried, Tried::Answered(_)), is_answer);
            assert_eq!(matches!(tried, Tried::Taken(_)), !is_answer);
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[tokio::test]
    async fn a_try_by_one_who_waits_wakes_nobody_else() {
        use std::mem::MaybeUninit;

        use rustix::fs::inotify::{self, CreateFlags, Reader};

        use super::super::inotify::EVENTS;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let _held = take(&path, LedgerUpdate::none());
        let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&told, &path, EVENTS).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut told = Reader::new(told, &mut buffer);
        for is_waiting in [true, false] {
            let file = LockFile {
                path: path.as_path().into(),
                home: home(&path),
                filesystem: Filesystem::Local,
                keeps_ledger: true,
            };
            let now = tokio::time::Instant::now();
            let mut request = LockRequest::new(LedgerUpdate::none(), now);
            request.is_waiting = is_waiting;
            let tried = try_acquire(file, request).await.unwrap();
            assert!(matches!(tried, TryAcquire::Held { .. }));
            assert_eq!(told.next().is_err(), is_waiting);
        }
    }
}
