//! Notification by the kernel that a lock file was closed, deleted or replaced. Linux only.
//!
//! One thread serves all files that this process waits for. It exists while somebody waits, and a moment longer, and sleeps until
//! the kernel reports an event. The set of files is behind a mutex that is held for single steps.
//!
//! Only that thread closes the inotify instance. Closing one waits for a grace period of the kernel, up to most of a second,
//! which would stall a runtime. So a waiter holds no handle of it, and a thread is there before an instance is made.
//!
//! Most waits end with an event, and then the lock is taken. Not to be in the way, the thread tidies up a little later.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::watch::{Receiver, Sender};

use super::descriptors::Slot;

/// A holder has its lock file open for writing, so closing it is an event, also when the process dies.
pub(super) const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DONT_FOLLOW);

/// How long after an event the thread tidies up: takes away the watches of files that nobody waits for any more, and closes what
/// the waiters had open.
const TIDY_AFTER: Duration = Duration::from_millis(10);

const THREAD_NAME: &str = "spawn-gate-wait";

static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

struct Watcher {
    inotify: Arc<Instance>,
    /// Differs from that of each watcher before it.
    generation: u64,
    /// By the kernel's number for the file. Each waiter of a file has a receiver.
    files: HashMap<i32, Sender<()>>,
    /// For the thread to close.
    done_with: Vec<Arc<Probe>>,
    /// When the thread tidies up, if that is soon: then a wait that ends need not wake it.
    tidy_at: Option<Instant>,
}

/// The file that a waiter probes, and its place among those that may be open.
pub(super) type Probe = (File, Slot);

/// An inotify instance of the kernel.
struct Instance(OwnedFd);

/// A watch on one file.
pub(super) struct FileWatch {
    generation: u64,
    number: i32,
    /// Taken when the watch is dropped, under the mutex, so that the last one to go knows.
    changed: Option<Receiver<()>>,
    probe: Option<Arc<Probe>>,
}

fn watcher() -> MutexGuard<'static, Option<Watcher>> {
    // Poisoning is ignored: each step leaves the set consistent.
    WATCHER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileWatch {
    /// Watches the file at `path` from now on. Returns `None` if the kernel refuses (it has a limit per user) or no thread can be
    /// started.
    pub(super) fn new(path: &Path) -> Option<Self> {
        let mut watcher = watcher();
        if let Some(watcher) = &mut *watcher {
            let number = inotify::add_watch(&watcher.inotify.0, path, EVENTS).ok()?;
            return Some(watcher.subscribe(number));
        }
        let thread = WatcherThread::start()?;
        let inotify = Arc::new(Instance(inotify::init(CreateFlags::CLOEXEC).ok()?));
        let Ok(number) = inotify::add_watch(&inotify.0, path, EVENTS) else {
            thread.close(inotify);
            return None;
        };
        let started = watcher.insert(thread.serve(inotify));
        Some(started.subscribe(number))
    }

    /// Keeps a file open as long as the watch. The thread closes it if this is the last watch of the file, or ends soon after an event.
    pub(super) fn keep(&mut self, probe: Arc<Probe>) {
        self.probe = Some(probe);
    }

    /// Returns when an event of the file has come since the last call. Dropping the future loses none.
    pub(super) async fn changed(&mut self) {
        if let Some(changed) = &mut self.changed {
            if changed.changed().await.is_ok() {
                return;
            }
        }
        // The file is gone, which was reported before, or the thread is.
        std::future::pending().await
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        let mut watcher = watcher();
        drop(self.changed.take());
        let Some(watcher) = of_generation(&mut watcher, self.generation) else {
            return;
        };
        if watcher.tidy_at.is_some() {
            watcher.done_with.extend(self.probe.take());
            return;
        }
        // The kernel answers with `IGNORED`, so the thread checks whether this was the last watch.
        if let Entry::Occupied(file) = watcher.files.entry(self.number) {
            if file.get().receiver_count() == 0 {
                file.remove();
                watcher.done_with.extend(self.probe.take());
                let _ = inotify::remove_watch(&watcher.inotify.0, self.number);
            }
        }
    }
}

