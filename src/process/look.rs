//! Whether a backend is there: gone, there, or unknown for a reason.

use std::time::Duration;

use tokio::time::Instant;

use super::backend::{Backend, Presence};
use super::endpoint::Endpoint;
use super::error::{ProcessError, Unusable, Why, off_thread_call};
use super::files::Files;
use super::identity::{Condition, ProcessIdentity};
use super::log;
use super::ready::Pause;
use super::record::{Reading, Record, State, read_process};
use super::sys::{LifeLock, holder_of};
use crate::lock::is_shortage;

/// What the files and the system say at one moment.
pub(super) struct Sight {
    pub(super) files: Files,
    is_life_held: bool,
    reading: Reading,
    /// The backend's process, and how it is.
    process: Option<(ProcessIdentity, Condition)>,
}

/// What a look wants of a backend.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) version: Option<String>,
    /// How long a look may take.
    pub(super) limit: Duration,
    pub(super) log_limit: u64,
}

impl Sight {
    pub(super) async fn take(files: &Files) -> Result<Self, ProcessError> {
        let files = files.clone();
        off_thread_call(move || Self::take_blocking(files)).await
    }

    fn take_blocking(files: Files) -> Result<Self, ProcessError> {
        let is_life_held = LifeLock::is_held(&files)?;
        // After the lock: a record that is older than a lock that was free then is over.
        let reading = match Record::read(&files) {
            // What stands there does not matter if no backend is there.
            Err(ProcessError::File { .. }) if !is_life_held => Reading::Junk,
            reading => reading?,
        };
        let said = match &reading {
            Reading::Found(record) => record.process.clone(),
            _ => None,
        };
        let process = match said {
            Some(process) => Some(process),
            None if is_life_held => read_process(&files)?,
            None => read_process(&files).unwrap_or_default(),
        };
        let process = match process {
            // A launcher that lives is about to write it.
            None if is_life_held && !has_launcher(&reading) => {
                let launch = match &reading {
                    Reading::Found(record) => Some(record.launch),
                    _ => None,
                };
                holder_of(&files, launch)
            }
            process => process,
        };
        Ok(Self {
            files,
            is_life_held,
            reading,
            process: process.map(|process| {
                let condition = process.condition();
                (process, condition)
            }),
        })
    }

    /// Whether something is there. If it has let go of the lock for its life (a program that closes descriptors it does not
    /// know), its process says so.
    pub(super) fn is_there(&self) -> bool {
        self.is_life_held || self.process_lives()
    }

    /// Whether the process that the files name surely lives.
    pub(super) fn process_lives(&self) -> bool {
        matches!(
            self.condition(),
            Some(Condition::Running | Condition::Stopped)
        )
    }

    /// Whether a process is known that may live.
    pub(super) fn process_may_live(&self) -> bool {
        !matches!(self.condition(), None | Some(Condition::Gone))
    }

    /// Whether no launch is in progress for what is there.
    pub(super) fn is_launched(&self) -> bool {
        let state = self.record().map(|record| record.state);
        state != Some(State::Starting) || !self.has_launcher()
    }

    pub(super) fn record(&self) -> Option<&Record> {
        match &self.reading {
            Reading::Found(record) => Some(record),
            _ => None,
        }
    }

    pub(super) fn process(&self) -> Option<&ProcessIdentity> {
        self.process.as_ref().map(|(process, _)| process)
    }

    fn condition(&self) -> Option<Condition> {
        self.process.as_ref().map(|(_, condition)| *condition)
    }

    /// The backend as a value, if its process is known.
    pub(super) fn backend(&self) -> Option<Backend> {
        let record = self.record();
        let process = self.process()?.clone();
        Some(Backend {
            pid: process.pid,
            launch: record.map_or(0, |record| record.launch),
            endpoint: record.and_then(|record| record.endpoint.clone()),
            started: record.map_or(std::time::SystemTime::UNIX_EPOCH, |record| record.since),
            version: record.and_then(|record| record.version.clone()),
            log: self.files.log(),
            process,
        })
    }

    pub(super) fn unusable(&self, why: Why) -> ProcessError {
        let record = self.record();
        ProcessError::Unusable(Box::new(Unusable {
            pid: self.process().map(|process| process.pid),
            launch: record.map(|record| record.launch),
            version: record.and_then(|record| record.version.clone()),
            why,
        }))
    }

    fn no_record(&self) -> ProcessError {
        self.unusable(Why::NoRecord {
            record: self.files.record(),
        })
    }

    pub(super) fn no_process(&self) -> ProcessError {
        self.unusable(Why::NoProcess {
            life: self.files.life(),
        })
    }

