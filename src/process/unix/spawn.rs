//! Starting a process that inherits only what it is given, and ending one with its whole group.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use command_fds::CommandFdExt;
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession, ResetSigmask};
use rustix::process::Signal;
use tokio::process::ChildStdin;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::process::error::ProcessError;
use crate::process::files::Files;
use crate::process::identity::ProcessIdentity;
use crate::process::order::Order;
use crate::process::tie::Tie;

const POLL: Duration = Duration::from_millis(10);

impl Order {
    /// Starts the process. Blocks while it forks; to be called within a runtime.
    pub(in crate::process) fn spawn(mut self) -> Result<Started, ProcessError> {
        let (program, at) = (self.program(), self.place());
        let failed = |error| spawn_error(&program, &at, error);
        self.set_up().map_err(failed)?;
        let Self {
            mut command,
            tie,
            life,
            grace,
            ..
        } = self;
        command.stdin(Stdio::null());
        close_inherited_descriptors();
        reset_ignored_signals().map_err(failed)?;
        let mut command = tokio::process::Command::from(command);
        let (life, handed_over) = life.hand_over()?;
        command.preserved_fds(vec![life]);
        let mut wrapped = CommandWrap::from(command);
        wrapped.wrap(ResetSigmask);
        let (spawned, group) = match tie {
            Tie::Detached => {
                wrapped.wrap(ProcessSession);
                // Without the wrapper, whose wait is for the whole group.
                (wrapped.spawn().map(ChildWrapper::into_inner), None)
            }
            Tie::Attached => {
                // First, so that the backend is watched over from its first moment.
                let watcher = Watcher::start(grace).map_err(ProcessError::Watcher)?;
                let group = watcher.group.pid as i32;
                wrapped.command_mut().process_group(group);
                (wrapped.spawn(), Some(watcher))
            }
        };
        let child = spawned.map_err(failed)?;
        handed_over.keep();
        let process = ProcessIdentity::of(child.id().unwrap_or_default());
        Ok(Started {
            process: process.clone(),
            child: Some(Child {
                child,
                process,
                watcher: group,
                grace,
            }),
        })
    }
}

/// Lets descriptors that this process inherited, or made inheritable, end at exec. Rust's own do already.
fn close_inherited_descriptors() {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
}

/// Keeps the lock for this backend's life, and other descriptors that it inherited, from its children.
pub(in crate::process) fn close_inherited(_files: &Files) {
    close_inherited_descriptors();
}

/// Gives signals that this process ignores a handler that does nothing: exec resets handlers, and keeps what is ignored.
/// (The standard library resets SIGPIPE, which every Rust program ignores.)
fn reset_ignored_signals() -> io::Result<()> {
    // KILL and STOP cannot be ignored; what means an error of the program itself (ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS) is left
    // alone, and so are PIPE and those of the C library, of which musl has three. Numbers of Linux, as is the file below.
    const LEFT_ALONE: [u32; 13] = [4, 5, 6, 7, 8, 9, 11, 13, 19, 31, 32, 33, MUSLS];
    const MUSLS: u32 = if cfg!(target_env = "musl") { 34 } else { 33 };
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return Ok(());
    };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let Some(ignored) = ignored else {
        return Ok(());
    };
    for number in (1..=64).filter(|number| ignored & (1 << (number - 1)) != 0) {
        if !LEFT_ALONE.contains(&number) {
            drop(signal(SignalKind::from_raw(number as i32))?);
        }
    }
    Ok(())
}

fn spawn_error(program: &Path, at: &Path, source: io::Error) -> ProcessError {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};

    let is_of_a_path = matches!(source.kind(), NotADirectory | NotFound | PermissionDenied);
    if is_of_a_path && !may_enter(at) {
        return ProcessError::file(at, "enter", source);
    }
    let exists = program.components().count() > 1 && at.join(program).exists();
    let program = program.to_path_buf();
    match source.kind() {
        // A script whose interpreter is missing.
        NotFound if exists => ProcessError::NotExecutable { program, source },
        NotFound => match upgraded(&program) {
            Some(program) => ProcessError::Replaced { program },
            None => ProcessError::NotFound { program, source },
        },
        // Not what a process without the right to change its user or session gets.
        PermissionDenied
            if source.raw_os_error() == Some(rustix::io::Errno::ACCESS.raw_os_error()) =>
        {
            ProcessError::NotExecutable { program, source }
        }
        _ if source.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            ProcessError::NotExecutable { program, source }
        }
        _ => ProcessError::Spawn { program, source },
    }
}

