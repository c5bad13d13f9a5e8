//! What a starting backend says about its start.

use std::time::Duration;

use super::endpoint::Endpoint;

/// A message of a starting backend.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Message {
    pub(super) is_ready: bool,
    /// `STATUS=`, or the error that `ERRNO=` names.
    pub(super) status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`.
    pub(super) extend: Option<Duration>,
    /// `MAINPID=`.
    pub(super) main_pid: Option<u32>,
    pub(super) endpoint: Option<Endpoint>,
}

/// A status as it is recorded: short enough for a record, and without control characters, which would reach the terminal of whoever
/// reads it.
pub(super) fn status(text: &str) -> String {
    const MOST: usize = 500;
    let clean = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    text.chars().take(MOST).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_short_and_without_control_characters() {
        assert_eq!(status("\x1b[31mloading"), "\u{fffd}[31mloading");
        assert_eq!(status(&"é".repeat(10_000)).chars().count(), 500);
    }
}
