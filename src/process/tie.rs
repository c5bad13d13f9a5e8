//! Whether a backend outlives the process that launched it.

/// How a backend is tied to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// It lives on: on Unix a session of its own.
    Detached,
    /// It ends with this process: on Unix a group of its own with a watcher, on Windows a job.
    Attached,
}
