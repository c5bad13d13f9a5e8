//! How a process of the crowd comes by its backend: all that it has to do with `spawn-gate`.

use std::io::ErrorKind::{ConnectionRefused, NotFound};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use spawn_gate::{
    BackendKey, BackendLauncher, BoxError, FileSpawnLock, How, LaunchPermit, SpawnGate, async_trait,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::backend::{BACKEND, connect, port};
use crate::keys::PeerKey;
use crate::other::{READY, in_role};

/// Asks the gate once, without a look of its own before. Returns the backend's port, and whether this process launched it.
pub(super) async fn launch(directory: &Path) -> Result<(u16, bool), BoxError> {
    let lock = FileSpawnLock::new(directory.join("locks"))?;
    let gate = SpawnGate::builder(lock).build();
    let launcher = Launcher {
        directory: directory.to_owned(),
    };
    let launched = gate.launch(BackendKey::nth(0), launcher).await?;
    Ok((launched.value, launched.how == How::Led))
}

struct Launcher {
    directory: PathBuf,
}

#[async_trait]
impl BackendLauncher<BackendKey, u16> for Launcher {
    async fn discover(&self, _key: &BackendKey) -> Result<Option<u16>, BoxError> {
        let found = async {
            let port = port(&self.directory)?;
            connect(port).await.map(|_| port)
        };
        match found.await {
            Ok(port) => Ok(Some(port)),
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn launch(&self, _permit: &LaunchPermit<BackendKey, u16>) -> Result<u16, BoxError> {
        let mut command = Command::from(in_role(BACKEND, &self.directory, &[]));
        // With the input of this process, the end of which ends the backend too.
        command.stdin(Stdio::inherit()).stdout(Stdio::piped());
        let mut backend = command.spawn()?;
        let says = backend.stdout.take().ok_or("its output is a pipe")?;
        let line = BufReader::new(says).lines().next_line().await?;
        match line.as_deref() {
            Some(READY) => Ok(port(&self.directory)?),
            _ => Err("the backend ended before it was ready".into()),
        }
    }
}
