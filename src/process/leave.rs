//! When a backend in Rust leaves: idle, told to end, or found by nobody any more.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::instance::{Activity, Instance};
use super::record::{Reading, Record, State};
use super::sys::{self, Requests, UseLock};
use crate::util::at_most_a_year;

/// How often a backend looks whether it can still be found.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// The pause after a try to leave while a caller has the lock.
const LEAVE_PAUSE: Duration = Duration::from_millis(5);

/// Why a backend leaves, see [`Instance::until_leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leave {
    /// It was idle, and no caller is about to use it.
    Idle,
    /// It got SIGTERM, SIGINT or SIGHUP; on Windows, it was stopped in another way.
    Stopped,
    /// Its files were deleted or belong to a later launch: nobody finds it any more.
    Lost,
}

impl Instance {
    /// Counts a call as in progress until the returned value is dropped: the backend is not idle meanwhile.
    pub fn busy(&self) -> Busy {
        let activity = self.activity.clone();
        activity.send_modify(|activity| activity.calls += 1);
        Busy { activity }
    }

    /// Waits until this backend is to leave, and returns why. Then end the process, perhaps after [`drained`](Self::drained):
    /// callers wait for that.
    ///
    /// Call it before [`ready`](Self::ready) and await it right after: a stop can come as soon as the backend is ready. Before the first
    /// call, a signal ends the process at once; from then on it no longer does, also if the future is not polled or dropped.
    ///
    /// - Idle for `idle` (`None`: never), while no caller that uses it with
    ///   [`ProcessLauncher::in_use`](super::ProcessLauncher::in_use) is about to call. From then on such callers wait for its end,
    ///   and launch a new one. A caller without that may be cut off.
    /// - SIGTERM, SIGINT or SIGHUP. On Windows: a stop, which it finds in its record within a tenth of a second, or an event of its
    ///   console.
    /// - Its files were deleted or belong to a later launch, so it cannot be found any more.
    ///
    /// # Errors
    ///
    /// If no signal handler can be installed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe until it returns: the next call finds a request that came meanwhile.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn main_of_the_backend() -> Result<(), spawn_gate::BoxError> {
    /// use spawn_gate::process::Instance;
    /// use tokio::net::TcpListener;
    ///
    /// let instance = Instance::from_env()?.ok_or("a launcher starts this")?;
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let leave = instance.until_leave(None);
    /// instance.ready(listener.local_addr()?)?;
    /// let serve = async {
    ///     loop {
    ///         let accepted = listener.accept().await;
    ///         // serve it
    /// #       drop(accepted);
    ///     }
    /// };
    /// tokio::select! {
    ///     why = leave => println!("leaves: {:?}", why?),
    ///     () = serve => {}
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn until_leave(
        &self,
        idle: Option<Duration>,
    ) -> impl Future<Output = std::io::Result<Leave>> + Send {
        // Not on the first poll, which may come after a signal.
        let accepted = self.accept_requests();
        async move {
            accepted?;
            let why = tokio::select! {
                () = self.idle(idle) => Leave::Idle,
                () = self.requested() => Leave::Stopped,
                () = self.lost() => return Ok(Leave::Lost),
            };
            // On a full disk it leaves all the same; then callers see its end only.
            let _ = self.update(|record| record.state = State::Leaving);
            Ok(why)
        }
    }

    /// Installs the signal handlers, once.
    fn accept_requests(&self) -> std::io::Result<()> {
        // If it is locked, another future waits, so they are installed.
        if let Ok(mut requests) = self.requests.try_lock() {
            if requests.is_none() {
                *requests = Some(Requests::new()?);
            }
        }
        Ok(())
    }

    /// Returns once somebody wants its end.
    async fn requested(&self) {
        let mut requests = self.requests.lock().await;
        // It was told before it accepted requests, or another future that waited had the request.
        if self.is_to_leave() {
            return;
        }
        match &mut *requests {
            Some(requests) => requests.next(&self.files).await,
            None => std::future::pending().await,
        }
    }

    /// Returns once no call is in progress.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn drained(&self) {
        let mut changes = self.activity.subscribe();
        // An error would say that the sender is gone, which is in `self`.
        let _ = changes.wait_for(|activity| activity.calls == 0).await;
    }

    /// Returns once it is idle and has the lock that callers share.
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit.map(at_most_a_year) else {
            return std::future::pending().await;
        };
        let mut changes = self.activity.subscribe();
        loop {
            let Activity { calls, since } = *changes.borrow_and_update();
            if calls > 0 {
                // The sender is in `self`.
                let _ = changes.changed().await;
            } else if timeout_at(since + limit, changes.changed()).await.is_err() {
                if self.try_leave() {
                    return;
                }
                // Somebody is about to call. With a short limit, this would otherwise try all the time.
                sleep(LEAVE_PAUSE).await;
                let now = Instant::now();
                self.activity.send_modify(|activity| activity.since = now);
            }
        }
    }

    /// Whether its record says that somebody wants its end.
    fn is_to_leave(&self) -> bool {
        match Record::read(&self.files) {
            Ok(Reading::Found(found)) => {
                found.launch == self.launch && found.state == State::Leaving
            }
            _ => false,
        }
    }

    fn try_leave(&self) -> bool {
        // One that is not ready yet has had no chance to be called. It works on its start.
        let record = self.record.lock().unwrap_or_else(|lock| lock.into_inner());
        let is_ready = record.state == State::Ready;
        drop(record);
        if !is_ready {
            return false;
        }
        let Ok(Some(lock)) = UseLock::try_take(&self.files) else {
            return false;
        };
        if self.activity.borrow().calls > 0 {
            return false;
        }
        *self.leaving.lock().unwrap_or_else(|lock| lock.into_inner()) = Some(lock);
        true
    }

    /// Returns once nobody can find this backend any more.
    async fn lost(&self) {
        loop {
            sleep(LOOK_AFTER).await;
            // First: if the lock is another file, the record may be that of a later launch in a moment.
            if sys::identity_of(&self.files).is_ok_and(|found| found != self.life_file) {
                return;
            }
            let other = match Record::read(&self.files) {
                Ok(Reading::Found(record)) => record.launch != self.launch,
                Ok(Reading::Missing | Reading::Junk) => self.update(|_| {}).is_err(),
                // That says nothing about the file.
                Err(_) => false,
            };
            if other {
                return;
            }
        }
    }
}

