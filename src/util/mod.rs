//! Helpers that know nothing about gates.

mod at_most_a_year;
mod catch_panic;
mod digits;
mod error_chain;
mod lazy_timeout;
mod off_thread;
mod shard;

pub(crate) use self::at_most_a_year::at_most_a_year;
pub(crate) use self::catch_panic::{CatchPanic, caught};
pub(crate) use self::digits::{hex, last_digit, push_decimal};
pub(crate) use self::error_chain::{chain, write_with_sources};
pub(crate) use self::lazy_timeout::{lazy_timeout, lazy_timeout_with_notice};
pub(crate) use self::off_thread::{NotMade, off_thread, off_thread_again};
pub(crate) use self::shard::shard_index;
