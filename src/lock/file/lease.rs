//! A held lock file with its ledger. Taking, writing and settling are one step each, off the runtime's threads.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::time::timeout;

use super::descriptors::{self, Slot};
use super::guard::{Filesystem, Opened, SpawnLockGuard, Try};
use super::home::Home;
use super::off_thread::{off_thread, off_thread_again};
use super::record;
use crate::ledger::{Ledger, LedgerReading};
use crate::lock::error::SpawnLockError;
use crate::lock::traits::{LockRequest, SpawnLease, TryAcquire};

/// Which file to lock, and how.
#[derive(Debug)]
pub(super) struct LockFile {
    pub(super) path: Arc<Path>,
    pub(super) home: Arc<Home>,
    pub(super) filesystem: Filesystem,
    pub(super) keeps_ledger: bool,
}

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
        let opened = Opened::open(
            Arc::clone(&self.path),
            self.home.path(),
            self.filesystem,
            kind,
        )?;
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

/// A held file lock.
#[derive(Debug)]
struct FileLease {
    /// The ledger before the update, until the caller has this lease.
    undo: Option<Box<Ledger>>,
    shared: Arc<Shared>,
    path: Arc<Path>,
    /// The number of writes begun.
    writes: u64,
    launch: u64,
    filesystem: Filesystem,
    keeps_ledger: bool,
}

/// What a lease shares with its calls, which may outlast it.
#[derive(Debug)]
struct Shared {
    /// The guard, until the lock is settled. A call in progress has a copy, so that the files are closed when it is done; that of
    /// the settlement takes this one, so that they are closed there.
    guard: Mutex<Option<Arc<SpawnLockGuard>>>,
    /// What reached the file. Locked during a write, so that two do not mix: a write that timed out may still be in progress when
    /// the next one begins.
    written: Mutex<Written>,
}

impl Shared {
    fn copy_guard(&self) -> Option<Arc<SpawnLockGuard>> {
        self.guard().as_ref().map(Arc::clone)
    }

    fn take_guard(&self) -> Option<Arc<SpawnLockGuard>> {
        self.guard().take()
    }

    /// Held only to copy or to take, never during a system call.
    fn guard(&self) -> MutexGuard<'_, Option<Arc<SpawnLockGuard>>> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the write with the number `this`, unless a newer one was made.
    fn write(
        &self,
        number: u64,
        guard: &SpawnLockGuard,
        ledger: &Ledger,
    ) -> Result<(), SpawnLockError> {
        let mut written = self.written();
        if written.newest >= number {
            // This one is late, or made already: it must not overwrite a newer write or another holder's record.
            return Ok(());
        }
        // A failed write is repeated in the same slot, since the other slot holds the last good record.
        record::write(guard.path(), guard.file(), written.sequence, ledger)?;
        written.sequence = written.sequence.saturating_add(1);
        written.newest = number;
        Ok(())
    }

    /// Prevents further writes, before the lock is released.
    fn end_writes(&self) {
        self.written().newest = u64::MAX;
    }
}

#[derive(Debug)]
struct Written {
    /// The number of the newest record in the file.
    sequence: u64,
    /// The number of the write that wrote it.
    newest: u64,
}

impl FileLease {
    fn new(guard: SpawnLockGuard, file: &LockFile, launch: u64, sequence: u64) -> Self {
        Self {
            undo: None,
            path: Arc::clone(&file.path),
            shared: Arc::new(Shared {
                guard: Mutex::new(Some(Arc::new(guard))),
                written: Mutex::new(Written {
                    sequence,
                    newest: 0,
                }),
            }),
            writes: 0,
            launch,
            filesystem: file.filesystem,
            keeps_ledger: file.keeps_ledger,
        }
    }

    fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    fn guard(&self) -> Result<Arc<SpawnLockGuard>, SpawnLockError> {
        self.shared
            .copy_guard()
            .ok_or_else(|| SpawnLockError::Identity {
                path: self.path.to_path_buf(),
                source: io::Error::other("it was let go of"),
            })
    }

    /// Makes a call off the runtime's threads. If no thread can be started, it makes the call here: a record takes microseconds
    /// on a local file system, and without it, a launch that succeeded counts as failed. The call may be made twice.
    fn off_thread_or_here<'a, C>(
        &'a self,
        call: C,
    ) -> impl Future<Output = Result<(), SpawnLockError>> + use<'a, C>
    where
        C: Fn() -> Result<(), SpawnLockError> + Send + Sync + 'static,
    {
        let call = Arc::new(call);
        let there = Arc::clone(&call);
        let called = off_thread(Arc::clone(&self.path), move |_| there());
        async move {
            match called.await {
                Err(SpawnLockError::NoThread { .. }) if self.filesystem == Filesystem::Local => {
                    call()
                }
                called => called,
            }
        }
    }

    /// Writes on this thread, which must be one that may block.
    fn write_now(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let number = self.next_write();
        self.shared.write(number, &*self.guard()?, ledger)
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        if let Some(before) = self.undo.take() {
            // The caller never got this lease, so nothing was launched. If the undo fails, the charge stays, which is safe.
            let _ = self.write_now(&before);
        }
        let Some(guard) = self.shared.take_guard() else {
            return;
        };
        // A write that timed out may still wait for a thread and share the guard: it must neither happen after this nor keep the
        // lock. A write in progress releases the lock when it is done.
        if let Ok(mut written) = self.shared.written.try_lock() {
            written.newest = u64::MAX;
            guard.unlock();
        }
    }
}

