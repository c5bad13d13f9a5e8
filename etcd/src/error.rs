//! What can go wrong with etcd: one variant per cause, with whether a retry helps.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::lock::SpawnLockError;
use tonic::{Code, Status};

/// Why etcd could not be used.
///
/// It is the source of a [`SpawnLockError::Service`]. [`retry_helps`](Self::retry_helps) tells the causes that pass by themselves
/// from those that somebody must fix.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No endpoint is given. A retry does not help.
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    /// An endpoint is no URL such as `http://10.0.0.1:2379`. A retry does not help.
    #[error("{endpoint:?} is no endpoint of etcd: {problem}")]
    InvalidEndpoint {
        /// The endpoint as it was given, without user and password.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A setting cannot be used. A retry does not help.
    #[error("invalid {setting}: {problem}")]
    InvalidSetting {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A member of the cluster could not be reached, or closed the connection. A retry helps once it can.
    #[error("cannot reach etcd at {endpoint}: {problem}")]
    Unreachable {
        /// The endpoint that was tried last.
        endpoint: String,
        /// The transport's error.
        problem: String,
    },
    /// A member takes connections and closes them, and has never answered. It is about to end or to start; or one side speaks TLS and
    /// the other does not; or it refuses the client's certificate. A retry helps in the first case.
    #[error(
        "etcd at {endpoint} closes connections before any answer ({problem}): check that both sides speak TLS, and the client's certificate"
    )]
    Closed {
        /// The endpoint.
        endpoint: String,
        /// The transport's error.
        problem: String,
    },
    /// The cluster has no quorum, or elects a leader at the moment. A retry helps once it has one.
    #[error("etcd at {endpoint} has no quorum: {problem}")]
    NoQuorum {
        /// The endpoint that said so.
        endpoint: String,
        /// What it said.
        problem: String,
    },
    /// No member answered in time: they hang, or are cut off. A retry helps once they answer again.
    #[error("etcd did not answer within {after:?}, last tried at {endpoint}")]
    Unresponsive {
        /// The endpoint that was tried last.
        endpoint: String,
        /// The limit of the call.
        after: Duration,
    },
    /// The cluster has too much to do. A retry helps.
    #[error("etcd at {endpoint} is overloaded: {problem}")]
    Overloaded {
        /// The endpoint that said so.
        endpoint: String,
        /// What it said.
        problem: String,
    },
    /// The user or the password is wrong or missing. A retry does not help.
    #[error("etcd does not know this user: {problem}")]
    Unauthenticated {
        /// What etcd said.
        problem: String,
    },
    /// The user may not read and write the keys under the prefix. A retry does not help.
    #[error("etcd denies access to the keys: {problem}")]
    PermissionDenied {
        /// What etcd said.
        problem: String,
    },
    /// The server's certificate is not accepted here, or the client's is not accepted there, or the server does not speak TLS. A
    /// retry does not help.
    #[error("TLS with etcd at {endpoint} failed: {problem}")]
    Tls {
        /// The endpoint.
        endpoint: String,
        /// What is wrong.
        problem: String,
    },
    /// The endpoints belong to different clusters, or a cluster was replaced while in use. A retry does not help.
    #[error("etcd at {endpoint} is of cluster {found:x}, not of {expected:x}")]
    WrongCluster {
        /// The endpoint.
        endpoint: String,
        /// The cluster of the first answer.
        expected: u64,
        /// The cluster of this one.
        found: u64,
    },
    /// The cluster's revision is smaller than this process has seen: it was restored from a backup. Fencing tokens would repeat. A
    /// retry does not help; see the documentation of this crate.
    #[error("etcd went back from revision {seen} to {found}: it was restored from a backup")]
    WentBack {
        /// The newest revision that this process has seen.
        seen: i64,
        /// The revision now.
        found: i64,
    },
    /// The revision that was asked for is compacted. A retry helps: it begins at the present.
    #[error("the revision was compacted away in etcd")]
    Compacted,
    /// A key under the prefix was written by another program. Nothing is changed there. A retry does not help; choose another prefix.
    #[error("the key {key} in etcd was not written by spawn-gate")]
    Foreign {
        /// The key.
        key: String,
    },
    /// A record was written by a newer version of this crate. A retry does not help; update this program.
    #[error("the key {key} in etcd has version {found}, this program knows {supported}")]
    Version {
        /// The key.
        key: String,
        /// The record's version.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// The cluster's database is full (NOSPACE). A retry helps once somebody has freed space and disarmed the alarm, so the gate
    /// does not wait for that.
    #[error("the database of etcd is full: {problem}")]
    QuotaExceeded {
        /// What etcd said.
        problem: String,
    },
    /// The record was changed by another program while its lock was held. Nothing is written then. A retry helps: it reads the record
    /// anew.
    #[error("the record of {key} in etcd was changed by another program while its lock was held")]
    RecordChanged {
        /// The key.
        key: String,
    },
    /// The lease expired or was revoked. A retry helps: it takes the lock again.
    #[error("the lease {lease:x} is gone")]
    LeaseGone {
        /// The lease's id.
        lease: i64,
    },
    /// Etcd refused the call for another reason. A retry does not help.
    #[error("etcd refused the call ({code:?}): {problem}")]
    Refused {
        /// The status code.
        code: Code,
        /// What it said.
        problem: String,
    },
    /// The thread for the connections could not be started. A retry helps once other threads have ended.
    #[error("cannot start the thread for etcd")]
    NoThread {
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// The thread for the connections has ended or the call panicked. A retry does not help.
    #[error("the call of etcd was cut short: {problem}")]
    CutShort {
        /// What happened.
        problem: String,
    },
}

impl EtcdError {
    /// Returns whether the same call can succeed later without a fix.
    pub fn retry_helps(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Closed { .. }
                | Self::NoQuorum { .. }
                | Self::Unresponsive { .. }
                | Self::Overloaded { .. }
                | Self::Compacted
                | Self::RecordChanged { .. }
                | Self::LeaseGone { .. }
                | Self::NoThread { .. }
        )
    }

    /// Whether another member may answer where this one did not.
    pub(crate) fn is_of_endpoint(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::WrongCluster { .. })
    }

    /// How much it says about the cluster, to choose among the errors of several members.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 0,
            Self::Unresponsive { .. } => 1,
            Self::Closed { .. } => 2,
            Self::NoQuorum { .. } | Self::Overloaded { .. } => 3,
            // What somebody must fix.
            _ => 4,
        }
    }

    /// The error of a lock. A lost lease is told as such.
    pub(crate) fn into_lock_error(self, lock: &str) -> SpawnLockError {
        match self {
            Self::LeaseGone { .. } => SpawnLockError::LeaseLost {
                lock: lock.to_owned(),
                source: Some(Box::new(self)),
            },
            _ => SpawnLockError::Service {
                lock: lock.to_owned(),
                retry_helps: self.retry_helps(),
                source: Box::new(self),
            },
        }
    }

    /// What the status of a call means.
    pub(crate) fn from_status(status: &Status, endpoint: &str) -> Self {
        let endpoint = endpoint.to_owned();
        if let Some(problem) = tls_problem(status) {
            return Self::Tls { endpoint, problem };
        }
        let problem = status.message().to_owned();
        let says = |text: &str| problem.contains(text);
        match status.code() {
            Code::Unavailable if says("etcdserver: ") => Self::NoQuorum { endpoint, problem },
            Code::DeadlineExceeded => Self::NoQuorum { endpoint, problem },
            Code::Unknown if says("context deadline exceeded") => {
                Self::NoQuorum { endpoint, problem }
            }
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => {
                let problem = chain(status);
                Self::Unreachable { endpoint, problem }
            }
            Code::Unauthenticated => Self::Unauthenticated { problem },
            Code::InvalidArgument | Code::FailedPrecondition
                if says("authentication failed") || says("user name") || says("auth store") =>
            {
                Self::Unauthenticated { problem }
            }
            Code::PermissionDenied => Self::PermissionDenied { problem },
            Code::ResourceExhausted if says("space") => Self::QuotaExceeded { problem },
            Code::ResourceExhausted => Self::Overloaded { endpoint, problem },
            Code::OutOfRange if says("compacted") => Self::Compacted,
            Code::NotFound if says("lease not found") => Self::LeaseGone { lease: 0 },
            code => Self::Refused { code, problem },
        }
    }
}

/// Whether a lease with this id exists already: an earlier try of the same call made it.
pub(crate) fn says_lease_exists(error: &EtcdError) -> bool {
    matches!(error, EtcdError::Refused { problem, .. } if problem.contains("lease already exists"))
}

/// Errors of TLS are deep in the source chain, inside of an [`io::Error`].
fn tls_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = inner.or_else(|| error.downcast_ref()) {
            return Some(tls.to_string());
        }
        next = error.source();
    }
    None
}

/// The causes of an error, from the outside to the inside.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if causes.last() != Some(&cause) {
            causes.push(cause);
        }
        next = error.source();
    }
    match causes.is_empty() {
        true => error.to_string(),
        false => causes.join(": "),
    }
}