/// The thread that serves an instance, and closes it. It waits for that at first.
struct WatcherThread(mpsc::Sender<(Arc<Instance>, Option<u64>)>);

impl WatcherThread {
    fn start() -> Option<Self> {
        let (hand_over, handed_over) = mpsc::channel();
        thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .stack_size(64 * 1024)
            .spawn(move || match handed_over.recv() {
                Ok((inotify, Some(generation))) => serve(&inotify, generation),
                Ok((inotify, None)) => drop(inotify),
                // No instance was made.
                Err(_) => {}
            })
            .ok()?;
        Some(Self(hand_over))
    }

    fn serve(self, inotify: Arc<Instance>) -> Watcher {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);

        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        // The thread waits for it.
        let _ = self.0.send((Arc::clone(&inotify), Some(generation)));
        Watcher {
            inotify,
            generation,
            files: HashMap::new(),
            done_with: Vec::new(),
            tidy_at: None,
        }
    }

    fn close(self, inotify: Arc<Instance>) {
        let _ = self.0.send((inotify, None));
    }
}

impl Watcher {
    fn subscribe(&mut self, number: i32) -> FileWatch {
        let file = self.files.entry(number).or_insert_with(|| Sender::new(()));
        FileWatch {
            generation: self.generation,
            number,
            changed: Some(file.subscribe()),
            probe: None,
        }
    }

    /// Returns the senders to notify. Those of a file that is gone are removed, and dropping them notifies for the last time.
    fn hear(&mut self, number: i32, events: ReadFlags) -> Vec<Sender<()>> {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.files.values().cloned().collect()
        } else if events.contains(ReadFlags::IGNORED) {
            self.files.remove(&number).into_iter().collect()
        } else {
            self.files.get(&number).cloned().into_iter().collect()
        }
    }

    /// Takes away the watches of files that nobody waits for any more.
    fn tidy(&mut self) {
        self.tidy_at = None;
        self.files.retain(|&number, file| {
            let is_awaited = file.receiver_count() > 0;
            if !is_awaited {
                // It may be gone with its file.
                let _ = inotify::remove_watch(&self.inotify.0, number);
            }
            is_awaited
        });
    }
}

/// The watcher, unless another one has replaced it.
fn of_generation(watcher: &mut Option<Watcher>, generation: u64) -> Option<&mut Watcher> {
    watcher
        .as_mut()
        .filter(|watcher| watcher.generation == generation)
}

/// What the thread does next.
enum Next {
    Tell(i32, ReadFlags),
    Tidy,
    /// No more events will come: the waiters probe by themselves.
    End,
}

/// Waits for the next event, or until it is time to tidy up.
fn next(reader: &mut Reader<'_, &OwnedFd>, inotify: &OwnedFd, tidy_at: Option<Instant>) -> Next {
    loop {
        if let Some(tidy_at) = tidy_at {
            // Events that come again and again must not put it off.
            let left = tidy_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Tidy;
            }
            if reader.is_buffer_empty() {
                let readable = &mut [PollFd::new(inotify, PollFlags::IN)];
                match poll(readable, Timespec::try_from(left).ok().as_ref()) {
                    Ok(0) | Err(Errno::INTR) => continue,
                    Ok(_) => {}
                    Err(_) => return Next::End,
                }
            }
        }
        match reader.next() {
            Ok(event) => return Next::Tell(event.wd(), event.events()),
            Err(Errno::INTR) => {}
            Err(_) => return Next::End,
        }
    }
}

