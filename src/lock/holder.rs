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

/// A process in words.
pub(crate) struct Who<'a>(pub(crate) u32, pub(crate) Option<&'a ProcessHost>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)?;
        write_place(f, self.1, this_host())
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

/// Says where a process id is valid, unless it is `here`: a reader would take a bare process id for one of this host and this
/// process namespace.
fn write_place(
    f: &mut fmt::Formatter<'_>,
    host: Option<&ProcessHost>,
    here: Option<&ProcessHost>,
) -> fmt::Result {
    match (host, here) {
        (Some(host), Some(here)) if host.name == here.name => {
            if host.pid_namespace != here.pid_namespace {
                f.write_str(" of another process namespace")?;
            }
            Ok(())
        }
        (Some(host), _) => write!(f, " of host {}", host.name),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process id's place, as it is told to a reader at another one.
    struct Place(Option<ProcessHost>, Option<ProcessHost>);

    impl fmt::Display for Place {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_place(f, self.0.as_ref(), self.1.as_ref())
        }
    }

    #[test]
    fn a_process_id_is_told_with_its_place_unless_that_is_the_readers() {
        let at = |name: &str, namespace| {
            Some(ProcessHost {
                name: name.to_owned(),
                pid_namespace: Some(namespace),
            })
        };
        let place = |host, here| Place(host, here).to_string();
        assert_eq!(place(at("web-1", 1), at("web-1", 1)), "");
        assert_eq!(
            place(at("web-1", 2), at("web-1", 1)),
            " of another process namespace"
        );
        assert_eq!(place(at("web-2", 1), at("web-1", 1)), " of host web-2");
        assert_eq!(place(at("web-2", 1), None), " of host web-2");
        assert_eq!(place(None, at("web-1", 1)), "");
    }

    #[test]
    fn a_holder_here_is_named_by_its_process_id_alone() {
        let holder = LockHolder {
            path: "indexer.lock".into(),
            pid: 4711,
            host: this_host().cloned(),
            // In the future, so that no age is named.
            since: SystemTime::now() + std::time::Duration::from_secs(3600),
        };
        assert_eq!(holder.to_string(), "indexer.lock, which process 4711 took");
    }
}
