//! Which process a process id means: the number alone may be another process by now, or another one in another container.

/// A process, told apart from later ones with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessIdentity {
    pub(super) pid: u32,
    /// When it started, in a unit of the system's; `None` if the system does not tell.
    pub(super) started: Option<u64>,
    /// The boot and the process namespace in which the id is valid; `None` if the system does not tell.
    pub(super) place: Option<String>,
}

/// What is known about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Running,
    /// Stopped by a signal (SIGSTOP, or a debugger).
    Stopped,
    Gone,
    Unknown,
}
