//! The rest of the promises, on clusters of three members that are killed, hung, or cut off. They take some minutes, so they run on
//! demand: `cargo test --test cluster -- --ignored --test-threads=1`. Those with networks of their own need root.
#![cfg(target_os = "linux")]

#[path = "../core/roles.rs"]
mod roles;
#[path = "../support/mod.rs"]
mod support;

mod members;
mod partition;
mod soak;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    if let Ok(role) = std::env::var(support::host::ROLE) {
        roles::play(&role);
    }
}
