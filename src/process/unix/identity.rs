//! Processes, by `/proc` where there is one, and their signals.

use std::fs;

use rustix::process::{
    Pid, Signal, getpgrp, kill_process, kill_process_group, test_kill_process,
    test_kill_process_group,
};

use crate::process::files::Files;
use crate::process::identity::{Condition, ProcessIdentity};

impl ProcessIdentity {
    pub(in crate::process) fn of_this_process() -> Self {
        Self::of(std::process::id())
    }

    /// The process that has this id now.
    pub(in crate::process) fn of(pid: u32) -> Self {
        Self {
            pid,
            started: stat(pid).map(|stat| stat.started),
            place: this_place(),
        }
    }

    pub(in crate::process) fn condition(&self) -> Condition {
        if self.place.is_some() && self.place != this_place() {
            return match (&self.place, this_place()) {
                // Nothing outlives its boot.
                (Some(then), Some(now)) if boot_of(then) != boot_of(&now) => Condition::Gone,
                _ => Condition::Unknown,
            };
        }
        match (self.started, stat(self.pid)) {
            (Some(started), Some(stat)) if started != stat.started => Condition::Gone,
            (
                _,
                Some(Stat {
                    state: 'Z' | 'X', ..
                }),
            ) => Condition::Gone,
            (
                _,
                Some(Stat {
                    state: 'T' | 't', ..
                }),
            ) => Condition::Stopped,
            (Some(_), Some(_)) => Condition::Running,
            // The system tells no start times, so the id may be another process by now.
            (_, None) | (None, Some(_)) => match self.is_free() {
                true => Condition::Gone,
                false => Condition::Unknown,
            },
        }
    }

    /// Whether another process has the id. Then the group is gone, too: the id is not used again while its group has members.
    fn is_another_by_now(&self) -> bool {
        let now = stat(self.pid).map(|stat| stat.started);
        matches!((self.started, now), (Some(then), Some(now)) if then != now)
    }

    /// Whether no process has the id.
    fn is_free(&self) -> bool {
        let tried = self.raw().map(test_kill_process);
        matches!(tried, None | Some(Err(rustix::io::Errno::SRCH)))
    }

    fn raw(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }

    /// Asks the process to end: SIGTERM.
    pub(in crate::process) fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the process by force: SIGKILL.
    pub(in crate::process) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal to the process. False if it is gone, or cannot be told from a later one.
    fn signal(&self, signal: Signal) -> bool {
        if !self.may_be_signalled(self.condition()) {
            return false;
        }
        let sent = self.raw().map(|pid| kill_process(pid, signal));
        matches!(sent, Some(Ok(())))
    }

    /// The group that the process is in; the one that it may lead if that is not known, or is the group of this process.
    pub(in crate::process) fn group(&self, _files: &Files) -> Group {
        let own = getpgrp().as_raw_nonzero().get().unsigned_abs();
        let group = stat(self.pid)
            .filter(|stat| Some(stat.started) == self.started && stat.group != own)
            .map(|stat| Self::of(stat.group));
        Group(group.unwrap_or_else(|| self.clone()))
    }

    /// Sends a signal to the group that the process leads. False if that is gone.
    pub(super) fn signal_group(&self, signal: Signal) -> bool {
        if self.place.is_some() && self.place != this_place() || self.is_another_by_now() {
            return false;
        }
        let sent = self.raw().map(|pid| kill_process_group(pid, signal));
        matches!(sent, Some(Ok(())))
    }

    /// Whether the group that the process led has a member that lives, other than `except`. Zombies do not count: who is to reap
    /// them may take long.
    pub(super) fn group_lives(&self, except: Option<&Self>) -> bool {
        let exists = self.raw().map(test_kill_process_group);
        if !matches!(exists, Some(Ok(()) | Err(rustix::io::Errno::PERM))) {
            return false;
        }
        let Ok(processes) = fs::read_dir("/proc") else {
            return except.is_none();
        };
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| except.is_none_or(|except| except.pid != *pid))
            .filter_map(stat)
            .any(|stat| stat.group == self.pid && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Whether the process lives, or may live, and cannot be signalled from here: in another container, or as another user.
    pub(in crate::process) fn is_out_of_reach(&self) -> bool {
        // Once: it may end at any moment.
        let condition = self.condition();
        match condition {
            Condition::Gone => false,
            _ if !self.may_be_signalled(condition) => true,
            _ => matches!(
                self.raw().map(test_kill_process),
                Some(Err(rustix::io::Errno::PERM))
            ),
        }
    }

    fn may_be_signalled(&self, condition: Condition) -> bool {
        match condition {
            Condition::Running | Condition::Stopped => true,
            Condition::Gone => false,
            // Where the system tells no start times, the lock for the backend's life has to do.
            Condition::Unknown => self.place.is_none() || self.place == this_place(),
        }
    }
}

/// A process group, by its leader.
pub(in crate::process) struct Group(ProcessIdentity);

impl Group {
    /// Asks all members to end: SIGTERM.
    pub(in crate::process) fn ask_to_end(&self) {
        self.0.signal_group(Signal::TERM);
    }

