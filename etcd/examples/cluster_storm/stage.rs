//! The director's hands on the hosts of one scenario, and the scene that they share.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate::BoxError;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::backend::JOURNAL;
use crate::host::CLIENTS;

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host. Dropping it ends it.
pub(crate) struct Host {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Host {
    pub(crate) fn start(endpoints: &str, scene: &Path) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("host")
            .arg(endpoints)
            .arg(scene)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            input: child.stdin.take().ok_or("no input")?,
            lines: BufReader::new(child.stdout.take().ok_or("no output")?).lines(),
            child,
        })
    }

    pub(crate) async fn tell(&mut self, command: &str) -> Result<(), BoxError> {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await?;
        Ok(())
    }

    /// Waits for a line that begins with this word. Returns the rest of it.
    pub(crate) async fn says(&mut self, word: &str) -> Result<String, BoxError> {
        let line = timeout(PATIENCE, self.lines.next_line())
            .await
            .map_err(|_| format!("a host did not say in time: {word}"))??;
        let line = line.ok_or_else(|| format!("a host ended without saying: {word}"))?;
        match line.strip_prefix(word) {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(format!("a host said {line:?} and not {word:?}").into()),
        }
    }

    /// The answers that its clients got, each with how often. Addresses are left out.
    pub(crate) async fn answers(&mut self) -> Result<BTreeMap<String, usize>, BoxError> {
        let mut answers = BTreeMap::new();
        for _ in 0..CLIENTS {
            let answer = self.says("").await?;
            let kind = answer.split(" process").next().unwrap_or_default();
            let kind = if kind.contains("no such program") {
                "refused: no such program"
            } else {
                kind
            };
            *answers.entry(kind.to_owned()).or_default() += 1;
        }
        self.says("done").await?;
        Ok(answers)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), BoxError> {
        let pid = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()));
        kill_process(pid.ok_or("the host has ended")?, signal)?;
        Ok(())
    }
}

/// The directory that the hosts and backends of one scenario share.
pub(crate) struct Scene(TempDir);

impl Scene {
    pub(crate) fn new() -> Result<Self, BoxError> {
        Ok(Self(
            tempfile::Builder::new()
                .prefix("cluster_storm-")
                .tempdir()?,
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// How many backends did so, by the journal.
    pub(crate) fn backends(&self, word: &str) -> usize {
        let journal = std::fs::read_to_string(self.path().join(JOURNAL)).unwrap_or_default();
        journal
            .lines()
            .filter(|line| line.split(' ').next() == Some(word))
            .count()
    }

    /// How many attempts failed.
    pub(crate) fn attempts(&self) -> usize {
        let entries = std::fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .flatten();
        let is_attempt = |name: &str| name.starts_with("attempt-");
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_attempt))
            .count()
    }
}
