//! The builder of a lock.

use std::fmt;
use std::time::Duration;

use crate::config::{Config, Tls, redacted};
use crate::core::Core;
use crate::error::EtcdError;
use crate::lock::EtcdSpawnLock;

/// The settings of an [`EtcdSpawnLock`]. All programs that share locks use the same prefix.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct EtcdSpawnLockBuilder(Config);

impl EtcdSpawnLockBuilder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self(Config {
            endpoints,
            prefix: "spawn-gate".to_owned(),
            expires_in: Duration::from_secs(10),
            kept_for: Duration::from_secs(24 * 60 * 60),
            call_timeout: Duration::from_secs(1),
            tls: None,
            user: None,
        })
    }

    /// Sets the prefix of all keys; `spawn-gate` by default. The user needs the right to read and write all keys that begin with it.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// Sets for how long a lock holds without a renewal; 10 s by default. It is renewed each third of that. After a holder was
    /// killed, its lock is free after that time. Whole seconds; etcd raises it to its own minimum (some 2 s by default).
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.0.expires_in = time;
        self
    }

    /// Sets for how long the record of a key is kept after its last charge; a day by default. It must be longer than the budget's
    /// window: an older charge is forgotten.
    pub fn kept_for(mut self, time: Duration) -> Self {
        self.0.kept_for = time;
        self
    }

    /// Sets the limit of one call at one member; 1 s by default. The next member is asked after that.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.0.call_timeout = limit;
        self
    }

    /// Sets how to speak TLS with endpoints that begin with `https://`.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.0.tls = Some(tls);
        self
    }

    /// Sets the user and its password. An expired token is replaced by itself.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.user = Some((name.into(), password.into()));
        self
    }

    /// Checks the settings and starts the thread of the lock. Connects to nothing yet; see [`EtcdSpawnLock::check`].
    ///
    /// # Errors
    ///
    /// If a setting cannot be used, or the thread cannot be started.
    pub fn build(self) -> Result<EtcdSpawnLock, EtcdError> {
        Ok(EtcdSpawnLock {
            core: Core::start(self.0)?,
        })
    }
}

/// Passwords are not shown, not even those in an endpoint that is invalid for it.
impl fmt::Debug for EtcdSpawnLockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.0.endpoints.iter().map(|url| redacted(url)).collect();
        f.debug_struct("EtcdSpawnLockBuilder")
            .field("endpoints", &endpoints)
            .field("prefix", &self.0.prefix)
            .finish_non_exhaustive()
    }
}
