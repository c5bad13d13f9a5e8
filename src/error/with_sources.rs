//! An error with its sources, for people.

use std::error::Error;
use std::fmt;

use crate::util::chain;

/// Returns something that prints an error and its sources in one line, separated by `: `.
///
/// The outermost error alone seldom says what to mend. A [`GateError`](crate::GateError) prints its sources with `{:#}`, too; this is
/// for any error, such as a `ProcessError`, a [`SpawnLockError`](crate::SpawnLockError) or a [`BoxError`](crate::BoxError). At most
/// 16 errors are printed.
///
/// # Examples
///
/// ```
/// use spawn_gate::acquire_spawn_lock;
/// use spawn_gate::error::with_sources;
///
/// let error = acquire_spawn_lock("no-such-directory/indexer.lock").unwrap_err();
/// let text = with_sources(&error).to_string();
/// assert!(text.starts_with(&format!("{error}: ")));
/// ```
pub fn with_sources<'a>(error: &'a (dyn Error + 'static)) -> WithSources<'a> {
    WithSources(error)
}

/// What [`with_sources`] returns.
#[derive(Clone, Copy, Debug)]
pub struct WithSources<'a>(&'a (dyn Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.0))
    }
}