/// Whether a process can have this working directory.
fn may_enter(directory: &Path) -> bool {
    directory.is_dir() && rustix::fs::access(directory, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The path of a running program that was replaced on disk, if this is what the system reports for one.
fn upgraded(program: &Path) -> Option<PathBuf> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let bytes = program.as_os_str().as_bytes();
    let path = bytes.strip_suffix(b" (deleted)")?;
    Some(OsStr::from_bytes(path).into())
}

/// Whether a process ended as it was asked to.
pub(in crate::process) fn is_orderly(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    let asked = [Signal::TERM, Signal::INT, Signal::HUP].map(Signal::as_raw);
    status.success()
        || status
            .signal()
            .is_some_and(|signal| asked.contains(&signal))
}

/// A process that was started. Until it is [`settled`](Self::settle), dropping it ends its whole group.
pub(in crate::process) struct Started {
    pub(in crate::process) process: ProcessIdentity,
    child: Option<Child>,
}

impl Started {
    /// Waits for its end. Returns its exit status; `None` if the system did not keep it. Cancel safe.
    pub(in crate::process) async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.child.wait().await.ok()
    }

    /// Ends the group, and waits until it is gone.
    pub(in crate::process) async fn give_up(mut self) {
        if let Some(child) = self.child.take() {
            child.end_group().await;
        }
    }

    /// Takes the process as ready.
    pub(in crate::process) fn settle(mut self) -> Settled {
        Settled(self.child.take())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => {
                // At once, since the runtime may end.
                child.signal_group(Signal::TERM);
                runtime.spawn(child.end_group());
            }
            Err(_) => child.signal_group(Signal::KILL),
        }
    }
}

/// A process that is ready. If it is dropped, a detached one lives on, and an attached one ends.
pub(in crate::process) struct Settled(Option<Child>);

impl Settled {
    /// Waits for its end and returns its exit status; `None` if the system did not keep it. What an attached one leaves behind
    /// in its group ends, too.
    pub(in crate::process) async fn ended(self) -> Option<ExitStatus> {
        let mut child = self.0?;
        let status = child.child.wait().await.ok();
        if child.watcher.is_some() {
            tokio::spawn(child.end_group());
        }
        status
    }
}

/// A child of this process, and the leader of its group or a member of its watcher's.
struct Child {
    child: Box<dyn ChildWrapper>,
    process: ProcessIdentity,
    watcher: Option<Watcher>,
    grace: Duration,
}

impl Child {
    fn group(&self) -> &ProcessIdentity {
        let watched = self.watcher.as_ref().map(|watcher| &watcher.group);
        watched.unwrap_or(&self.process)
    }

    fn signal_group(&self, signal: Signal) {
        self.group().signal_group(signal);
    }

    /// Ends the group: SIGTERM, the grace time, SIGKILL. Reaps the child. If this is dropped, as by a runtime that ends, the
    /// rest of the grace time is not waited for.
    fn end_group(self) -> impl Future<Output = ()> {
        struct Kill(Child);
        impl Drop for Kill {
            fn drop(&mut self) {
                self.0.signal_group(Signal::KILL);
            }
        }
        // Outside of the future: a runtime that ends may drop that before it is polled.
        let mut kill = Kill(self);
        async move {
            kill.0.signal_group(Signal::TERM);
            let grace = kill.0.grace;
            let gone = async {
                // An error says that it has been reaped.
                let _ = kill.0.child.wait().await;
                // What it leaves behind may end, too. A watcher is a member of the group, and stays.
                let watcher = kill.0.watcher.as_ref().map(|watcher| &watcher.group);
                while kill.0.group().group_lives(watcher) {
                    sleep(POLL).await;
                }
            };
            let _ = timeout(grace, gone).await;
            kill.0.signal_group(Signal::KILL);
            let _ = kill.0.child.wait().await;
            // The others are gone a moment later.
            let gone = async {
                while kill.0.group().group_lives(None) {
                    sleep(POLL).await;
                }
            };
            let _ = timeout(grace, gone).await;
        }
    }
}

/// A shell that leads the backend's group, and ends the group once this value, or this process, is gone: it waits for the end of
/// a pipe of which this process has the other end. While it lives, the group's number is not used again.
struct Watcher {
    group: ProcessIdentity,
    _pipe: Option<ChildStdin>,
}

impl Watcher {
    fn start(grace: Duration) -> io::Result<Self> {
        // The shell ignores SIGTERM, as does the `sleep` that it starts.
        let script = format!(
            "trap '' TERM; read _; kill -TERM 0; sleep {}; kill -KILL 0",
            grace.as_secs().max(1)
        );
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let group = ProcessIdentity::of(child.id().unwrap_or_default());
        let pipe = child.stdin.take();
        tokio::spawn(async move { child.wait().await });
        Ok(Self { group, _pipe: pipe })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn an_orderly_end_is_a_success_or_a_signal_that_asks_for_it() {
        let by = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        for orderly in [Signal::TERM, Signal::INT, Signal::HUP].map(by) {
            assert!(is_orderly(orderly), "{orderly}");
        }
        assert!(is_orderly(ExitStatus::from_raw(0)));
        for failed in [Signal::KILL, Signal::SEGV, Signal::ABORT].map(by) {
            assert!(!is_orderly(failed), "{failed}");
        }
        assert!(!is_orderly(ExitStatus::from_raw(1 << 8)));
    }
}
