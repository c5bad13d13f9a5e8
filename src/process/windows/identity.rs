//! Processes, by their id and the time of their creation, and ending them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use winsafe::co::{ERROR, PROCESS, TH32CS, WAIT};
use winsafe::guard::CloseHandleGuard;
use winsafe::{HPROCESS, HPROCESSLIST};

use crate::process::files::Files;
use crate::process::identity::{Condition, ProcessIdentity};
use crate::process::record::read_process;

/// The exit code of what is ended by force, as the task manager sets it.
const ENDED: u32 = 1;

/// Whether the system tells which process has a file open.
pub(in crate::process) const KNOWS_HOLDERS: bool = false;

/// Finds the backend's process if no file names it. The system does not tell.
pub(in crate::process) fn holder_of(
    _files: &Files,
    _launch: Option<u64>,
) -> Option<ProcessIdentity> {
    None
}

/// Whether a process has the lock for the backend's life. The system does not tell: it is assumed that it has.
pub(in crate::process) fn holds(_pid: u32, _files: &Files) -> bool {
    true
}

impl ProcessIdentity {
    pub(in crate::process) fn of_this_process() -> Self {
        Self::of(std::process::id())
    }

    /// The process that has this id now.
    pub(in crate::process) fn of(pid: u32) -> Self {
        let started = open(pid, PROCESS::QUERY_LIMITED_INFORMATION).ok();
        Self {
            pid,
            started: started.and_then(|process| created(&process)),
            place: None,
        }
    }

    pub(in crate::process) fn condition(&self) -> Condition {
        let access = PROCESS::QUERY_LIMITED_INFORMATION | PROCESS::SYNCHRONIZE;
        let process = match open(self.pid, access) {
            Ok(process) => process,
            Err(ERROR::INVALID_PARAMETER) => return Condition::Gone,
            Err(_) => return Condition::Unknown,
        };
        match (self.started, created(&process)) {
            (Some(then), Some(now)) if then != now => return Condition::Gone,
            (Some(_), Some(_)) => {}
            _ => return Condition::Unknown,
        }
        match process.WaitForSingleObject(Some(0)) {
            Ok(WAIT::OBJECT_0) => Condition::Gone,
            Ok(_) => Condition::Running,
            Err(_) => Condition::Unknown,
        }
    }

    /// Does nothing: there is no signal that every program gets. What the record says is the request, see `Requests`.
    pub(in crate::process) fn ask_to_end(&self) {}

    /// Ends the process by force.
    pub(in crate::process) fn kill(&self) {
        // While the handle is open, the id is not used again.
        if let Ok(process) = open(
            self.pid,
            PROCESS::QUERY_LIMITED_INFORMATION | PROCESS::TERMINATE,
        ) {
            if self.started.is_some() && created(&process) == self.started {
                // It may have ended meanwhile.
                let _ = process.TerminateProcess(ENDED);
            }
        }
    }

    /// The process and those that it started, and so on.
    pub(in crate::process) fn group(&self, files: &Files) -> Group {
        Group::of(self, files.directory())
    }

    /// Whether the process lives, or may live, and cannot be ended from here: it belongs to another user.
    pub(in crate::process) fn is_out_of_reach(&self) -> bool {
        match open(self.pid, PROCESS::TERMINATE) {
            Ok(_) | Err(ERROR::INVALID_PARAMETER) => false,
            Err(_) => self.condition() != Condition::Gone,
        }
    }
}

/// A process and its descendants, without this process and without the other backends of a directory: those are detached.
pub(in crate::process) struct Group {
    root: ProcessIdentity,
    directory: PathBuf,
}

impl Group {
    pub(super) fn of(root: &ProcessIdentity, directory: &Path) -> Self {
        Self {
            root: root.clone(),
            directory: directory.to_path_buf(),
        }
    }

    /// Does nothing, see [`ProcessIdentity::ask_to_end`].
    pub(in crate::process) fn ask_to_end(&self) {}

    /// Ends all of them by force. Those whose parent has ended before are not found.
    pub(in crate::process) fn kill(&self) {
        for process in self.members() {
            process.kill();
        }
    }

    /// The process first, each after its parent.
    fn members(&self) -> Vec<ProcessIdentity> {
        let mut members = vec![self.root.clone()];
        let mut known = HashSet::from([self.root.pid, std::process::id()]);
        known.extend(backends_in(&self.directory));
        let now = FileTime::now();
        let all = processes();
        let mut next = 0;
        while let Some(parent) = members.get(next).cloned() {
            next += 1;
            let same = ProcessIdentity::of(parent.pid);
            if same.started.is_some() && same.started != parent.started {
                // Its id is that of a later process by now, and so are the children.
                continue;
            }
            for &(pid, of) in &all {
                if of != parent.pid || known.contains(&pid) {
                    continue;
                }
                let child = ProcessIdentity::of(pid);
                // Not one from before its parent's id was that of the parent, nor one that got its own id since.
                let is_child = child
                    .started
                    .is_some_and(|at| Some(at) >= parent.started && at <= now.0);
                if is_child {
                    known.insert(pid);
                    members.push(child);
                }
            }
        }
        members
    }
}

/// The ids of the backends that the files of a directory name.
fn backends_in(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| Files::from_stem(&directory.join(name.strip_suffix(".process")?)))
        .filter_map(|files| read_process(&files).ok().flatten())
        .map(|process| process.pid)
        .collect()
}

/// A moment in units of 100 ns since 1601, as the system counts it.
struct FileTime(u64);

impl FileTime {
    fn now() -> Self {
        const SECONDS_TO_1970: u64 = 11_644_473_600;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let since_1970 = since_1970.unwrap_or_default();
        let units = since_1970.as_nanos() / 100;
        Self(SECONDS_TO_1970 * 10_000_000 + u64::try_from(units).unwrap_or(u64::MAX / 2))
    }
}

/// The ids of all processes, each with that of its parent.
fn processes() -> Vec<(u32, u32)> {
    let Ok(mut list) = HPROCESSLIST::CreateToolhelp32Snapshot(TH32CS::SNAPPROCESS, None) else {
        return Vec::new();
    };
    list.iter_processes()
        .map_while(Result::ok)
        .map(|process| (process.th32ProcessID, process.th32ParentProcessID))
        .collect()
}

fn open(pid: u32, access: PROCESS) -> Result<CloseHandleGuard<HPROCESS>, ERROR> {
    HPROCESS::OpenProcess(access, false, pid)
}

/// When a process was created, see [`FileTime`].
fn created(process: &HPROCESS) -> Option<u64> {
    let (created, ..) = process.GetProcessTimes().ok()?;
    Some(u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_id() {
        let this = ProcessIdentity::of_this_process();
        assert_eq!(this.condition(), Condition::Running);
        assert!(!this.is_out_of_reach());
        let mut earlier = this;
        earlier.started = earlier.started.map(|started| started - 1);
        assert_eq!(earlier.condition(), Condition::Gone);
        // Does nothing, or the test ends here.
        earlier.kill();
        Group::of(&earlier, Path::new("missing")).kill();
    }
}
