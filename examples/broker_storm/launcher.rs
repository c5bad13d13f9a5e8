//! How a broker starts a backend, and finds one that another broker started.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spawn_gate::lock::LockName;
use spawn_gate::{BackendKey, BackendLauncher, BoxError, LaunchPermit, async_trait};
use tokio::fs;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::protocol::{BackendId, ping};

/// How long a backend may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What a launch yields: where a backend listens, and which process it is.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    backend: BackendId,
}

pub(crate) struct Launcher {
    directory: PathBuf,
    /// What this broker launched. (A backend that is to outlive its broker would be let go here, and found by `discover`.)
    running: Mutex<HashMap<BackendKey, (Endpoint, Child)>>,
}

#[async_trait]
impl BackendLauncher<BackendKey, Endpoint> for Launcher {
    /// Reads the endpoint file of the last launch. The file outlives a backend that died, and the port can be in use by
    /// another program by now, so what counts is that the very process named in the file answers.
    async fn discover(&self, key: &BackendKey) -> Result<Option<Endpoint>, BoxError> {
        let text = match fs::read_to_string(self.endpoint_file(key)).await {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (address, backend) = text.split_once(' ').ok_or("not an endpoint file")?;
        let endpoint = Endpoint {
            address: address.parse()?,
            backend: backend.parse()?,
        };
        // No deadline here: the gate has one for this stage, and names it. A backend that is slow to answer is not dead.
        match ping(endpoint.address).await {
            Ok(pong) => Ok((pong == format!("pong {backend}")).then_some(endpoint)),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::UnexpectedEof => Ok(None),
                // It is unknown whether a backend runs, and a launch on a guess could be a second one.
                _ => Err(error.into()),
            },
        }
    }

    /// Starts the backend and waits until it says where it listens.
    async fn launch(
        &self,
        permit: &LaunchPermit<BackendKey, Endpoint>,
    ) -> Result<Endpoint, BoxError> {
        let (key, launch) = (permit.key(), permit.fencing_token());
        let mut child = Command::new(std::env::current_exe()?)
            .arg("backend")
            .arg(&self.directory)
            .arg(&key.service_name)
            .arg(launch.to_string())
            // The backend ends when this pipe does, so it cannot outlive this process, however that ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // For a launch that fails or is given up below: then the child is dropped.
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("the backend is gone already")?;
        let stdout = child.stdout.take().ok_or("the backend has no output")?;

        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let Some(address) = line.trim_end().strip_prefix("ready ") else {
            let status = child.wait().await?;
            return Err(format!("{} ({status})", line.trim_end()).into());
        };
        let endpoint = Endpoint {
            address: address.parse()?,
            backend: BackendId {
                service: key.service_name.clone(),
                pid,
                launch,
            },
        };

        // If the lock was lost meanwhile, another broker may be launching too: then ours must not be found, and ends here.
        permit.verify().await?;
        self.publish(key, &endpoint).await?;
        // Kept here and not by the callers: they may all have hung up by now.
        self.running()
            .insert(key.clone(), (endpoint.clone(), child));
        Ok(endpoint)
    }
}

impl Launcher {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            running: Mutex::default(),
        }
    }

    /// Returns the backend of `key` if this broker launched it and it has not ended.
    pub(crate) fn running_backend(&self, key: &BackendKey) -> Option<Endpoint> {
        let mut running = self.running();
        let (endpoint, child) = running.get_mut(key)?;
        if let Ok(None) = child.try_wait() {
            return Some(endpoint.clone());
        }
        running.remove(key);
        None
    }

    /// Ends all backends and waits until they are gone.
    pub(crate) async fn end_all(&self) {
        let running = std::mem::take(&mut *self.running());
        for (_, mut child) in running.into_values() {
            // Waiting closes the pipe first, which asks the backend to end. One that does not is killed as it is dropped.
            let _ = timeout(END_LIMIT, child.wait()).await;
        }
    }

    /// Lets other brokers find the backend. They read the old file or the new one, never half of it.
    async fn publish(&self, key: &BackendKey, endpoint: &Endpoint) -> Result<(), BoxError> {
        let file = self.endpoint_file(key);
        let unfinished = file.with_extension(format!("{}.new", endpoint.backend.launch));
        fs::write(
            &unfinished,
            format!("{} {}", endpoint.address, endpoint.backend),
        )
        .await?;
        Ok(fs::rename(unfinished, file).await?)
    }

    /// Named as the lock file is: that name is safe whatever stands in the key.
    fn endpoint_file(&self, key: &BackendKey) -> PathBuf {
        let lock = self.directory.join(LockName::new(key).as_str());
        lock.with_extension("endpoint")
    }

    fn running(&self) -> MutexGuard<'_, HashMap<BackendKey, (Endpoint, Child)>> {
        // The map is whole between any two statements, so a panic elsewhere does not spoil it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
