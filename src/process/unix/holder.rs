//! Which process holds the lock for a backend's life.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use crate::process::files::{Files, LAUNCH, STEM};
use crate::process::identity::ProcessIdentity;

/// Whether the system tells which process has a file open.
pub(in crate::process) const KNOWS_HOLDERS: bool =
    cfg!(any(target_os = "linux", target_os = "android"));

/// Finds the backend's process if no file names it: its launcher was killed right after the start.
///
/// Returns the oldest process that has the lock file open and was started as this backend, by this launch if it is known; `None` if
/// there is none, or the system does not tell (all but Linux). Its children inherit both, and are younger. Whoever only looks at the
/// lock has another environment.
pub(in crate::process) fn holder_of(files: &Files, launch: Option<u64>) -> Option<ProcessIdentity> {
    if !KNOWS_HOLDERS {
        return None;
    }
    let life = files.life().symlink_metadata().ok()?;
    let mut stem = format!("{STEM}=").into_bytes();
    stem.extend_from_slice(files.stem().as_os_str().as_bytes());
    let launch = launch.map(|launch| format!("{LAUNCH}={launch}").into_bytes());
    let marks: Vec<_> = [Some(stem), launch].into_iter().flatten().collect();
    let processes = fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| has_open(pid, &life) && has_in_environment(pid, &marks))
        .map(ProcessIdentity::of)
        .min_by_key(|process| (process.started, process.pid))
}

/// Whether a process has the lock for the backend's life. If the system does not tell, it is assumed that it has.
pub(in crate::process) fn holds(pid: u32, files: &Files) -> bool {
    if !KNOWS_HOLDERS {
        return true;
    }
    let life = files.life().symlink_metadata();
    life.is_ok_and(|life| has_open(pid, &life))
}

fn has_open(pid: u32, wanted: &Metadata) -> bool {
    // Those of other users cannot be read, and have nothing to do with a private file.
    let Ok(mut descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.any(|entry| {
        let opened = entry.and_then(|entry| fs::metadata(entry.path()));
        opened.is_ok_and(|opened| (opened.dev(), opened.ino()) == (wanted.dev(), wanted.ino()))
    })
}

fn has_in_environment(pid: u32, variables: &[Vec<u8>]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    variables.iter().all(|variable| {
        let mut all = environment.split(|&byte| byte == 0);
        all.any(|found| found == variable)
    })
}
