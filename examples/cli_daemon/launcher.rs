//! How the tool starts its daemon, and finds one that another invocation started.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use spawn_gate::{BackendLauncher, BoxError, LaunchPermit, async_trait};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::contact::{Address, POLL, find, for_this_user, is_taken};
use crate::daemon::LAUNCH;

pub(crate) struct Launcher {
    pub(crate) state: PathBuf,
}

#[async_trait]
impl BackendLauncher<String, Address> for Launcher {
    /// A daemon that has the seat and cannot be reached is about to say where it listens, or about to end. A launch on a guess
    /// would be a second one, so this waits to see which; not for ever, since the gate has a deadline for this stage.
    async fn discover(&self, _key: &String) -> Result<Option<Address>, BoxError> {
        loop {
            // Before the look, so that one which takes the seat in between is looked for again.
            let was_taken = is_taken(&self.state)?;
            if let Some(daemon) = find(&self.state).await? {
                return Ok(Some(daemon.address));
            }
            if !was_taken {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// Starts this program again, as the daemon. A fork without exec instead would leave the daemon a copy of the spawn lock's
    /// descriptor, and the lock held as long as it lives.
    async fn launch(&self, permit: &LaunchPermit<String, Address>) -> Result<Address, BoxError> {
        let log_path = self.state.join("daemon.log");
        let log = for_this_user().append(true).open(&log_path)?;
        let log_began = log.metadata()?.len();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--state").arg(&self.state).arg("daemon");
        command.env(LAUNCH, permit.fencing_token().to_string());
        // Not the user's directory, which it would keep in use.
        command.current_dir(&self.state);
        // Nor the tool's output: `$(cli_daemon --state DIR ask TEXT)` would wait until the daemon closes that. On Windows it
        // waits all the same, if it starts the daemon: that gets all handles which can be inherited, and this is one of them.
        command.stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        #[cfg(windows)]
        command.creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
        let mut starting = Starting {
            child: command.spawn()?,
            is_let_go: false,
        };
        tokio::select! {
            ready = self.until_ready() => {
                // Not if another one is: then this one cannot have the seat. An error says nothing against it.
                let pid = starting.child.id();
                starting.is_let_go = ready.as_ref().map_or(true, |found| pid == Some(found.pid));
                ready
            }
            status = starting.child.wait() => {
                let status = status?;
                // Another one was faster, whose launcher was killed before it had the seat.
                if let Some(address) = self.discover(permit.key()).await? {
                    return Ok(address);
                }
                let why = last_line(&log_path, log_began)?;
                Err(format!("the daemon ended before it was ready ({status}): {why}").into())
            }
        }
    }

    // `discard` has nothing to do: if the spawn lock was lost and somebody else launches too, only one can have the seat.
}

#[cfg(windows)]
const DETACHED_PROCESS: u32 = 0x8;
#[cfg(windows)]
const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;

impl Launcher {
    async fn until_ready(&self) -> Result<Address, BoxError> {
        loop {
            if let Some(daemon) = find(&self.state).await? {
                return Ok(daemon.address);
            }
            sleep(POLL).await;
        }
    }
}

/// Ends the daemon when dropped, unless it was let go: the gate drops a launch that takes too long. If this process is
/// interrupted nothing is dropped, and the daemon goes on starting, for the next invocation.
struct Starting {
    child: Child,
    is_let_go: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.is_let_go {
            // An error says that it has ended.
            let _ = self.child.start_kill();
        }
    }
}

/// Returns the last line that was written to the log since it had the length `began`.
fn last_line(log: &Path, began: u64) -> io::Result<String> {
    let mut log = File::open(log)?;
    log.seek(SeekFrom::Start(began))?;
    let mut text = Vec::new();
    log.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().last().unwrap_or("it said nothing").to_owned())
}
