//! What the module `process` asks of Windows.
//!
//! A file lock of Windows belongs to a process and cannot be inherited. An open file can: the locks here are files that are opened so
//! that nobody else can open them for writing.
//!
//! - `files`: opening and replacing files.
//! - `identity`: processes, and ending them.
//! - `life`: the lock for a backend's life, and `use_lock`: the lock that callers share.
//! - `notify`: what a starting backend says.
//! - `handles`: the standard handles of this process; `spawn`: starting a process, and ending one with those that it started.
//! - `requests`: how a backend learns that it is to end.

mod files;
mod handles;
mod identity;
mod life;
mod notify;
mod requests;
mod spawn;
mod use_lock;

pub(super) use self::files::{
    Alone, open, path_bytes, path_of_bytes, rename, truncate, write_all_at,
};
pub(super) use self::identity::{Group, KNOWS_HOLDERS, holder_of, holds};
pub(super) use self::life::{LifeLock, identity_of, is_inherited, name_file};
pub(super) use self::notify::{Notifications, send};
pub(super) use self::requests::{READS_REQUESTS, Requests};
pub(super) use self::spawn::{Started, close_inherited, is_orderly};
pub(super) use self::use_lock::UseLock;
