//! Who holds a spawn lock, for people.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::ledger::{LedgerHolder, ProcessHost, this_host};

/// Who holds a spawn lock: for messages and admin pages, not for decisions. The process may be gone and its id in use by
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockHolder {
    /// The lock file, or the lock's name.
    pub path: PathBuf,
    /// The holder's process id, on its host and in its process namespace.
    pub pid: u32,
    /// Where that process id means something, if that is known.
    pub host: Option<ProcessHost>,
    /// Since when it has been launching, by the wall clock.
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
        // Not that this process holds it: it may be gone, and a child that it forked hold the lock yet.
        write!(f, "{}, which process {}", self.path.display(), self.pid)?;
        // A process id alone would be taken for one of this host and this process namespace.
        match (&self.host, this_host()) {
            (Some(host), Some(here)) if host.name != here.name => {
                write!(f, " of host {}", host.name)?;
            }
            (Some(host), Some(here)) if host.pid_namespace != here.pid_namespace => {
                f.write_str(" of another process namespace")?;
            }
            (Some(host), None) => write!(f, " of host {}", host.name)?,
            _ => {}
        }
        f.write_str(" took")?;
        match self.since.elapsed() {
            Ok(age) => write!(f, " {:.1} s ago", age.as_secs_f64()),
            // The clock was set back.
            Err(_) => Ok(()),
        }
    }
}
