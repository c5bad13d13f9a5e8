//! An error and its sources as text.

use std::error::Error;
use std::fmt;

use super::caught;

/// Bounds a chain of sources, which could be cyclic.
const MAX_ERRORS: usize = 16;

/// Implements `Display` for an error: writes `message` and, for `{:#}`, the messages of the sources.
pub(crate) fn write_with_sources(
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

/// Returns the messages of an error and its sources. They may be user code, whose panics must not keep a flight from ending.
pub(crate) fn chain(error: &dyn Error) -> String {
    let errors = std::iter::successors(Some(error), |&error| {
        caught(|| error.source()).ok().flatten()
    });
    let messages = errors.take(MAX_ERRORS).map(|error| {
        caught(|| error.to_string()).unwrap_or_else(|_| "an error whose message panicked".into())
    });
    messages.collect::<Vec<_>>().join(": ")
}
