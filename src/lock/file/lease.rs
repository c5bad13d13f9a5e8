//! A held lock file with its ledger. Writing and settling are one step each, off the runtime's threads.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::checks::Filesystem;
use super::guard::SpawnLockGuard;
use super::home::Home;
use super::off_thread::off_thread;
use super::record;
use crate::ledger::Ledger;
use crate::lock::error::SpawnLockError;
use crate::lock::traits::SpawnLease;

/// Which file to lock, and how.
#[derive(Debug)]
pub(super) struct LockFile {
    pub(super) path: Arc<Path>,
    pub(super) home: Arc<Home>,
    pub(super) filesystem: Filesystem,
    pub(super) keeps_ledger: bool,
}

/// A held file lock.
#[derive(Debug)]
pub(super) struct FileLease {
    /// The ledger before the update, until the caller has this lease.
    pub(super) undo: Option<Box<Ledger>>,
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

    /// Makes the write with this number, unless a newer one was made.
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
    pub(super) fn new(guard: SpawnLockGuard, file: &LockFile, launch: u64, sequence: u64) -> Self {
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
    pub(super) fn write_now(&mut self, ledger: &Ledger) -> Result<(), SpawnLockError> {
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

#[cfg(test)]
mod tests {
    use super::super::guard::acquire_spawn_lock;
    use super::*;
    use crate::ledger::LedgerReading;

    fn ledger(launch: u64) -> Ledger {
        Ledger {
            launch,
            ..Ledger::default()
        }
    }

    fn take(path: &Path) -> FileLease {
        let file = LockFile {
            path: path.into(),
            home: Arc::new(Home::make(path.parent().unwrap()).unwrap()),
            filesystem: Filesystem::Local,
            keeps_ledger: true,
        };
        FileLease::new(acquire_spawn_lock(path).unwrap(), &file, 1, 0)
    }

    fn found(path: &Path) -> LedgerReading {
        record::peek(path).unwrap()
    }

    #[tokio::test]
    async fn a_write_that_comes_late_does_not_undo_a_newer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path);
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
        let mut lease = take(&path);
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

    #[tokio::test]
    async fn a_lock_is_free_once_it_is_settled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path);
        lease.settle(Some(&ledger(3))).await.unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(3))));
        drop(take(&path));
        drop(lease);
    }

    #[tokio::test]
    async fn a_write_that_comes_after_the_release_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path);
        lease.write_now(&ledger(1)).unwrap();
        let (shared, guard) = (Arc::clone(&lease.shared), lease.guard().unwrap());
        let late = lease.next_write();
        lease.settle(None).await.unwrap();
        shared.write(late, &guard, &ledger(2)).unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::new(ledger(1))));
    }

    #[test]
    fn a_write_that_waits_as_its_lease_is_dropped_neither_keeps_the_lock_nor_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.lock");
        let mut lease = take(&path);
        // What such a write has.
        let (shared, guard) = (Arc::clone(&lease.shared), lease.guard().unwrap());
        let number = lease.next_write();
        drop(lease);
        drop(take(&path));
        shared.write(number, &guard, &ledger(1)).unwrap();
        assert_eq!(found(&path), LedgerReading::Found(Box::default()));
    }
}
