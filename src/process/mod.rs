//! Backends that are processes: start, find, stop and end them. With the feature `process`.
//!
//! The gate decides who may launch. [`ProcessLauncher`] is the launcher that most of its users need: it starts a command, waits
//! until that is [`Ready`], finds a running one, and ends it. [`Instance`] is the other side, for backends in Rust.
//!
//! ```
//! use std::process::Command;
//!
//! use spawn_gate::SpawnGate;
//! use spawn_gate::process::{Backend, Presence, ProcessLauncher, Ready, Stop, Stopped};
//!
//! # #[cfg(windows)]
//! # fn main() {}
//! # #[cfg(unix)]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), spawn_gate::BoxError> {
//! # let temporary = tempfile::tempdir()?;
//! # let directory = temporary.path();
//! let gate: SpawnGate<String, Backend> = SpawnGate::new(directory)?;
//! let clock = ProcessLauncher::new(&gate, directory, |_launch| {
//!     let mut shell = Command::new("sh");
//!     shell.args(["-c", "echo ready; while sleep 1; do date; done"]);
//!     Ok((shell, Ready::line("ready")))
//! });
//! let backend = clock.get_or_launch("clock").await?.value;
//! assert_eq!(clock.find("clock").await?, Presence::Ready(backend.clone()));
//! let stopped = clock.stop("clock", Stop::Orderly).await?;
//! assert_eq!(stopped, Stopped::Orderly { pid: backend.pid });
//! # Ok(())
//! # }
//! ```
//!
//! # Three answers
//!
//! Whether a backend is there has three answers: no ([`Presence::Gone`]); yes (the other variants of [`Presence`], or
//! [`ProcessError::Unusable`]); and any other error, which says why that cannot be told. A second backend is launched only after `Gone`.
//!
//! # What a platform cannot do
//!
//! - Windows: the lock for a backend's life is an open file that nobody else can open, and that the backend inherits as its (empty)
//!   standard input. What a program starts inherits it, too, and keeps the backend there if it outlives it; so does what a C library of
//!   this process starts in the moment of a launch. (A backend with an [`Instance`] takes it from its children, which was not seen to
//!   work under wine.) There is no signal that every program gets: only a backend with an [`Instance`] can be asked to end
//!   ([`Why::CannotBeAsked`]), and a launch that is given up is ended by force at once. The notify protocol is for backends with an
//!   [`Instance`]; Unix sockets are not there. If the launching process is killed right after the start, nobody knows the backend's
//!   process until it has made its [`Instance`]; an attached one may be left suspended, and a person has to end it. The right to use
//!   the files is in the directory's access control list. All this was run under wine, and not on Windows itself.
//! - macOS and the BSDs: there is no `/proc` to ask. A process is known by its id alone, so a signal may reach another process if a
//!   backend's id was used again while something else holds the lock for its life. A stopped process is not told from a busy
//!   one. A program that forked is not found after its first process has ended. Signals that this process ignores stay ignored in
//!   a backend.
//! - A log is cut only when its backend is launched or found.
//! - A detached backend is in a session of its own; in a container it ends with the container, and under systemd with the unit.

// Each imports only from those before it: connection, endpoint, identity, tie, error, files, log, notify, record, order, `unix` or
// `windows`, backend, ready, look, end, instance, leave, prepare, launcher, supervise, start, stop, in_use. (The methods of the launcher
// are in the last five. The files of the two rooms have the impl blocks of `identity` and `order`, and what `files`, `log`, `record` and
// `order` use.)
mod backend;
mod connection;
mod end;
mod endpoint;
mod error;
mod files;
mod identity;
mod in_use;
mod instance;
mod launcher;
mod leave;
mod log;
mod look;
mod notify;
mod order;
mod prepare;
mod ready;
mod record;
mod start;
mod stop;
mod supervise;
#[cfg(unix)]
#[path = "unix/mod.rs"]
mod sys;
#[cfg(windows)]
#[path = "windows/mod.rs"]
mod sys;
mod tie;

pub use self::backend::{Backend, Presence};
pub use self::connection::Connection;
pub use self::endpoint::{Endpoint, ParseEndpointError};
pub use self::error::{ProcessError, Unusable, Why};
pub use self::in_use::InUse;
pub use self::instance::Instance;
pub use self::launcher::ProcessLauncher;
pub use self::leave::{Busy, Leave};
pub use self::ready::Ready;
pub use self::stop::{Stop, Stopped};
