//! The launcher of one request. It notes what it does; the noted time of a launch is within the time that its lock is held.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spawn_gate::{BackendLauncher, BoxError, LaunchPermit};
use tokio::time::sleep;

use crate::backends::Backends;
use crate::chance::Chance;
use crate::config::Config;
use crate::journal::{Event, Journal};

/// A request, and what it does if it comes to launch.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) journal: Arc<Journal>,
    pub(crate) backends: Backends,
    pub(crate) process: usize,
    pub(crate) key: &'static str,
    pub(crate) request: u64,
    pub(crate) plan: Plan,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) time: Duration,
    pub(crate) fails: bool,
    /// Starts a real process and waits for it. Its fork copies the descriptors, that of the lock too, until it executes.
    pub(crate) starts_a_process: bool,
}

impl Plan {
    pub(crate) fn new(config: &Config, chance: &mut Chance) -> Self {
        Self {
            time: Duration::from_micros(chance.below(config.launch.as_micros() as u64)),
            fails: chance.percent(config.failures),
            starts_a_process: chance.percent(15),
        }
    }
}

/// A launch in progress. Its end is noted also if it is dropped.
pub(crate) struct Launching<'a> {
    launcher: &'a Launcher,
    token: u64,
    has_ended: bool,
}

impl Launcher {
    pub(crate) fn note(&self, what: &str, token: u64, how: &str) {
        let event = Event::new(what, self.process, self.key);
        self.journal.note(&event.of(self.request, token).how(how));
    }

    pub(crate) fn begin(&self, token: u64) -> Launching<'_> {
        self.note("begin", token, "-");
        Launching {
            launcher: self,
            token,
            has_ended: false,
        }
    }

    /// Launches as planned.
    pub(crate) async fn work(&self, token: u64) -> Result<u64, BoxError> {
        let launching = self.begin(token);
        if self.plan.starts_a_process {
            let mut child = tokio::process::Command::new("true");
            child.stdin(Stdio::null()).kill_on_drop(true);
            child.status().await?;
        }
        sleep(self.plan.time).await;
        if self.plan.fails {
            launching.end("failed");
            return Err("it fails as planned".into());
        }
        self.backends.start(self.key, token)?;
        launching.end("ok");
        Ok(token)
    }
}

impl Launching<'_> {
    pub(crate) fn end(mut self, how: &str) {
        self.launcher.note("end", self.token, how);
        self.has_ended = true;
    }
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.launcher.note("end", self.token, "dropped");
        }
    }
}

#[async_trait]
impl BackendLauncher<&'static str, u64> for Launcher {
    async fn discover(&self, _: &&'static str) -> Result<Option<u64>, BoxError> {
        Ok(self.backends.newest(self.key))
    }

    async fn launch(&self, permit: &LaunchPermit<&'static str, u64>) -> Result<u64, BoxError> {
        self.work(permit.fencing_token()).await
    }

    async fn discard(&self, _: &&'static str, token: u64) {
        self.backends.end(self.key, token);
    }
}