#[async_trait]
impl SpawnLease for FileLease {
    fn fencing_token(&self) -> u64 {
        self.launch
    }

    async fn verify(&self) -> Result<(), SpawnLockError> {
        if let Some(verified) = self.verify_now() {
            return verified;
        }
        let Some(guard) = self.shared.copy_guard() else {
            return Ok(());
        };
        off_thread(Arc::clone(&self.path), move |_| guard.verify()).await
    }

    fn verify_now(&self) -> Option<Result<(), SpawnLockError>> {
        match self.filesystem {
            // One `lstat`: too short to move to another thread. Only a settlement that has verified the lock takes the guard: it
            // may not have returned yet.
            Filesystem::Local => Some(
                self.shared
                    .copy_guard()
                    .map_or(Ok(()), |guard| guard.verify()),
            ),
            Filesystem::Any => None,
        }
    }

    async fn write_ledger(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
        let number = self.next_write();
        let shared = Arc::clone(&self.shared);
        let guard = self.guard()?;
        let ledger = ledger.clone();
        self.off_thread_or_here(move || shared.write(number, &guard, &ledger))
            .await
    }

    async fn settle(&mut self, ledger: Option<&Ledger>) -> Result<(), SpawnLockError> {
        let number = self.next_write();
        let shared = Arc::clone(&self.shared);
        let ledger = ledger.cloned();
        self.off_thread_or_here(move || {
            let Some(guard) = shared.copy_guard() else {
                // This call was made already.
                return Ok(());
            };
            guard.verify()?;
            if let Some(ledger) = &ledger {
                // A report that came during the launch: the next one would take its place.
                let noted = record::read_note(guard.file()).map(|end| {
                    let mut ledger = ledger.clone();
                    ledger.note_backend_end(&end);
                    ledger
                });
                shared.write(number, &guard, noted.as_ref().unwrap_or(ledger))?;
            }
            shared.end_writes();
            guard.unlock();
            shared.take_guard();
            Ok(())
        })
        .await
    }

    fn settle_now(&self) -> Option<Result<(), SpawnLockError>> {
        if self.keeps_ledger {
            return None;
        }
        self.verify_now()
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

    use super::*;
    use crate::budget::ClockReading;
    use crate::ledger::{Known, LastOutcome};
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

    #[tokio::test]
    async fn a_write_that_comes_late_does_not_undo_a_newer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path, LedgerUpdate::none());
        // The second write comes first, as if the first had waited for a thread.
        lease.writes = 1;
        lease.write_ledger(&ledger(2)).await.unwrap();
        lease.writes = 0;
        lease.write_ledger(&ledger(1)).await.unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(2))));
    }

    #[tokio::test]
    async fn a_settlement_that_did_not_return_in_time_is_no_loss() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path, LedgerUpdate::none());
        let shared = Arc::clone(&lease.shared);
        // The call waits for a write in progress.
        let writing = shared.written();
        let mut settling = tokio_test::task::spawn(lease.settle(None));
        tokio_test::assert_pending!(settling.poll());
        drop(settling);
        drop(writing);
        // It goes on, on its thread.
        while shared.copy_guard().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(lease.verify_now(), Some(Ok(()))));
        lease.verify().await.unwrap();
        lease.settle(Some(&ledger(1))).await.unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::default()));
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

    #[tokio::test]
    async fn a_lock_is_free_once_it_is_settled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path, LedgerUpdate::none());
        lease.settle(Some(&ledger(3))).await.unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(3))));
        drop(take(&path, LedgerUpdate::none()));
        drop(lease);
    }

    #[test]
    fn fencing_tokens_without_a_ledger_grow_also_within_a_microsecond_and_if_the_clock_is_set_back()
    {
        let newest = AtomicU64::new(0);
        let tokens = [5, 5, 6, 9, 2, 10, 12].map(|now| token_after(&newest, now));
        assert_eq!(tokens, [5, 6, 7, 9, 10, 11, 12]);
        assert!(unrecorded_launch() < unrecorded_launch());
    }

    #[tokio::test]
    async fn a_write_that_comes_after_the_release_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path, LedgerUpdate::new(|_, _| Some(ledger(1))));
        let (shared, guard) = (Arc::clone(&lease.shared), lease.guard().unwrap());
        let late = lease.next_write();
        lease.settle(None).await.unwrap();
        shared.write(late, &guard, &ledger(2)).unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(1))));
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