    /// Ends all members by force: SIGKILL.
    pub(in crate::process) fn kill(&self) {
        self.0.signal_group(Signal::KILL);
    }
}

struct Stat {
    state: char,
    group: u32,
    /// In ticks since boot.
    started: u64,
}

/// What the kernel says about a process; `None` if there is none, or the system does not tell.
fn stat(pid: u32) -> Option<Stat> {
    if cfg!(not(any(target_os = "linux", target_os = "android"))) {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Boot and process namespace of this process.
fn this_place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let namespace = namespace.to_string_lossy();
    Some(format!("{}/{namespace}", boot.trim()))
}

fn boot_of(place: &str) -> Option<&str> {
    place.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_id() {
        let this = ProcessIdentity::of_this_process();
        assert!(matches!(
            this.condition(),
            Condition::Running | Condition::Unknown
        ));
        if this.started.is_none() {
            return;
        }
        let mut earlier = this.clone();
        earlier.started = earlier.started.map(|started| started - 1);
        assert_eq!(earlier.condition(), Condition::Gone);
        assert!(!earlier.signal_group(Signal::CONT));
        assert!(!earlier.signal(Signal::CONT));

        let mut elsewhere = this.clone();
        elsewhere.place = this
            .place
            .as_ref()
            .map(|place| format!("{}/pid:[1]", boot_of(place).unwrap()));
        assert_eq!(elsewhere.condition(), Condition::Unknown);
        assert!(!elsewhere.signal(Signal::CONT));
        assert!(!elsewhere.signal_group(Signal::CONT));

        let mut before_boot = this;
        before_boot.place = Some("another-boot/pid:[1]".to_owned());
        assert_eq!(before_boot.condition(), Condition::Gone);
    }

    #[test]
    fn a_group_is_told_from_that_of_a_later_process_and_from_the_own_one() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;

        let start = |group: Option<u32>| {
            let mut command = Command::new("sleep");
            command.arg("60");
            if let Some(group) = group {
                command.process_group(group as i32);
            }
            let child = command.spawn().unwrap();
            let process = ProcessIdentity::of(child.id());
            (child, process)
        };
        let (first, leader) = start(Some(0));
        let (second, member) = start(Some(leader.pid));
        let (third, of_this_group) = start(None);
        if leader.started.is_some() {
            let files = Files::new("/nowhere".as_ref(), &"indexer".to_owned());
            assert_eq!(leader.group(&files).0, leader);
            assert_eq!(member.group(&files).0, leader);
            assert_eq!(of_this_group.group(&files).0, of_this_group);
            let earlier = |process: &ProcessIdentity| ProcessIdentity {
                started: process.started.map(|started| started - 1),
                ..process.clone()
            };
            assert_eq!(earlier(&member).group(&files).0, earlier(&member));
            assert!(!earlier(&leader).signal_group(Signal::KILL));
            let elsewhere = ProcessIdentity {
                place: leader.place.as_deref().map(|place| format!("{place}-")),
                ..leader.clone()
            };
            assert!(!elsewhere.signal_group(Signal::KILL));
        }
        for mut child in [first, second, third] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_group_of_zombies_does_not_live() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;

        let mut child = Command::new("sleep");
        let mut child = child.arg("60").process_group(0).spawn().unwrap();
        let leader = ProcessIdentity::of(child.id());
        assert!(leader.group_lives(None));
        child.kill().unwrap();
        if leader.started.is_some() {
            while leader.condition() != Condition::Gone {
                std::thread::yield_now();
            }
            assert!(!leader.group_lives(None));
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_program_may_have_any_name() {
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};

        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("a) Z (b");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut command = Command::new(&program);
        command.arg0("sh").args(["-c", "read _"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let process = ProcessIdentity::of(child.id());
        assert!(process.place.is_none() || process.started.is_some());
        assert_ne!(process.condition(), Condition::Gone);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_of_another_user_is_out_of_reach() {
        // Root's reach has no end.
        if !rustix::process::geteuid().is_root() {
            assert!(ProcessIdentity::of(1).is_out_of_reach());
        }
        assert!(!ProcessIdentity::of_this_process().is_out_of_reach());
    }
}
