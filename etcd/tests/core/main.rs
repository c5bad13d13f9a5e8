//! The core of the promises, on one real etcd: what CI runs. This test binary starts itself again as hosts.
#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod budgets;
mod cancelled;
mod holders;
mod inspect;
mod launches;
mod losses;
mod registration;
mod restore;
mod roles;
mod tls;
mod users;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    if let Ok(role) = std::env::var(support::host::ROLE) {
        roles::play(&role);
    }
}
