//! The module `process` on real processes: launching, finding and ending backends. This test binary starts itself again as
//! backends and as callers.
#![cfg(all(unix, feature = "process"))]

mod end;
mod find;
mod idle;
mod kit;
mod late;
mod launch;
mod life;
mod read_only;
mod roles;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    if let Ok(role) = std::env::var(kit::ROLE) {
        launch::play(&role);
        roles::play(&role);
    }
}
