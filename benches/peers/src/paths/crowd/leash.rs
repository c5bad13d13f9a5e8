//! Ends processes that this one cannot wait for: a backend outlives the process that launched it.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

/// The end of a backend is a few system calls away.
const LIMIT: Duration = Duration::from_secs(10);

/// Holds those whose standard input is [`end`](Self::end), and the processes that these start with the same input. When it is
/// dropped, also by a kill, that input ends.
pub(super) struct Leash {
    ours: UnixStream,
    theirs: UnixStream,
}

impl Leash {
    pub(super) fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("descriptors are left");
        Self { ours, theirs }
    }

    /// Returns the standard input of a process.
    pub(super) fn end(&self) -> Stdio {
        let end = self.theirs.try_clone().expect("a descriptor is left");
        Stdio::from(OwnedFd::from(end))
    }

    /// Ends the input of all, and waits until no process has it any more.
    pub(super) fn pull(self) {
        let Self { mut ours, theirs } = self;
        drop(theirs);
        ours.shutdown(Shutdown::Write).expect("it is connected");
        let limited = ours.set_read_timeout(Some(LIMIT));
        limited.expect("a limit of some seconds is valid");
        match ours.read(&mut [0]) {
            // Nobody writes to its input. A reset says that somebody left with input unread.
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("a process does not end: {other:?}"),
        }
    }
}