/// Passes on the kernel's events until nobody waits any more.
fn serve(inotify: &Arc<Instance>, generation: u64) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&inotify.0, &mut buffer);
    let mut tidy_at = None;
    loop {
        let next = next(&mut reader, &inotify.0, tidy_at);
        let mut watcher = watcher();
        let Some(current) = of_generation(&mut watcher, generation) else {
            return;
        };
        let mut to_tell = Vec::new();
        match next {
            Next::Tell(number, events) => {
                to_tell = current.hear(number, events);
                if !to_tell.is_empty() {
                    let tidy_at = || Instant::now() + TIDY_AFTER;
                    current.tidy_at.get_or_insert_with(tidy_at);
                }
            }
            Next::Tidy => current.tidy(),
            Next::End => to_tell = current.files.drain().map(|(_, file)| file).collect(),
        }
        tidy_at = current.tidy_at;
        let done_with = std::mem::take(&mut current.done_with);
        let is_over = current.files.is_empty();
        let ended = is_over.then(|| watcher.take());
        // Notifying runs the waiters' wakers, which may be user code: not under the mutex.
        drop(watcher);
        to_tell.iter().for_each(|file| file.send_replace(()));
        drop((to_tell, ended, done_with));
        if is_over {
            return;
        }
    }
}

/// Whether the thread exists.
#[cfg(all(test, target_os = "linux"))]
pub(super) fn is_running() -> bool {
    watcher().is_some()
}

/// Where instances were closed.
#[cfg(test)]
static CLOSED_BY: Mutex<Vec<Option<String>>> = Mutex::new(Vec::new());

#[cfg(test)]
impl Drop for Instance {
    fn drop(&mut self) {
        let name = thread::current().name().map(str::to_owned);
        CLOSED_BY
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::mpsc;
    use std::task::{Context, Wake};
    use std::time::Duration;

    use super::*;

    /// A waker that drops the watch, which needs the mutex.
    struct Drops {
        watch: Mutex<Option<FileWatch>>,
        done: Mutex<mpsc::Sender<()>>,
    }

    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            let watch = self.watch.lock().unwrap().take();
            drop(watch);
            self.done.lock().unwrap().send(()).unwrap();
        }
    }

    #[test]
    fn whoever_is_woken_may_end_a_wait_there_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        std::fs::write(&path, "").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        let (done, is_done) = mpsc::channel();
        let drops = Arc::new(Drops {
            watch: Mutex::new(FileWatch::new(&path)),
            done: Mutex::new(done),
        });
        let waker = Arc::clone(&drops).into();
        let mut changed = std::pin::pin!(watch.changed());
        assert!(
            changed
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        std::fs::write(&path, "changed").unwrap();
        // Only so that the test fails rather than hangs.
        is_done
            .recv_timeout(Duration::from_secs(60))
            .expect("the thread is stuck");
    }

    #[test]
    fn waits_that_come_and_go_close_no_instance_on_the_thread_of_a_waiter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        let closed = || CLOSED_BY.lock().unwrap().clone();
        // The file is not there yet, so the kernel refuses to watch it.
        assert!(FileWatch::new(&path).is_none());
        std::fs::write(&path, "").unwrap();
        for _ in 0..20 {
            drop(FileWatch::new(&path).unwrap());
        }
        while closed().is_empty() {
            thread::yield_now();
        }
        for name in closed() {
            assert_eq!(name.as_deref(), Some(THREAD_NAME));
        }
    }

    #[test]
    fn events_that_come_again_and_again_do_not_put_off_the_end_of_the_thread() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        std::fs::write(&path, "").unwrap();
        let inotify = inotify::init(CreateFlags::empty()).unwrap();
        inotify::add_watch(&inotify, &path, EVENTS).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&inotify, &mut buffer);
        std::fs::write(&path, "changed").unwrap();
        let now = Instant::now();
        assert!(matches!(next(&mut reader, &inotify, Some(now)), Next::Tidy));
        let later = now + Duration::from_secs(3600);
        assert!(matches!(
            next(&mut reader, &inotify, Some(later)),
            Next::Tell(..)
        ));
    }

    #[tokio::test]
    async fn a_wait_that_ends_leaves_another_wait_for_the_same_file_to_be_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend.lock");
        std::fs::write(&path, "").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        drop(FileWatch::new(&path).unwrap());
        std::fs::write(&path, "changed").unwrap();
        // Only so that the test fails rather than hangs.
        tokio::time::timeout(Duration::from_secs(60), watch.changed())
            .await
            .expect("it is not told");
    }
}
