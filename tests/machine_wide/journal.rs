//! The events as recorded by the processes and not by the library: one line per event, appended to one file.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Lines `event pid fencing-token`. `launch`: a launcher was called. `start`: a backend process began. `live`: it serves.
/// `gone`: it gave up before it did.
#[derive(Clone)]
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.join("journal"))
    }

    pub(crate) fn note(&self, event: &str, launch: u64) {
        let mut file: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0)
            .unwrap();
        // One write of a short line to a file opened for appending: lines of several processes do not mix.
        let line = format!("{event} {} {launch}\n", std::process::id());
        file.write_all(line.as_bytes()).unwrap();
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }

    /// The process and the fencing token of each such event.
    pub(crate) fn lines(&self, event: &str) -> Vec<(u32, u64)> {
        self.text()
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                (words.next()? == event).then_some(())?;
                Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
            })
            .collect()
    }

    pub(crate) fn wait_for(&self, event: &str, count: usize) {
        while self.lines(event).len() < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until each backend that began has become live or has given up.
    pub(crate) fn wait_for_undecided(&self) {
        let decided = |pid| {
            let mut ends = self.lines("live").into_iter().chain(self.lines("gone"));
            ends.any(|(other, _)| other == pid)
        };
        for (pid, _) in self.lines("start") {
            while !decided(pid) && crate::system::lives(pid) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub(crate) fn live_backends(&self) -> Vec<u32> {
        let live = self.lines("live").into_iter().map(|(pid, _)| pid);
        live.filter(|&pid| crate::system::lives(pid)).collect()
    }

    /// Ends the backends that live, and waits until they are gone.
    pub(crate) fn end_backends(&self) {
        for pid in self.live_backends() {
            crate::system::kill(pid);
            while crate::system::lives(pid) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
