//! An error with all its sources, in words.

use std::error::Error;
use std::fmt;

use super::caught;

/// Bounds a chain of sources, which could be cyclic.
const MAX_ERRORS: usize = 16;

/// Writes an error's message and, if `{:#}` asks for it, the messages of its sources. For the `Display` of an error whose plain
/// message `message` writes.
pub(crate) fn with_sources(
    f: &mut fmt::Formatter<'_>,
    error: &dyn Error,
    message: impl FnOnce(&mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    message(f)?;
    match error.source() {
        Some(source) if f.alternate() => write!(f, ": {}", chain(source)),
        _ => Ok(()),
    }
}

/// Returns the messages of an error and its sources. These may be a user's code, which must not keep a flight from ending.
pub(crate) fn chain(error: &dyn Error) -> String {
    let errors = std::iter::successors(Some(error), |&error| {
        caught(|| error.source()).ok().flatten()
    });
    let messages = errors.take(MAX_ERRORS).map(|error| {
        caught(|| error.to_string()).unwrap_or_else(|_| "an error without words".into())
    });
    messages.collect::<Vec<_>>().join(": ")
}
