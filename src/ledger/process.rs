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
