//! The files of one backend, and how they are opened and replaced.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::error::ProcessError;
use super::sys;
use crate::key::{GateKey, LockName};

/// The variable with the launch's fencing token.
pub(super) const LAUNCH: &str = "SPAWN_GATE_LAUNCH";

/// The variable with the common part of the files' paths.
pub(super) const STEM: &str = "SPAWN_GATE_BACKEND";

/// Records are short. What is longer is none.
const LONGEST_RECORD: u64 = 64 * 1024;

/// The files of one backend: `NAME.life` and so on, where `NAME.lock` is the key's [`LockName`].
#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
    name: String,
}

impl Files {
    pub(super) fn new<K: GateKey>(directory: &Path, key: &K) -> Self {
        let name = LockName::new(key).as_str().to_owned();
        let name = name.strip_suffix(".lock").unwrap_or(&name).to_owned();
        Self {
            directory: directory.to_path_buf(),
            name,
        }
    }

    /// The files of the backend that [`stem`](Self::stem) names.
    pub(super) fn from_stem(stem: &Path) -> Option<Self> {
        Some(Self {
            directory: stem.parent()?.to_path_buf(),
            name: stem.file_name()?.to_str()?.to_owned(),
        })
    }

    /// The common part of all paths.
    pub(super) fn stem(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The lock that is held as long as the backend lives. Its text names the process.
    pub(super) fn life(&self) -> PathBuf {
        self.with(".life")
    }

    /// What the launcher and the backend say about the backend.
    pub(super) fn record(&self) -> PathBuf {
        self.with(".backend")
    }

    /// What the backend writes to standard output and standard error.
    pub(super) fn log(&self) -> PathBuf {
        self.with(".log")
    }

    /// The lock that callers share, and that a backend takes to leave.
    pub(super) fn in_use(&self) -> PathBuf {
        self.with(".use")
    }

    /// The socket of the notify protocol.
    #[cfg(unix)]
    pub(super) fn notify(&self) -> PathBuf {
        self.short(".notify")
    }

    /// The socket of a backend that has no other place for it.
    #[cfg(unix)]
    pub(super) fn socket(&self) -> PathBuf {
        self.short(".sock")
    }

    /// A name that is short, since the path of a socket has to be: a part of the hash in the key's name.
    #[cfg(unix)]
    fn short(&self, suffix: &str) -> PathBuf {
        const DIGITS: usize = 24;
        let hash = self.name.rsplit('-').next().unwrap_or_default();
        let hash = hash.get(..DIGITS).unwrap_or(hash);
        self.directory.join(format!("{hash}{suffix}"))
    }

    fn with(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}{suffix}", self.name))
    }
}

/// Opens a file for appending, and makes it with mode 0600 if there is none.
pub(super) fn open_to_append(path: &Path) -> Result<File, ProcessError> {
    // Readable, too: it is cut and searched through the same handle.
    let opened = sys::open(path, |options| options.read(true).append(true).create(true));
    regular(path, opened)
}

/// Opens a file for writing, and makes it with mode 0600 if there is none.
pub(super) fn open_to_write(path: &Path) -> Result<File, ProcessError> {
    let opened = sys::open(path, |options| {
        options.write(true).create(true).truncate(false)
    });
    regular(path, opened)
}

/// Opens a file for reading; `None` if there is none.
pub(super) fn open_to_read(path: &Path) -> Result<Option<File>, ProcessError> {
    match sys::open(path, |options| options.read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => regular(path, opened).map(Some),
    }
}

fn regular(path: &Path, opened: io::Result<File>) -> Result<File, ProcessError> {
    let not_regular = || io::Error::other("it is not a regular file");
    let opened = opened.and_then(|file| match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_regular()),
    });
    opened.map_err(|error| {
        // What stands there says more than the error number.
        let kind = path.symlink_metadata().map(|found| found.file_type());
        let error = match kind {
            Ok(kind) if !kind.is_file() => not_regular(),
            _ => error,
        };
        ProcessError::file(path, "open", error)
    })
}

/// Reads a short file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, ProcessError> {
    let Some(file) = open_to_read(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_RECORD)
        .read_to_end(&mut bytes)
        .map_err(|error| ProcessError::file(path, "read", error))?;
    Ok(Some(bytes))
}

/// Replaces a file. A reader sees the old one or the new one, never half of it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ProcessError> {
    let mut unfinished = OsString::from(path);
    // Several threads, processes and containers may replace it at once.
    let unique = RandomState::new().hash_one(std::process::id());
    unfinished.push(format!(".{unique:016x}.new"));
    let unfinished = PathBuf::from(unfinished);
    let written = sys::open(&unfinished, |options| options.write(true).create_new(true))
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| sys::rename(&unfinished, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        ProcessError::file(path, "write", error)
    })
}

/// Writes bytes so that they stand in one line and are split at no space: all but printable ASCII as `%XX`.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'!'..=b'~' if byte != b'%' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02x}")),
        }
    }
    text
}

/// Reads what [`escape`] wrote.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

pub(super) fn escape_path(path: &Path) -> String {
    escape(&sys::path_bytes(path))
}

pub(super) fn unescape_path(text: &str) -> Option<PathBuf> {
    sys::path_of_bytes(unescape(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_several_threads_replace_is_never_half() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("indexer.backend");
        let texts = [vec![b'a'; 9_000], vec![b'b'; 5]];
        replace(path, &texts[0]).unwrap();
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(move || {
                    for _ in 0..200 {
                        replace(path, text).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                let found = read(path).unwrap().unwrap();
                assert!(texts.contains(&found), "{} bytes", found.len());
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_bytes_survive_a_line_of_text() {
        let all: Vec<u8> = (0..=255).collect();
        let text = escape(&all);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(unescape(&text), Some(all));
        for junk in ["%", "%4", "%zz", "a%f"] {
            assert_eq!(unescape(junk), None);
        }
    }

    #[test]
    fn a_file_that_cannot_be_replaced_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.backend");
        fs::create_dir(&path).unwrap();
        replace(&path, b"text").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
