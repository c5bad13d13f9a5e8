//! The log of a backend: bounded, private, and the source of its last words.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::SystemTime;

use super::error::{ProcessError, off_thread_call};
use super::files::{Files, open_to_append, open_to_read};
use super::sys;

/// How much of the log is searched for last words.
const LAST: u64 = 8 * 1024;
const MOST_LINES: usize = 10;
const MOST_BYTES: usize = 1000;

/// Opens the log for a launch, cuts it if it is longer than `limit` bytes, and writes a line that says which launch begins.
/// Returns the file and where the backend's words will begin.
pub(super) fn open(path: &Path, limit: u64, launch: u64) -> Result<(File, u64), ProcessError> {
    let mut file = open_to_append(path)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_secs();
    let begun = (|| {
        cut(&mut file, path, limit)?;
        // Also shows that the log can be written.
        file.write_all(format!("--- launch {launch}, {since} s after 1970\n").as_bytes())?;
        file.metadata().map(|metadata| metadata.len())
    })();
    let start = begun.map_err(|error| ProcessError::file(path, "write", error))?;
    Ok((file, start))
}

/// Cuts the log of a running backend if it is longer than `limit` bytes. What the backend writes meanwhile may be lost. Does
/// nothing if that is not possible, in a read-only directory for example: the next launch cuts it.
pub(super) async fn keep_short(files: &Files, limit: u64) {
    let path = files.log();
    let is_long = path
        .symlink_metadata()
        .is_ok_and(|metadata| metadata.len() > limit);
    if is_long {
        let _ = off_thread_call(move || {
            keep_short_blocking(&path, limit);
            Ok(())
        })
        .await;
    }
}

fn keep_short_blocking(path: &Path, limit: u64) {
    if let Ok(mut file) = open_to_append(path) {
        let _ = cut(&mut file, path, limit);
    }
}

/// Keeps the last half of `limit` bytes.
fn cut(file: &mut File, path: &Path, limit: u64) -> io::Result<()> {
    if file.metadata()?.len() <= limit {
        return Ok(());
    }
    // Two that cut at once would double what they keep.
    let Some(_alone) = sys::Alone::with(file, path) else {
        return Ok(());
    };
    let mut kept = Vec::new();
    let length = file.metadata()?.len();
    let kept_length = length.min(limit / 2);
    file.seek(SeekFrom::Start(length - kept_length))?;
    (&*file).take(kept_length).read_to_end(&mut kept)?;
    // Whole lines.
    let from = kept.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    sys::truncate(file, path)?;
    file.write_all(&kept[from..])
}

/// Returns the end of what was written since `start`.
fn end_of(path: &Path, start: u64, most: u64) -> io::Result<Vec<u8>> {
    let opened = open_to_read(path).map_err(io::Error::other)?;
    let Some(mut file) = opened else {
        return Ok(Vec::new());
    };
    let length = file.metadata()?.len();
    // It was cut since, so all of it may be of this launch.
    let start = if start > length { 0 } else { start };
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(most))))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a line with these words was written since `start`. False if that cannot be told: a shortage of descriptors passes.
pub(super) async fn has_line(files: &Files, start: u64, words: &str) -> bool {
    let (path, words) = (files.log(), words.to_owned());
    let found = off_thread_call(move || Ok(has_line_blocking(&path, start, &words)));
    matches!(found.await, Ok(Ok(true)))
}

fn has_line_blocking(path: &Path, start: u64, words: &str) -> io::Result<bool> {
    const MOST: u64 = 1024 * 1024;
    let bytes = end_of(path, start, MOST)?;
    // A line that is not finished may yet go on otherwise.
    let finished = bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..finished]);
    Ok(text.lines().any(|line| line.contains(words)))
}

/// Returns the last lines since `start` in one line, without the backtrace of a panic and the notes about it. If the log cannot be
/// read, that is said instead.
pub(super) async fn last_words(files: &Files, start: u64) -> String {
    let path = files.log();
    let words = off_thread_call(move || Ok(last_words_blocking(&path, start))).await;
    words.unwrap_or_else(|error| format!("its log cannot be read: {error}"))
}

