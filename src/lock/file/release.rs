//! Waits for the release of a lock file, without trying to take the lock all the time.
//!
//! A probe checks whether the lock is free, through a read-only descriptor that stays open. So it costs one system call and
//! wakes nobody: waiters wake when a writable descriptor is closed.

#[cfg(not(any(target_os = "linux", target_os = "android")))]
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::inotify::FileWatch;
use super::{checks, descriptors, guard, record, sys};

/// The pause between two probes where the kernel reports a release. It may miss one: if a forked child has a copy of the
/// descriptor, say.
const PROBE_ANYWAY: Duration = Duration::from_millis(120);

/// The pause between two probes where the kernel does not report a release.
const PROBE_EVERY: Duration = Duration::from_millis(20);

/// The kernel closes a dead process's files right before it releases their locks.
const AFTER_A_CLOSE: Duration = Duration::from_millis(1);

/// Waits until the lock file at `path`, which was found locked, is free or replaced; for `pause` if that cannot be observed.
///
/// Its system calls are short and never wait, so it makes them on this thread.
pub(super) async fn released(path: &Path, pause: Duration) {
    // A program with many waits keeps its descriptors for its leases, and tries.
    let Some(slot) = descriptors::for_wait() else {
        return sleep(pause).await;
    };
    // Before the first probe, so that no event in between is missed.
    let mut watch = FileWatch::new(path);
    let opened = record::open_to_read(path).and_then(|file| {
        let identity = checks::identity_of(path, &file)?;
        Ok((file, identity))
    });
    let Ok((file, identity)) = opened else {
        return sleep(pause).await;
    };
    let probe = Arc::new((file, slot));
    let pause_unheard = match &mut watch {
        Some(watch) => {
            watch.keep(Arc::clone(&probe));
            PROBE_ANYWAY
        }
        None => PROBE_EVERY,
    };
    let mut heard = false;
    loop {
        match guard::is_locked(path, &probe.0) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => return sleep(pause).await,
        }
        if heard {
            // A file with constant events must not keep this busy.
            sleep(AFTER_A_CLOSE).await;
            heard = false;
            continue;
        }
        heard = heard_within(pause_unheard, &mut watch).await;
        if heard {
            match sys::path_identity(path) {
                Ok(current) if current == identity => {}
                Err(error) if !checks::is_gone(&error) => return sleep(pause).await,
                // Deleted or replaced.
                _ => return,
            }
        }
    }
}

/// Waits for an event of the file. Returns whether one came.
async fn heard_within(limit: Duration, watch: &mut Option<FileWatch>) -> bool {
    let heard = async {
        match watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    };
    timeout(limit, heard).await.is_ok()
}

/// On other platforms there is no notification.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
struct FileWatch;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl FileWatch {
    fn new(_path: &Path) -> Option<Self> {
        None
    }

    fn keep(&mut self, _probe: Arc<(File, descriptors::Slot)>) {}

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::future::Future;
    use std::mem::MaybeUninit;
    use std::path::PathBuf;
    use std::sync::mpsc;

    use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
    use rustix::io::Errno;
    use tokio::task::{spawn_blocking, yield_now};
    use tokio::time::Instant;

