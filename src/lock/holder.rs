//! The holder of a spawn lock, for people.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::ledger::{LedgerHolder, ProcessHost, this_host};

/// The holder of a spawn lock, for messages and admin pages, not for decisions: the process may be gone and its id in use by
/// another process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockHolder {
    /// The lock file, or the lock's name.
    pub path: PathBuf,
    /// The holder's process id, valid on its host and in its process namespace.
    pub pid: u32,
    /// Host and process namespace of that process id, if known.
    pub host: Option<ProcessHost>,
    /// Start of its launch, by the wall clock.
    pub since: SystemTime,
}

impl LockHolder {
    pub(crate) fn new(path: PathBuf, holder: &LedgerHolder) -> Self {
        Self {
            path,
            pid: holder.pid,
            host: holder.host.clone(),
            since: holder.since.system_time(),
        }
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It says "took", not "holds": the process may be gone, and a child that it forked may still hold the lock.
        let (path, who) = (self.path.display(), Who(self.pid, self.host.as_ref()));
        write!(f, "{path}, which {who} took{}", Ago(self.since))
    }
}

/// A process in words. A reader would take a bare process id for one of this host and this process namespace.
pub(crate) struct Who<'a>(pub(crate) u32, pub(crate) Option<&'a ProcessHost>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)?;
        match (self.1, this_host()) {
            (Some(host), Some(here)) if host.name != here.name => {
                write!(f, " of host {}", host.name)
            }
            (Some(host), Some(here)) if host.pid_namespace != here.pid_namespace => {
                f.write_str(" of another process namespace")
            }
            (Some(host), None) => write!(f, " of host {}", host.name),
            _ => Ok(()),
        }
    }
}

/// How long ago that was, after a space; nothing if the clock was set back.
pub(crate) struct Ago(pub(crate) SystemTime);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.elapsed() {
            Ok(age) => write!(f, " {:.1} s ago", age.as_secs_f64()),
            Err(_) => Ok(()),
        }
    }
}