    fn has_launcher(&self) -> bool {
        has_launcher(&self.reading)
    }

    /// Judges what was seen, and tries to reach a backend that says it is ready.
    pub(super) async fn presence(&self, wanted: &Wanted) -> Result<Presence, ProcessError> {
        if !self.is_there() {
            return Ok(Presence::Gone);
        }
        let Some(record) = self.record() else {
            return Err(self.no_record());
        };
        if record.state == State::Starting && (self.has_launcher() || !self.shows_ready().await) {
            return Ok(Presence::Starting {
                launch: record.launch,
                since: record.since,
                status: record.status.clone(),
            });
        }
        let Some(backend) = self.backend() else {
            return Err(self.no_process());
        };
        // The watcher of an attached one is ending it.
        let is_left = record.is_attached && record.launcher.condition() == Condition::Gone;
        if record.state == State::Leaving || is_left {
            return Ok(Presence::Leaving(backend));
        }
        // First: a launch that has just taken the lock has not replaced the record of the last one yet.
        if self.condition() == Some(Condition::Gone) {
            return self.handed_over(record, wanted).await;
        }
        self.check_version(record, wanted)?;
        if self.condition() == Some(Condition::Stopped) {
            return Err(self.unusable(Why::Stopped));
        }
        if let Some(endpoint) = &record.endpoint {
            if let Err(error) = endpoint.probe().await {
                return Err(self.not_reached(endpoint.clone(), error));
            }
        }
        Ok(Presence::Ready(backend))
    }

    fn check_version(&self, record: &Record, wanted: &Wanted) -> Result<(), ProcessError> {
        match &wanted.version {
            Some(version) if record.version.as_ref() != Some(version) => {
                Err(self.unusable(Why::OtherVersion {
                    wanted: version.clone(),
                }))
            }
            _ => Ok(()),
        }
    }

    /// Judges a backend that was ready and whose process has ended. A program may start another one that serves, and exit then
    /// (`pg_ctl`, for example): that one has the lock for its life, and accepts connections.
    async fn handed_over(
        &self,
        record: &Record,
        wanted: &Wanted,
    ) -> Result<Presence, ProcessError> {
        let (files, launch) = (self.files.clone(), Some(record.launch));
        // Of this launch: another one may have begun since the record was read.
        let heir = off_thread_call(move || Ok(holder_of(&files, launch))).await?;
        let (Some(heir), Some(endpoint)) = (heir, &record.endpoint) else {
            return Err(self.no_process());
        };
        match endpoint.probe().await {
            Ok(()) => self.check_version(record, wanted)?,
            Err(error) if is_shortage(&error) => {
                return Err(self.not_reached(endpoint.clone(), error));
            }
            Err(_) => return Err(self.no_process()),
        }
        let named = Record {
            process: Some(heir.clone()),
            ..record.clone()
        };
        let (record, files) = (record.clone(), self.files.clone());
        // In a read-only directory the next look finds out by itself.
        let _ = off_thread_call(move || named.replace(&record, &files)).await;
        match self.backend() {
            Some(backend) => Ok(Presence::Ready(Backend {
                pid: heir.pid,
                process: heir,
                ..backend
            })),
            None => Err(self.no_process()),
        }
    }

    fn not_reached(&self, endpoint: Endpoint, source: std::io::Error) -> ProcessError {
        match is_shortage(&source) {
            // That says nothing about the backend.
            true => ProcessError::Connect { endpoint, source },
            false => self.unusable(Why::NoConnection {
                endpoint,
                message: source.to_string(),
            }),
        }
    }

    /// Whether a backend whose launcher is gone has become ready since.
    async fn shows_ready(&self) -> bool {
        let Some(record) = self.record() else {
            return false;
        };
        let is_ready = match (&record.ready_line, &record.endpoint) {
            (Some(words), _) => log::has_line(&self.files, record.log_start, words).await,
            (None, Some(endpoint)) if record.ready_by_connection => endpoint.probe().await.is_ok(),
            _ => false,
        };
        if is_ready {
            let ready = Record {
                state: State::Ready,
                ..record.clone()
            };
            // The backend itself, or a stop, may have said more meanwhile. In a read-only directory the next look finds out by
            // itself.
            let (record, files) = (record.clone(), self.files.clone());
            let _ = off_thread_call(move || ready.replace(&record, &files)).await;
        }
        is_ready
    }

    /// The error for something that is still there once a look's time is over.
    pub(super) fn still(&self, presence: &Presence) -> ProcessError {
        self.unusable(match presence {
            Presence::Leaving(_) => Why::Leaving,
            _ => Why::Starting,
        })
    }
}

