//! The scene of a scenario: its directory, the controls of its backends, and the journal of started backends.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::process::Presence;
use spawn_gate::{BoxError, SpawnGate};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backend::{BROKEN, HOLD, JOURNAL};
use crate::broker::{backend_key, launcher};
use crate::client::VERSION;
use crate::protocol::BackendId;
use crate::stage::Stage;

/// No single wait of a scenario is longer.
const WAIT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) const POLL: Duration = Duration::from_millis(10);

pub(crate) struct Scene {
    pub(crate) stage: Arc<Stage>,
    pub(crate) directory: PathBuf,
}

impl Scene {
    pub(crate) fn new(stage: Arc<Stage>, name: &str) -> io::Result<Self> {
        Ok(Self {
            directory: stage.directory(name)?,
            stage,
        })
    }

    /// Writes a line of the timeline.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        self.stage.report.event(text);
    }

    /// From now on, backends that start are not done with it until they are released.
    pub(crate) fn hold_backends(&self) -> io::Result<()> {
        File::create(self.directory.join(HOLD)).map(drop)
    }

    pub(crate) fn release_backends(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(HOLD))
    }

    /// From now on, backends fail to start until they are mended.
    pub(crate) fn break_backends(&self) -> io::Result<()> {
        File::create(self.directory.join(BROKEN)).map(drop)
    }

    pub(crate) fn mend_backends(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(BROKEN))
    }

    /// All backends that were started, by their own account.
    pub(crate) fn started(&self) -> Result<Vec<BackendId>, BoxError> {
        match fs::read_to_string(self.directory.join(JOURNAL)) {
            Ok(text) => text.lines().map(str::parse).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The backends of one service that were started.
    pub(crate) fn started_of(&self, service: &str) -> Result<Vec<BackendId>, BoxError> {
        let mut started = self.started()?;
        started.retain(|backend| backend.service == service);
        Ok(started)
    }

    /// Waits until `count` backends were started. They may have yet to become ready.
    pub(crate) async fn backends_started(&self, count: usize) -> Result<(), BoxError> {
        self.wait_until("a backend to start", || Ok(self.started()?.len() >= count))
            .await
    }

    /// Waits until the backend of this service can be found by other brokers.
    pub(crate) async fn backend_is_ready(&self, service: &str) -> Result<(), BoxError> {
        let launcher = launcher(
            &SpawnGate::new(self.directory.join("locks"))?,
            &self.directory,
        );
        let key = backend_key(service, VERSION);
        within("a backend to be ready", async {
            while !matches!(launcher.find(key.clone()).await?, Presence::Ready(_)) {
                sleep(POLL).await;
            }
            Ok(())
        })
        .await
    }

    async fn wait_until(
        &self,
        what: &str,
        mut done: impl FnMut() -> Result<bool, BoxError>,
    ) -> Result<(), BoxError> {
        let polling = async {
            while !done()? {
                self.stage.report.progress(|| format!("waiting for {what}"));
                sleep(POLL).await;
            }
            Ok(())
        };
        within(what, polling).await
    }

    /// Lets time pass where that is the point of the scenario.
    pub(crate) async fn let_pass(&self, time: Duration, why: &str) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let left = until - Instant::now();
            let shown = || format!("{:.1} s until {why}", left.as_secs_f64());
            self.stage.report.progress(shown);
            sleep_until(until.min(Instant::now() + POLL)).await;
        }
    }
}

/// Waits, but not for ever.
pub(crate) async fn within<T>(
    what: &str,
    future: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match timeout(WAIT_LIMIT, future).await {
        Ok(done) => done,
        Err(_) => Err(format!("waited {WAIT_LIMIT:?} for {what}").into()),
    }
}
