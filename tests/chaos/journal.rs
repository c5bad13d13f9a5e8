//! What happened, as noted by the processes and the driver and not by the library: one line per event, in one file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

/// An event. The words are:
///
/// - `ask`, then `heard` or `gone` (the request was dropped): a request; the answer is the last word.
/// - `begin`, `end`: a launch, with its fencing token and how it ended.
/// - `abort`: by an operator in the process, of the key's flight.
/// - `harm`, `harmed`: before and after something is done to the lock file of a key.
/// - `killing`, `killed`: before the signal, and after the process has ended.
/// - `stop`, `continue`: the signals.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) what: String,
    /// The process that it is about.
    pub(crate) process: usize,
    pub(crate) key: String,
    /// Tells the requests of a process apart.
    pub(crate) request: u64,
    /// The fencing token; zero if there is none.
    pub(crate) token: u64,
    pub(crate) how: String,
}

impl Event {
    pub(crate) fn new(what: &str, process: usize, key: &str) -> Self {
        Self {
            what: what.to_owned(),
            process,
            key: key.to_owned(),
            request: 0,
            token: 0,
            how: "-".to_owned(),
        }
    }

    pub(crate) fn of(mut self, request: u64, token: u64) -> Self {
        (self.request, self.token) = (request, token);
        self
    }

    pub(crate) fn how(mut self, how: impl Into<String>) -> Self {
        self.how = how.into().replace('\n', " ");
        self
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        Some(Self {
            what: words.next()?.to_owned(),
            process: words.next()?.parse().ok()?,
            key: words.next()?.to_owned(),
            request: words.next()?.parse().ok()?,
            token: words.next()?.parse().ok()?,
            how: words.next()?.to_owned(),
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            process,
            key,
            request,
            token,
            how,
        } = self;
        write!(f, "{what} {process} {key} {request} {token} {how}")
    }
}

#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(directory: &Path) -> Self {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true);
        Self(file.open(directory.join("journal")).unwrap())
    }

    /// One write to a file opened for appending: lines of several processes do not mix, and their order is that of the events.
    pub(crate) fn note(&self, event: &Event) {
        let line = format!("{event}\n");
        (&self.0).write_all(line.as_bytes()).unwrap();
    }
}

/// A journal as the driver reads it, while others write.
pub(crate) struct Reader {
    journal: Journal,
    /// Apart from that, since a write moves the place of the next read.
    file: File,
    unread: String,
    pub(crate) events: Vec<Event>,
}

impl Reader {
    pub(crate) fn open(directory: &Path) -> Self {
        Self {
            journal: Journal::open(directory),
            file: File::open(directory.join("journal")).unwrap(),
            unread: String::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn note(&self, event: &Event) {
        self.journal.note(event);
    }

    /// Reads what is new. Returns how many events there are.
    pub(crate) fn read(&mut self) -> usize {
        self.file.read_to_string(&mut self.unread).unwrap();
        while let Some((line, rest)) = self.unread.split_once('\n') {
            let event = Event::parse(line);
            self.events
                .push(event.unwrap_or_else(|| panic!("no event: {line}")));
            self.unread = rest.to_owned();
        }
        self.events.len()
    }

    /// Whether a launch of the key has begun and not ended.
    pub(crate) fn is_launching(&self, key: &str) -> bool {
        let of_key = |event: &&Event| event.key == key;
        let last = self
            .events
            .iter()
            .rev()
            .filter(of_key)
            .find(|event| matches!(&*event.what, "begin" | "end"));
        last.is_some_and(|event| event.what == "begin")
    }

    pub(crate) fn last(&self, count: usize) -> String {
        let first = self.events.len().saturating_sub(count);
        let lines: Vec<_> = self.events[first..]
            .iter()
            .map(ToString::to_string)
            .collect();
        lines.join("\n")
    }
}
