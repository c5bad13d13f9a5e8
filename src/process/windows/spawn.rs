//! Starting a process, and ending one with those that it started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use process_wrap::tokio::{ChildWrapper, CommandWrap, CreationFlags, JobObject, KillOnDrop};
use tokio::runtime::Handle;
use tokio::time::timeout;
use windows::Win32::System::Threading::{
    CREATE_BREAKAWAY_FROM_JOB, CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, PROCESS_CREATION_FLAGS,
};

use super::handles;
use super::identity::Group;
use super::life::is_inherited;
use crate::process::error::ProcessError;
use crate::process::files::Files;
use crate::process::identity::ProcessIdentity;
use crate::process::order::Order;
use crate::process::tie::Tie;

const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_BAD_EXE_FORMAT: i32 = 193;
const ERROR_DIRECTORY: i32 = 267;

/// What the system ends a program with that does not handle Ctrl-C.
const STATUS_CONTROL_C_EXIT: u32 = 0xc000_013a;

impl Order {
    /// Starts the process. Blocks for a moment; to be called within a runtime.
    pub(in crate::process) fn spawn(mut self) -> Result<Started, ProcessError> {
        let (program, at) = (self.program(), self.place());
        let failed = |error| spawn_error(&program, &at, error);
        self.set_up().map_err(failed)?;
        let Self {
            mut command,
            tie,
            life,
            directory,
            grace,
            ..
        } = self;
        command.stdin(Stdio::from(life.hand_over()));
        let mut wrapped = CommandWrap::from(tokio::process::Command::from(command));
        let flags = CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW;
        let child = match tie {
            Tie::Detached => detach(wrapped, flags),
            Tie::Attached => wrapped
                .wrap(CreationFlags(flags))
                .wrap(KillOnDrop)
                .wrap(JobObject)
                .spawn(),
        };
        let child = child.map_err(failed)?;
        let process = ProcessIdentity::of(child.id().unwrap_or_default());
        Ok(Started {
            process: process.clone(),
            child: Some(Child {
                child,
                process,
                directory,
                grace,
            }),
        })
    }
}

/// Starts the process outside of the job that this process may be in, and that may end with it; or inside, if the job does not
/// allow that.
fn detach(
    mut command: CommandWrap,
    flags: PROCESS_CREATION_FLAGS,
) -> io::Result<Box<dyn ChildWrapper>> {
    handles::keep_outputs();
    command.wrap(CreationFlags(flags | CREATE_BREAKAWAY_FROM_JOB));
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(ERROR_ACCESS_DENIED) => {
            // A wrapper with other flags would not replace the first one.
            let mut command = CommandWrap::from(command.into_command());
            command.wrap(CreationFlags(flags)).spawn()
        }
        spawned => spawned,
    }
}

/// Keeps the lock for this backend's life, its standard input, from its children. (The standard library makes handles that no child
/// inherits. Others that this process inherited stay as they are: there is no list of them.)
pub(in crate::process) fn close_inherited(files: &Files) {
    if is_inherited(files) {
        handles::keep_input();
    }
}

fn spawn_error(program: &Path, at: &Path, source: io::Error) -> ProcessError {
    if source.raw_os_error() == Some(ERROR_DIRECTORY) || !at.is_dir() {
        return ProcessError::file(at, "enter", source);
    }
    let program = program.to_path_buf();
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => ProcessError::NotFound { program, source },
        (io::ErrorKind::PermissionDenied, _) | (_, Some(ERROR_BAD_EXE_FORMAT)) => {
            ProcessError::NotExecutable { program, source }
        }
        _ => ProcessError::Spawn { program, source },
    }
}

/// Whether a process ended as it was asked to.
pub(in crate::process) fn is_orderly(status: ExitStatus) -> bool {
    let code = status.code().map(|code| code as u32);
    status.success() || code == Some(STATUS_CONTROL_C_EXIT)
}

/// A process that was started. Until it is [`settled`](Self::settle), dropping it ends it, and what it started.
pub(in crate::process) struct Started {
    pub(in crate::process) process: ProcessIdentity,
    child: Option<Child>,
}

impl Started {
    /// Waits for its end. Returns its exit status; `None` if the system did not keep it. Cancel safe.
    pub(in crate::process) async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.ended().await
    }

    /// Ends it with what it started, and waits until it is gone.
    pub(in crate::process) async fn give_up(mut self) {
        if let Some(mut child) = self.child.take() {
            child.end();
            let grace = child.grace;
            let _ = timeout(grace, child.ended()).await;
        }
    }

    /// Takes the process as ready.
    pub(in crate::process) fn settle(mut self) -> Settled {
        Settled(self.child.take())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.end();
        // Its exit status is nobody's business any more.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { child.ended().await });
        }
    }
}

/// A process that is ready. If it is dropped, a detached one lives on, and an attached one ends.
pub(in crate::process) struct Settled(Option<Child>);

impl Settled {
    /// Waits for its end and returns its exit status; `None` if the system did not keep it. What an attached one leaves behind
    /// in its job ends, too.
    pub(in crate::process) async fn ended(self) -> Option<ExitStatus> {
        self.0?.ended().await
    }
}

/// A child of this process. An attached one has its job in it: once the last handle of that is closed, as by the end of this process,
/// all processes in the job end.
struct Child {
    child: Box<dyn ChildWrapper>,
    process: ProcessIdentity,
    /// That of the backends' files.
    directory: PathBuf,
    grace: Duration,
}

impl Child {
    /// Waits for the process itself, and not for the others in its job.
    async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.inner_mut().wait().await.ok()
    }

    fn end(&mut self) {
        Group::of(&self.process, &self.directory).kill();
        // The job, of an attached one.
        let _ = self.child.start_kill();
    }
}
