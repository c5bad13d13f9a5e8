//! The examples that users copy, `cli_daemon` and `broker`, as processes of their own.
#![cfg(feature = "process")]
#![cfg_attr(windows, expect(dead_code, reason = "some tests are for Unix"))]

#[cfg(unix)]
mod broker;
mod cli_daemon;
#[cfg(all(unix, feature = "tracing"))]
mod pictures;
#[path = "../system/mod.rs"]
mod system;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Long enough for any step on a busy machine. A test that runs into it has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// The program of an example, built like this test.
fn example(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let tests = std::env::current_exe().unwrap();
    let build = tests.parent().and_then(|deps| deps.parent()).unwrap();
    let program = build
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    // Cargo builds the examples for a run of all tests only. Where the tests run on another system than cargo, they are built before.
    if cfg!(unix) || !program.exists() {
        BUILT.call_once(|| {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
                "build",
                "--quiet",
                "--example=cli_daemon",
                "--example=broker",
                match cfg!(feature = "tracing") {
                    true => "--features=process,tracing",
                    false => "--features=process",
                },
            ]);
            assert!(cargo.status().unwrap().success());
        });
    }
    program
}

/// Polls for what another process does. It ends the test if that takes too long, and asserts no time otherwise.
async fn eventually(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait)
        .await
        .expect("it did not happen in time");
}