fn last_words_blocking(path: &Path, start: u64) -> String {
    match end_of(path, start, LAST) {
        Ok(bytes) => words(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

fn words(text: &str) -> String {
    let is_note = |line: &str| line.starts_with("note: ") && line.contains("RUST_BACKTRACE");
    let mut is_in_backtrace = false;
    let told = |line: &&str| {
        // The frames are indented.
        is_in_backtrace =
            *line == "stack backtrace:" || is_in_backtrace && line.starts_with(char::is_whitespace);
        !(is_in_backtrace || is_note(line) || line.trim().is_empty())
    };
    let lines: Vec<_> = text.lines().filter(told).map(str::trim).collect();
    let lines = &lines[lines.len().saturating_sub(MOST_LINES)..];
    // Control characters would reach the terminal of whoever reads the error.
    let clean = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    let joined: String = lines.join(" | ").chars().map(clean).collect();
    let mut from = joined.len().saturating_sub(MOST_BYTES);
    while !joined.is_char_boundary(from) {
        from += 1;
    }
    joined[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_without_notes_blank_lines_and_control_characters() {
        let text = "\nthread 'main' panicked at src/main.rs:1:1:\nno \u{1b}[31mindex\n\
                    note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\
                    note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.\n";
        assert_eq!(
            words(text),
            "thread 'main' panicked at src/main.rs:1:1: | no \u{fffd}[31mindex"
        );
        let text = "no index\nstack backtrace:\n   0: std::panicking::begin\n             at /rustc/a.rs:1:1\n\
                    note: run with `RUST_BACKTRACE=full`\nfailed\n";
        assert_eq!(words(text), "no index | failed");
        assert_eq!(words(&"é".repeat(1000)).len(), 1000);
        assert_eq!(words(&"line\n".repeat(50)).matches("line").count(), 10);
    }

    #[test]
    fn a_log_is_cut_to_whole_lines_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.log");
        let (mut file, start) = open(&path, 100, 1).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;

            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        file.write_all(b"first words\n").unwrap();
        assert!(has_line_blocking(&path, start, "first").unwrap());
        assert!(!has_line_blocking(&path, start, "launch 1").unwrap());
        file.write_all(&b"0123456789\n".repeat(20)).unwrap();
        keep_short_blocking(&path, 100);
        // The backend writes on, at the new end.
        file.write_all(b"last words\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < 100, "{text}");
        assert!(text.ends_with("\n0123456789\nlast words\n"), "{text}");
        let mut lines = text.lines();
        let is_whole = |line| ["", "0123456789", "last words"].contains(&line);
        assert!(lines.all(is_whole), "{text}");
        assert!(last_words_blocking(&path, start).ends_with(" | last words"));
        let (_, next) = open(&path, 100, 2).unwrap();
        assert_eq!(last_words_blocking(&path, next), "");
    }

    #[cfg(unix)]
    #[test]
    fn a_log_that_another_process_cuts_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.log");
        std::fs::write(&path, "0123456789\n".repeat(20)).unwrap();
        let other = open_to_append(&path).unwrap();
        let alone = sys::Alone::with(&other, &path).unwrap();
        let length = || std::fs::metadata(&path).unwrap().len();
        keep_short_blocking(&path, 100);
        assert_eq!(length(), 220);
        drop(alone);
        keep_short_blocking(&path, 100);
        assert!(length() <= 50);
    }

    #[test]
    fn a_log_that_was_cut_at_its_launch_is_cut_again_while_its_backend_has_it_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.log");
        std::fs::write(&path, "0123456789\n".repeat(20)).unwrap();
        let (mut file, start) = open(&path, 100, 1).unwrap();
        assert!(start <= 100);
        file.write_all(&b"0123456789\n".repeat(20)).unwrap();
        keep_short_blocking(&path, 100);
        assert!(file.metadata().unwrap().len() <= 50);
    }

    #[test]
    fn last_words_are_the_last_ones_of_a_long_log_and_of_one_that_was_cut_since() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.log");
        let (mut file, start) = open(&path, u64::MAX, 1).unwrap();
        file.write_all(&b"first words\n".repeat(10_000)).unwrap();
        file.write_all(b"last words\n").unwrap();
        assert!(last_words_blocking(&path, start).ends_with(" | last words"));
        let (mut file, start) = open(&path, u64::MAX, 2).unwrap();
        file.write_all(b"it failed\n").unwrap();
        keep_short_blocking(&path, 1000);
        assert!(file.metadata().unwrap().len() < start);
        assert!(last_words_blocking(&path, start).ends_with(" | it failed"));
    }

    #[test]
    fn a_line_counts_once_it_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("indexer.log");
        let (mut file, start) = open(&path, 100, 1).unwrap();
        file.write_all(b"it is ready").unwrap();
        assert!(!has_line_blocking(&path, start, "is ready").unwrap());
        file.write_all(b"\n").unwrap();
        assert!(has_line_blocking(&path, start, "is ready").unwrap());
    }
}
