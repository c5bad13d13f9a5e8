//! Notification by the kernel that a lock file was closed, deleted or replaced. Linux only.
//!
//! One thread serves all files that this process waits for. It exists only while somebody waits, and sleeps until the kernel
//! reports an event. The set of files is behind a mutex that is held for single steps.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::watch::{Receiver, Sender};

/// A holder has its lock file open for writing, so closing it is an event, also when the process dies.
pub(super) const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DONT_FOLLOW);

static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

struct Watcher {
    inotify: Arc<OwnedFd>,
    /// By the kernel's number for the file. Each waiter of a file has a receiver.
    files: HashMap<i32, Sender<()>>,
}

/// A watch on one file.
pub(super) struct FileWatch {
    inotify: Arc<OwnedFd>,
    number: i32,
    changed: Receiver<()>,
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
        let inotify = match &*watcher {
            Some(watcher) => Arc::clone(&watcher.inotify),
            None => Arc::new(inotify::init(CreateFlags::CLOEXEC).ok()?),
        };
        let number = inotify::add_watch(&inotify, path, EVENTS).ok()?;
        let files = match &mut *watcher {
            Some(watcher) => &mut watcher.files,
            none => &mut none.insert(Watcher::start(&inotify)?).files,
        };
        let file = files.entry(number).or_insert_with(|| Sender::new(()));
        Some(Self {
            changed: file.subscribe(),
            inotify,
            number,
        })
    }

    /// Returns when an event of the file has come since the last call. Dropping the future loses none.
    pub(super) async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // The file is gone, which was reported before, or the thread is.
            std::future::pending().await
        }
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        let mut watcher = watcher();
        let Some(watcher) = of_instance(&mut watcher, &self.inotify) else {
            return;
        };
        // The kernel answers with `IGNORED`, so the thread checks whether this was the last watch.
        if let Entry::Occupied(file) = watcher.files.entry(self.number) {
            if file.get().receiver_count() == 1 {
                file.remove();
                let _ = inotify::remove_watch(&self.inotify, self.number);
            }
        }
    }
}

impl Watcher {
    fn start(inotify: &Arc<OwnedFd>) -> Option<Self> {
        let served = Arc::clone(inotify);
        thread::Builder::new()
            .name("spawn-gate-wait".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || serve(&served))
            .ok()?;
        Some(Self {
            inotify: Arc::clone(inotify),
            files: HashMap::new(),
        })
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
}

/// The watcher, unless another one has replaced it.
fn of_instance<'a>(
    watcher: &'a mut Option<Watcher>,
    inotify: &Arc<OwnedFd>,
) -> Option<&'a mut Watcher> {
    watcher
        .as_mut()
        .filter(|watcher| Arc::ptr_eq(&watcher.inotify, inotify))
}

/// Passes on the kernel's events until nobody waits any more.
fn serve(inotify: &Arc<OwnedFd>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&**inotify, &mut buffer);
    loop {
        let told = match reader.next() {
            Ok(event) => Some((event.wd(), event.events())),
            Err(Errno::INTR) => continue,
            // No more events will come: the waiters probe by themselves.
            Err(_) => None,
        };
        let mut watcher = watcher();
        let Some(current) = of_instance(&mut watcher, inotify) else {
            return;
        };
        let to_tell = told.map(|(number, events)| current.hear(number, events));
        let is_over = to_tell.is_none() || current.files.is_empty();
        let ended = is_over.then(|| watcher.take());
        // Notifying runs the waiters' wakers, which may be user code: not under the mutex.
        drop(watcher);
        to_tell
            .iter()
            .flatten()
            .for_each(|file| file.send_replace(()));
        drop((to_tell, ended));
        if is_over {
            return;
        }
    }
}

/// Whether the thread exists.
#[cfg(test)]
pub(super) fn is_running() -> bool {
    watcher().is_some()
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
}