/// A call in progress, see [`Instance::busy`].
#[derive(Debug)]
#[must_use = "once it is dropped, the call does not count"]
pub struct Busy {
    activity: watch::Sender<Activity>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.send_modify(|activity| {
            activity.calls -= 1;
            activity.since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready};

    use super::*;
    use crate::lock::FileSpawnLock;
    use crate::process::files::Files;

    #[tokio::test(start_paused = true)]
    async fn a_try_to_leave_while_a_caller_has_the_lock_is_not_repeated_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        FileSpawnLock::new(directory.path()).unwrap();
        let instance = Instance::of(files.clone(), 1).unwrap();
        instance
            .ready("127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap())
            .unwrap();
        let used = UseLock::try_share(&files).unwrap().unwrap();
        let mut idle = tokio_test::task::spawn(instance.idle(Some(Duration::ZERO)));
        // Else it would use up its turn on the runtime, and wake itself for the next one.
        assert_pending!(idle.poll());
        assert!(!idle.is_woken());
        drop(used);
        idle.await;
    }

    #[test]
    fn a_backend_that_is_not_ready_does_not_leave_because_nobody_called_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        FileSpawnLock::new(directory.path()).unwrap();
        let instance = Instance::of(files, 1).unwrap();
        assert!(!instance.try_leave());
        instance
            .ready("127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap())
            .unwrap();
        assert!(instance.try_leave());
    }

    #[tokio::test]
    async fn a_backend_that_missed_that_it_is_to_end_leaves_when_it_waits_for_that() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let instance = Instance::of(files.clone(), 1).unwrap();
        let Reading::Found(record) = Record::read(&files).unwrap() else {
            panic!("it is junk");
        };
        let leaving = Record {
            state: State::Leaving,
            ..*record
        };
        leaving.write(&files).unwrap();
        // It stays leaving, whatever the backend says.
        instance.status("late").unwrap();
        let mut leaving = tokio_test::task::spawn(instance.until_leave(None));
        assert_eq!(assert_ready!(leaving.poll()).unwrap(), Leave::Stopped);
    }

    fn ready(directory: &tempfile::TempDir) -> Instance {
        FileSpawnLock::new(directory.path()).unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let instance = Instance::of(files, 1).unwrap();
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        instance.ready(at).unwrap();
        instance
    }

    #[test]
    fn a_backend_with_a_call_that_has_just_begun_does_not_leave() {
        let directory = tempfile::tempdir().unwrap();
        let instance = ready(&directory);
        let busy = instance.busy();
        assert!(!instance.try_leave());
        drop(busy);
        assert!(instance.try_leave());
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_is_idle_from_the_end_of_its_last_call_on() {
        let directory = tempfile::tempdir().unwrap();
        let instance = ready(&directory);
        let limit = Duration::from_secs(10);
        let busy = instance.busy();
        tokio::time::advance(limit * 2).await;
        drop(busy);
        let mut idle = tokio_test::task::spawn(instance.idle(Some(limit)));
        assert_pending!(idle.poll());
        tokio::time::advance(limit).await;
        assert_ready!(idle.poll());
    }

    #[tokio::test]
    async fn a_backend_is_drained_once_no_call_is_in_progress() {
        let directory = tempfile::tempdir().unwrap();
        let instance = ready(&directory);
        let calls = [instance.busy(), instance.busy()];
        let mut drained = tokio_test::task::spawn(instance.drained());
        for call in calls {
            assert_pending!(drained.poll());
            drop(call);
        }
        assert_ready!(drained.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_whose_record_cannot_be_read_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let instance = ready(&directory);
        let record = instance.files.record();
        std::fs::remove_file(&record).unwrap();
        std::fs::create_dir(&record).unwrap();
        let mut lost = tokio_test::task::spawn(instance.lost());
        for _ in 0..3 {
            assert_pending!(lost.poll());
            tokio::time::advance(LOOK_AFTER).await;
        }
        assert_pending!(lost.poll());
        // To show that it looks.
        std::fs::remove_dir(&record).unwrap();
        let later = Record {
            launch: 2,
            ..instance.record.lock().unwrap().clone()
        };
        later.write(&instance.files).unwrap();
        tokio::time::advance(LOOK_AFTER).await;
        assert_ready!(lost.poll());
    }
}
