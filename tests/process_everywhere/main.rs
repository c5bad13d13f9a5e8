//! The promises of the module `process` that hold on every system, on real processes. This test binary starts itself again as backends
//! and as callers. The tests in `process` go further, on Unix.
#![cfg(feature = "process")]

mod children;
mod ends;
mod kit;
mod launches;
#[path = "../system/mod.rs"]
mod system;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    if let Ok(role) = std::env::var(kit::ROLE) {
        children::play(&role);
        std::process::exit(0);
    }
}