    use super::super::guard::acquire_spawn_lock;
    use super::super::inotify::{EVENTS, is_running};
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    /// Runs `test` while even paused time does not advance, so that no probe is ever due.
    async fn with_time_stopped(test: impl AsyncFnOnce()) {
        // Paused time does not advance while a blocking call is running.
        let (end, ended) = mpsc::channel::<()>();
        let running = spawn_blocking(move || ended.recv());
        let began = Instant::now();
        test().await;
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "it was not told, but probed"
        );
        drop(end);
        running.await.unwrap().unwrap_err();
    }

    fn lock_file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        (directory, path)
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_is_told_by_the_kernel_and_the_thread_that_hears_it_ends_with_the_last_wait()
    {
        let (_directory, path) = lock_file();
        let guard = acquire_spawn_lock(&path).unwrap();
        with_time_stopped(async || {
            let mut waits: Vec<_> = (0..3)
                .map(|_| tokio_test::task::spawn(released(&path, PAUSE)))
                .collect();
            waits
                .iter_mut()
                .for_each(|wait| tokio_test::assert_pending!(wait.poll()));
            assert!(is_running());
            drop(guard);
            for wait in waits {
                wait.await;
            }
            while is_running() {
                yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_file_that_is_deleted_or_replaced_is_not_waited_for() {
        let (directory, path) = lock_file();
        let _guard = acquire_spawn_lock(&path).unwrap();
        with_time_stopped(async || {
            let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
            tokio_test::assert_pending!(wait.poll());
            std::fs::remove_file(&path).unwrap();
            wait.await;
        })
        .await;

        let _guard = acquire_spawn_lock(&path).unwrap();
        with_time_stopped(async || {
            let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
            tokio_test::assert_pending!(wait.poll());
            std::fs::rename(&path, directory.path().join("moved")).unwrap();
            wait.await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_file_that_another_one_takes_the_place_of_is_not_waited_for() {
        let (directory, path) = lock_file();
        let other = directory.path().join("other");
        std::fs::write(&other, "").unwrap();
        let _guard = acquire_spawn_lock(&path).unwrap();
        with_time_stopped(async || {
            let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
            tokio_test::assert_pending!(wait.poll());
            std::fs::rename(&other, &path).unwrap();
            wait.await;
        })
        .await;
    }

    /// Lets the kernel tell of the file at `path`, and polls the wait then, which goes on.
    async fn goes_on_after_an_event<F: Future<Output = ()>>(
        wait: &mut tokio_test::task::Spawn<F>,
        path: &Path,
    ) {
        drop(std::fs::OpenOptions::new().write(true).open(path).unwrap());
        while !wait.is_woken() {
            yield_now().await;
        }
        tokio_test::assert_pending!(wait.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_file_that_somebody_else_opened_is_waited_for_as_long_as_it_is_locked() {
        let (_directory, path) = lock_file();
        let _guard = acquire_spawn_lock(&path).unwrap();
        with_time_stopped(async || {
            let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
            tokio_test::assert_pending!(wait.poll());
            goes_on_after_an_event(&mut wait, &path).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_file_that_cannot_be_looked_at_any_more_is_tried_again_after_the_pause() {
        let outer = tempfile::tempdir().unwrap();
        let [directory, moved] = ["locks", "moved"].map(|name| outer.path().join(name));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("backend.lock");
        let _guard = acquire_spawn_lock(&path).unwrap();
        let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
        with_time_stopped(async || {
            tokio_test::assert_pending!(wait.poll());
            std::fs::rename(&directory, &moved).unwrap();
            // A link that leads to itself.
            std::os::unix::fs::symlink(&directory, &directory).unwrap();
            goes_on_after_an_event(&mut wait, &moved.join("backend.lock")).await;
        })
        .await;
        let began = Instant::now();
        wait.await;
        assert_eq!(began.elapsed(), PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_that_the_kernel_does_not_tell_of_is_noticed_by_a_probe() {
        let (_directory, path) = lock_file();
        let guard = acquire_spawn_lock(&path).unwrap();
        // The descriptor stays open, as in a child between fork and exec.
        let copy = guard.file().try_clone().unwrap();
        let mut wait = tokio_test::task::spawn(released(&path, PAUSE));
        tokio_test::assert_pending!(wait.poll());
        drop(guard);
        wait.await;
        drop(copy);
    }

    #[test]
    fn a_try_while_waiting_does_not_wake_those_who_wait() {
        let (_directory, path) = lock_file();
        let guard = acquire_spawn_lock(&path).unwrap();
        let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&told, &path, EVENTS).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut told = Reader::new(told, &mut buffer);
        let try_again = || {
            let kind = guard::Try::WhileWaiting;
            guard::acquire_with(&path, checks::Filesystem::Local, kind)
        };
        drop(try_again().unwrap_err());
        assert_eq!(told.next().unwrap_err(), Errno::AGAIN);
        // A try that succeeds has a writable descriptor, so its release is reported.
        drop(guard);
        while told.next().is_ok() {}
        let taken = try_again().unwrap();
        record::write(&path, taken.file(), 0, &Default::default()).unwrap();
        drop(taken);
        assert!(told.next().is_ok());
    }

    /// Which may need that for an exclusive lock.
    #[test]
    fn a_try_while_waiting_opens_for_writing_on_a_file_system_that_may_be_another_machines() {
        let (_directory, path) = lock_file();
        let _guard = acquire_spawn_lock(&path).unwrap();
        let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&told, &path, WatchFlags::CLOSE_WRITE).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut told = Reader::new(told, &mut buffer);
        for (filesystem, is_told) in [
            (checks::Filesystem::Local, false),
            (checks::Filesystem::Any, true),
        ] {
            let kind = guard::Try::WhileWaiting;
            drop(guard::acquire_with(&path, filesystem, kind).unwrap_err());
            assert_eq!(told.next().is_ok(), is_told, "{filesystem:?}");
        }
    }

    #[test]
    fn a_probe_does_not_wake_those_who_wait() {
        let (_directory, path) = lock_file();
        let _guard = acquire_spawn_lock(&path).unwrap();
        let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&told, &path, WatchFlags::CLOSE_WRITE).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut told = Reader::new(told, &mut buffer);

        let file = record::open_to_read(&path).unwrap();
        assert!(guard::is_locked(&path, &file).unwrap());
        drop(file);
        assert_eq!(told.next().unwrap_err(), Errno::AGAIN);
        drop(acquire_spawn_lock(&path).unwrap_err());
        assert!(told.next().is_ok(), "a try opens for writing, and does");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_file_that_cannot_be_looked_at_is_tried_again_after_the_pause() {
        let (_directory, path) = lock_file();
        let began = Instant::now();
        released(&path, PAUSE).await;
        assert_eq!(began.elapsed(), PAUSE);
    }
}
