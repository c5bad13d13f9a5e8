//! The module `process` on real processes: launching, finding and ending backends. This test binary starts itself again as
//! backends and as callers.
#![cfg(all(unix, feature = "process"))]

mod attached;
mod backends;
mod bad_input;
mod detached;
mod end;
mod ended;
mod find;
mod given_up;
mod idle;
mod kit;
mod late;
mod life;
mod read_only;
mod ready;
mod roles;
mod scenes;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    if let Ok(role) = std::env::var(kit::ROLE) {
        roles::play(&role);
        backends::play(&role);
    }
}
