//! The record of a backend: what its launcher and the backend say about it, as text.
//!
//! ```text
//! spawn-gate backend 1
//! state ready
//! launch 17
//! endpoint unix:/run/user/1000/indexer.sock
//! ```
//!
//! Values are escaped, so that each stands in one line. Unknown names are skipped. Nothing is decided by the record alone:
//! whether a backend is there, the lock for its life says.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::endpoint::Endpoint;
use super::error::ProcessError;
use super::files::{
    Files, escape, escape_path, open_to_write, read, replace, unescape, unescape_path,
};
use super::identity::ProcessIdentity;
use super::notify::status;
use super::sys;

const HEADER: &str = "spawn-gate backend 1";

/// How far a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Ready,
    /// It has been stopped or was idle, and is about to end.
    Leaving,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) launch: u64,
    pub(super) launcher: ProcessIdentity,
    /// The backend's process, once it is ready or has said so itself.
    pub(super) process: Option<ProcessIdentity>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) version: Option<String>,
    pub(super) since: SystemTime,
    /// Where its words begin in the log.
    pub(super) log_start: u64,
    /// The line in its log that says that it is ready.
    pub(super) ready_line: Option<String>,
    /// Whether a connection says that it is ready.
    pub(super) ready_by_connection: bool,
    /// Whether it ends with the process that launched it.
    pub(super) is_attached: bool,
    /// Whether it has said itself that it is ready.
    pub(super) was_ready: bool,
    /// Whether it reads here that it is to end.
    pub(super) reads_requests: bool,
    /// What it last said about its start.
    pub(super) status: Option<String>,
}

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reading {
    Missing,
    /// Empty, half or junk.
    Junk,
    Found(Box<Record>),
}

impl Record {
    pub(super) fn read(files: &Files) -> Result<Reading, ProcessError> {
        let Some(bytes) = read(&files.record())? else {
            return Ok(Reading::Missing);
        };
        let text = String::from_utf8_lossy(&bytes);
        Ok(Self::parse(&text).map_or(Reading::Junk, |record| Reading::Found(Box::new(record))))
    }

    pub(super) fn write(&self, files: &Files) -> Result<(), ProcessError> {
        replace(&files.record(), self.to_text().as_bytes())
    }

    /// Writes the record in place of `last`. Does nothing if another one is there: it is newer.
    pub(super) fn replace(&self, last: &Self, files: &Files) -> Result<(), ProcessError> {
        match Self::read(files)? {
            Reading::Found(found) if found.to_text() == last.to_text() => self.write(files),
            _ => Ok(()),
        }
    }

    /// Writes what a starting backend says, unless the backend has written more itself: it may be ready by now.
    pub(super) fn note_status(
        files: &Files,
        launch: u64,
        status: Option<String>,
    ) -> Result<(), ProcessError> {
        match Self::read(files)? {
            Reading::Found(found) if found.launch == launch && found.state == State::Starting => {
                Self { status, ..*found }.write(files)
            }
            _ => Ok(()),
        }
    }

    fn to_text(&self) -> String {
        let state = match self.state {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Leaving => "leaving",
        };
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut text = format!("{HEADER}\nstate {state}\nlaunch {}\n", self.launch);
        let mut line = |name: &str, value: String| text.push_str(&format!("{name} {value}\n"));
        line("since-ms", since.as_millis().to_string());
        line("log-start", self.log_start.to_string());
        line("launcher", process_text(&self.launcher));
        if let Some(process) = &self.process {
            line("process", process_text(process));
        }
        match &self.endpoint {
            Some(Endpoint::Tcp(address)) => line("tcp", address.to_string()),
            Some(Endpoint::Unix(path)) => line("unix", escape_path(path)),
            None => {}
        }
        for (name, value) in [
            ("version", &self.version),
            ("ready-line", &self.ready_line),
            ("status", &self.status),
        ] {
            if let Some(value) = value {
                line(name, escape(value.as_bytes()));
            }
        }
        if self.is_attached {
            line("attached", "yes".to_owned());
        }
        if self.was_ready {
            line("was", "ready".to_owned());
        }
        if self.reads_requests {
            line("reads", "requests".to_owned());
        }
        if self.ready_by_connection {
            line("ready-by", "connection".to_owned());
        }
        // A record without this line was cut.
        text.push_str("end\n");
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix(HEADER)?.strip_prefix('\n')?;
        let lines: Vec<_> = body.strip_suffix("end\n")?.lines().collect();
        let value = |name: &str| {
            let values = lines.iter().filter_map(|line| line.split_once(' '));
            values
                .filter(|(found, _)| *found == name)
                .map(|(_, value)| value)
                .next()
        };
        let words = |name| {
            let bytes = value(name).and_then(unescape);
            bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let endpoint = match (value("tcp"), value("unix")) {
            (Some(address), _) => Some(Endpoint::Tcp(address.parse().ok()?)),
            (None, Some(path)) => Some(Endpoint::Unix(unescape_path(path)?)),
            (None, None) => None,
        };
        let since = Duration::from_millis(value("since-ms")?.parse().ok()?);
        Some(Self {
            state: match value("state")? {
                "starting" => State::Starting,
                "ready" => State::Ready,
                "leaving" => State::Leaving,
                _ => return None,
            },
            launch: value("launch")?.parse().ok()?,
            launcher: parse_process(value("launcher")?)?,
            process: value("process")
                .map(parse_process)
                .map_or(Some(None), |parsed| parsed.map(Some))?,
            endpoint,
            version: words("version"),
            since: UNIX_EPOCH.checked_add(since)?,
            log_start: value("log-start")?.parse().ok()?,
            ready_line: words("ready-line"),
            ready_by_connection: value("ready-by") == Some("connection"),
            is_attached: value("attached") == Some("yes"),
            was_ready: value("was") == Some("ready"),
            reads_requests: value("reads") == Some("requests"),
            status: words("status").map(|said| status(&said)),
        })
    }
}

/// The room for a process's name, taken before the process is started.
const PROCESS_ROOM: usize = 200;

/// The name of the backend's process beside the record, or in the lock file for its life: it is found even without a record. Open, with
/// room for the name, before the process is started: no shortage then ends it.
#[derive(Debug)]
pub(super) struct ProcessName {
    path: PathBuf,
    file: File,
}

impl ProcessName {
    /// Names no process.
    pub(super) fn clear(files: &Files) -> Result<Self, ProcessError> {
        let path = sys::name_file(files);
        let file = open_to_write(&path)?;
        let name = Self { path, file };
        name.write_text("")?;
        Ok(name)
    }