/// Whether the process that launched it may still see it through.
fn has_launcher(reading: &Reading) -> bool {
    match reading {
        Reading::Found(record) => record.launcher.condition() != Condition::Gone,
        _ => false,
    }
}

/// What a look before a launch found.
pub(super) enum Found {
    Ready(Backend),
    /// None is there. If the last one left in an orderly way, its launch.
    None {
        left: Option<u64>,
    },
    /// One is starting, and the process that launched it sees it through: its spawn lock is to be waited for.
    BeingLaunched,
}

/// Looks for a backend. One that is starting on its own, or leaving, is waited for. The record is read anew each time, so an old
/// one delays nobody.
pub(super) async fn look(files: &Files, wanted: &Wanted) -> Result<Found, ProcessError> {
    let deadline = Instant::now() + wanted.limit;
    let mut pause = Pause::default();
    loop {
        let sight = Sight::take(files).await?;
        let error = match sight.presence(wanted).await {
            Ok(Presence::Gone) => {
                let left = sight
                    .record()
                    .filter(|record| record.state == State::Leaving)
                    .map(|record| record.launch);
                return Ok(Found::None { left });
            }
            Ok(Presence::Ready(backend)) => {
                log::keep_short(files, wanted.log_limit).await;
                return Ok(Found::Ready(backend));
            }
            Ok(Presence::Starting { .. }) if sight.has_launcher() => {
                return Ok(Found::BeingLaunched);
            }
            Ok(presence) => sight.still(&presence),
            // No wait changes that.
            Err(error @ ProcessError::Unusable(_)) if matches!(&error, ProcessError::Unusable(unusable) if matches!(unusable.why, Why::OtherVersion { .. })) =>
            {
                return Err(error);
            }
            Err(error @ ProcessError::Unusable(_)) => error,
            Err(error) => return Err(error),
        };
        if pause.is_over(deadline).await {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::lock::FileSpawnLock;

    #[test]
    fn a_shortage_of_this_process_is_not_blamed_on_the_backend() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let sight = Sight::take_blocking(files).unwrap();
        let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 80).into());
        let error = sight.not_reached(endpoint.clone(), ErrorKind::OutOfMemory.into());
        assert!(matches!(error, ProcessError::Connect { .. }), "{error:?}");
        assert!(error.retry_helps());
        let error = sight.not_reached(endpoint, ErrorKind::ConnectionRefused.into());
        assert!(matches!(error, ProcessError::Unusable(_)), "{error:?}");
        assert!(!error.retry_helps());
    }

    fn files_in(directory: &tempfile::TempDir) -> Files {
        FileSpawnLock::new(directory.path()).unwrap();
        Files::new(directory.path(), &"indexer".to_owned())
    }

    async fn presence(files: &Files) -> Result<Presence, ProcessError> {
        let wanted = Wanted {
            version: None,
            limit: Duration::ZERO,
            log_limit: 0,
        };
        Sight::take(files).await?.presence(&wanted).await
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_does_not_hide_that_no_backend_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let files = files_in(&directory);
        std::fs::create_dir(files.record()).unwrap();
        assert_eq!(presence(&files).await.unwrap(), Presence::Gone);
        let _life = LifeLock::try_take(&files).unwrap().unwrap();
        let error = presence(&files).await.unwrap_err();
        assert!(matches!(error, ProcessError::File { .. }), "{error:?}");
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::process::Command;

        use rustix::process::{Pid, Signal, kill_process};
        use tokio::net::TcpListener;

        use super::*;

        /// A backend of launch 2 that is this process, was launched by `launcher`, and accepts connections.
        fn record(listener: &TcpListener, launcher: ProcessIdentity) -> Record {
            Record {
                state: State::Ready,
                launch: 2,
                launcher,
                process: Some(ProcessIdentity::of_this_process()),
                endpoint: Some(Endpoint::Tcp(listener.local_addr().unwrap())),
                version: None,
                since: std::time::UNIX_EPOCH,
                log_start: 0,
                ready_line: None,
                ready_by_connection: true,
                is_attached: false,
                was_ready: false,
                reads_requests: false,
                status: None,
            }
        }

        async fn listener() -> TcpListener {
            TcpListener::bind("127.0.0.1:0").await.unwrap()
        }

        fn ended() -> ProcessIdentity {
            let mut child = Command::new("true").spawn().unwrap();
            let process = ProcessIdentity::of(child.id());
            child.wait().unwrap();
            process
        }

        /// A process in another container.
        fn elsewhere() -> ProcessIdentity {
            let this = ProcessIdentity::of_this_process();
            let place = this.place.as_deref().unwrap();
            let (boot, _) = place.split_once('/').unwrap();
            ProcessIdentity {
                place: Some(format!("{boot}/pid:[1]")),
                ..this
            }
        }

        #[tokio::test]
        async fn a_backend_in_another_container_is_gone_once_its_lock_is_free() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let record = Record {
                process: Some(elsewhere()),
                ..record(&listener().await, elsewhere())
            };
            record.write(&files).unwrap();
            assert_eq!(presence(&files).await.unwrap(), Presence::Gone);
        }

        /// A child that is stopped by a signal.
        fn stopped() -> (std::process::Child, ProcessIdentity) {
            let child = Command::new("sleep").arg("60").spawn().unwrap();
            let process = ProcessIdentity::of(child.id());
            kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
            while process.condition() != Condition::Stopped {
                std::thread::yield_now();
            }
            (child, process)
        }

        #[tokio::test]
        async fn a_backend_that_is_stopped_by_a_signal_is_there_also_without_its_lock() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let (mut child, process) = stopped();
            let record = Record {
                process: Some(process),
                ..record(&listener().await, ProcessIdentity::of_this_process())
            };
            record.write(&files).unwrap();
            let found = presence(&files).await;
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(
                matches!(&found, Err(ProcessError::Unusable(unusable)) if unusable.why == Why::Stopped),
                "{found:?}"
            );
        }

        #[tokio::test]
        async fn a_backend_without_a_version_is_not_of_the_one_that_is_wanted() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let record = record(&listener().await, ProcessIdentity::of_this_process());
            record.write(&files).unwrap();
            let wanted = Wanted {
                version: Some("2".to_owned()),
                limit: Duration::ZERO,
                log_limit: 0,
            };
            let found = Sight::take(&files).await.unwrap().presence(&wanted).await;
            assert!(
                matches!(&found, Err(ProcessError::Unusable(unusable))
                    if matches!(unusable.why, Why::OtherVersion { .. })),
                "{found:?}"
            );
        }

        #[tokio::test]
        async fn a_launcher_that_may_live_sees_its_launch_through() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let _life = LifeLock::try_take(&files).unwrap().unwrap();
            let listener = listener().await;
            let (mut child, stopped) = stopped();
            let mut found = Vec::new();
            for launcher in [ProcessIdentity::of_this_process(), elsewhere(), stopped] {
                let starting = Record {
                    state: State::Starting,
                    ..record(&listener, launcher)
                };
                starting.write(&files).unwrap();
                found.push(presence(&files).await);
            }
            child.kill().unwrap();
            child.wait().unwrap();
            for found in found {
                assert!(matches!(found, Ok(Presence::Starting { .. })), "{found:?}");
            }
        }

        #[tokio::test]
        async fn an_attached_backend_is_leaving_once_its_launcher_is_surely_gone() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let _life = LifeLock::try_take(&files).unwrap().unwrap();
            let listener = listener().await;
            for (launcher, is_leaving) in [
                (ProcessIdentity::of_this_process(), false),
                (elsewhere(), false),
                (ended(), true),
            ] {
                let attached = Record {
                    is_attached: true,
                    ..record(&listener, launcher)
                };
                attached.write(&files).unwrap();
                let found = presence(&files).await.unwrap();
                assert_eq!(
                    matches!(found, Presence::Leaving(_)),
                    is_leaving,
                    "{found:?}"
                );
            }
        }

        #[tokio::test]
        async fn one_whose_launcher_is_gone_is_ready_only_by_its_own_sign() {
            let directory = tempfile::tempdir().unwrap();
            let files = files_in(&directory);
            let _life = LifeLock::try_take(&files).unwrap().unwrap();
            let listener = listener().await;
            let earlier = "--- launch 1\nis ready\n";
            std::fs::write(files.log(), format!("{earlier}--- launch 2\n")).unwrap();
            let starting = Record {
                state: State::Starting,
                log_start: earlier.len() as u64,
                ..record(&listener, ended())
            };
            let by_line = Record {
                ready_line: Some("is ready".to_owned()),
                ready_by_connection: false,
                ..starting.clone()
            };
            let by_notify = Record {
                ready_by_connection: false,
                ..starting.clone()
            };
            for (record, is_ready) in [(by_line, false), (by_notify, false), (starting, true)] {
                record.write(&files).unwrap();
                let found = presence(&files).await.unwrap();
                assert_eq!(matches!(found, Presence::Ready(_)), is_ready, "{found:?}");
                // The log may be cut by the next look.
                let Reading::Found(record) = Record::read(&files).unwrap() else {
                    panic!("it is junk");
                };
                assert_eq!(record.state == State::Ready, is_ready);
            }
        }
    }
}
