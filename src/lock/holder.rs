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
        write!(f, "{}, which process {}", self.path.display(), self.pid)?;
        // A reader would take a bare process id for one of this host and this process namespace.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_elsewhere_is_named_with_where_its_process_id_is_valid() {
        let named = |host: Option<ProcessHost>| {
            let holder = LockHolder {
                path: "indexer.lock".into(),
                pid: 4711,
                host,
                // In the future, so that no age is named.
                since: SystemTime::now() + std::time::Duration::from_secs(3600),
            };
            holder.to_string()
        };
        let elsewhere = ProcessHost {
            name: "another host".to_owned(),
            pid_namespace: None,
        };
        assert_eq!(
            named(Some(elsewhere)),
            "indexer.lock, which process 4711 of host another host took"
        );
        assert_eq!(named(None), "indexer.lock, which process 4711 took");
        let Some(here) = this_host() else {
            return;
        };
        assert_eq!(
            named(Some(here.clone())),
            "indexer.lock, which process 4711 took"
        );
        let mut beside = here.clone();
        beside.pid_namespace = Some(here.pid_namespace.map_or(1, |number| number + 1));
        assert_eq!(
            named(Some(beside)),
            "indexer.lock, which process 4711 of another process namespace took"
        );
    }
}