    pub(super) fn write(&self, process: &ProcessIdentity) -> Result<(), ProcessError> {
        self.write_text(&format!("process {}", process_text(process)))
    }

    /// Writes in place: another file would be another lock.
    fn write_text(&self, text: &str) -> Result<(), ProcessError> {
        let padded = format!("{text:<PROCESS_ROOM$}\n");
        sys::write_all_at(&self.file, padded.as_bytes(), 0)
            .map_err(|error| ProcessError::file(&self.path, "write", error))
    }
}

pub(super) fn read_process(files: &Files) -> Result<Option<ProcessIdentity>, ProcessError> {
    let bytes = read(&sys::name_file(files))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let process = text.trim_end().strip_prefix("process ");
    Ok(process.and_then(parse_process))
}

fn process_text(process: &ProcessIdentity) -> String {
    let started = process.started.map(|started| started.to_string());
    let place = process
        .place
        .as_deref()
        .map(|place| escape(place.as_bytes()));
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    format!("{} {} {}", process.pid, or_dash(started), or_dash(place))
}

fn parse_process(text: &str) -> Option<ProcessIdentity> {
    let mut words = text.split(' ');
    let pid = words.next()?.parse().ok()?;
    let started = match words.next()? {
        "-" => None,
        started => Some(started.parse().ok()?),
    };
    let place = match words.next()? {
        "-" => None,
        place => Some(String::from_utf8(unescape(place)?).ok()?),
    };
    Some(ProcessIdentity {
        pid,
        started,
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            state: State::Ready,
            launch: 17,
            launcher: ProcessIdentity::of_this_process(),
            process: Some(ProcessIdentity {
                pid: 4,
                started: None,
                place: None,
            }),
            endpoint: Some(Endpoint::Unix("/tmp/a b\n\u{fffd}".into())),
            version: Some("2 beta".to_owned()),
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
            log_start: 99,
            ready_line: Some("ready to\taccept".to_owned()),
            ready_by_connection: true,
            is_attached: true,
            was_ready: true,
            reads_requests: true,
            status: None,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for record in [
            record(),
            Record {
                endpoint: Some(Endpoint::Tcp("[::1]:80".parse().unwrap())),
                process: None,
                state: State::Leaving,
                version: None,
                ready_line: None,
                ready_by_connection: false,
                is_attached: false,
                was_ready: false,
                reads_requests: false,
                status: Some("loading 3 %".to_owned()),
                ..record()
            },
        ] {
            assert_eq!(Record::parse(&record.to_text()), Some(record));
        }
    }

    #[test]
    fn a_record_that_is_empty_or_half_or_junk_is_none() {
        let text = record().to_text();
        for length in 0..text.len() {
            assert_eq!(Record::parse(&text[..length]), None, "{length}");
        }
        for junk in ["\0\0\0", "spawn-gate backend 2\nend\n", "state ready\n"] {
            assert_eq!(Record::parse(junk), None);
        }
        assert_eq!(Record::parse(&text.replace("launch 17", "launch -1")), None);
        assert_eq!(Record::parse(&text.replace("ready\n", "asleep\n")), None);
    }

    #[test]
    fn a_status_is_noted_only_while_the_backend_of_that_launch_is_starting() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let starting = Record {
            state: State::Starting,
            ..record()
        };
        let noted = Record {
            status: Some("loading 3 %".to_owned()),
            ..starting.clone()
        };
        for (launch, before, after) in [
            (17, &starting, &noted),
            (16, &starting, &starting),
            (17, &record(), &record()),
        ] {
            before.write(&files).unwrap();
            Record::note_status(&files, launch, noted.status.clone()).unwrap();
            let found = Record::read(&files).unwrap();
            assert_eq!(found, Reading::Found(Box::new(after.clone())));
        }
    }

    #[test]
    fn a_record_that_is_newer_than_the_one_that_was_read_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let with_launch = |launch| Record { launch, ..record() };
        let (last, newer, next) = (with_launch(1), with_launch(2), with_launch(3));
        for (there, after) in [(&last, &next), (&newer, &newer)] {
            there.write(&files).unwrap();
            next.replace(&last, &files).unwrap();
            let found = Record::read(&files).unwrap();
            assert_eq!(found, Reading::Found(Box::new(after.clone())));
        }
    }

    #[test]
    fn a_launch_begins_without_the_name_of_the_last_ones_process() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path(), &"indexer".to_owned());
        let (short, long) = (record().process.unwrap(), record().launcher);
        for process in [long, short] {
            let name = ProcessName::clear(&files).unwrap();
            assert_eq!(read_process(&files).unwrap(), None);
            name.write(&process).unwrap();
            assert_eq!(read_process(&files).unwrap(), Some(process));
        }
    }
}
