//! The identity of this process in a ledger.

use std::sync::OnceLock;

use super::{LedgerHolder, ProcessHost};
use crate::budget::ClockReading;

/// This process as a holder since the given time.
pub(crate) fn this_process(since: ClockReading) -> LedgerHolder {
    LedgerHolder {
        pid: std::process::id(),
        since,
        process_started: process_started(),
        host: this_host().cloned(),
    }
}

/// Host and process namespace of this process; `None` if unknown.
pub(crate) fn this_host() -> Option<&'static ProcessHost> {
    static HOST: OnceLock<Option<ProcessHost>> = OnceLock::new();
    let host = HOST.get_or_init(|| {
        Some(ProcessHost {
            name: host_name()?,
            pid_namespace: pid_namespace(),
        })
    });
    host.as_ref()
}

#[cfg(unix)]
fn host_name() -> Option<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(windows)]
fn host_name() -> Option<String> {
    std::env::var("COMPUTERNAME").ok()
}

#[cfg(not(any(unix, windows)))]
fn host_name() -> Option<String> {
    None
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn pid_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;

    Some(std::fs::metadata("/proc/self/ns/pid").ok()?.ino())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn pid_namespace() -> Option<u64> {
    None
}

/// Field 22 of the process's `stat`; the fields before the last `)` may hold anything.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn process_started() -> Option<u64> {
    static STARTED: OnceLock<Option<u64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(19)?.parse().ok()
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn process_started() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_holder_is_named_by_process_start_host_and_namespace() {
        let since = ClockReading {
            unix: Duration::from_secs(1),
            boot: None,
        };
        let holder = this_process(since);
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder.since, since);
        let host = holder.host.unwrap();
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(host.name, name.trim_end());
        let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert_eq!(host.pid_namespace, Some(namespace));
        // The name before it is that of the test's thread or program, and has no space here.
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let started = stat.split(' ').nth(21).unwrap().parse().unwrap();
        assert_eq!(holder.process_started, Some(started));
    }
}
