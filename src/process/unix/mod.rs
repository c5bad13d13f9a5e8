//! What the module `process` asks of a Unix system.
//!
//! - `files`: opening and replacing files.
//! - `identity`: processes and signals.
//! - `holder`: which process holds the lock for a backend's life; `life`: that lock.
//! - `use_lock`: the lock that callers share.
//! - `notify`: the notify protocol.
//! - `spawn`: starting a process, and ending one with its group.
//! - `requests`: how a backend learns that it is to end.

mod files;
mod holder;
mod identity;
mod life;
mod notify;
mod requests;
mod spawn;
mod use_lock;

pub(super) use self::files::{
    Alone, open, path_bytes, path_of_bytes, rename, truncate, write_all_at,
};
pub(super) use self::holder::{KNOWS_HOLDERS, holder_of, holds};
pub(super) use self::identity::Group;
pub(super) use self::life::{LifeLock, identity_of, is_inherited, name_file};
pub(super) use self::notify::{Notifications, send};
pub(super) use self::requests::{READS_REQUESTS, Requests};
pub(super) use self::spawn::{Started, close_inherited, is_orderly};
pub(super) use self::use_lock::UseLock;
