//! The examples that users copy, `cli_daemon` and `broker`, as processes of their own.
#![cfg(all(unix, feature = "process"))]

mod broker;
mod cli_daemon;
#[cfg(feature = "tracing")]
mod pictures;

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
    // Cargo builds the examples for a run of all tests only.
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
    let tests = std::env::current_exe().unwrap();
    let build = tests.parent().and_then(|deps| deps.parent()).unwrap();
    build.join("examples").join(name)
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

fn lives(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit_once(')')
            .unwrap()
            .1
            .trim_start()
            .starts_with('Z'),
        Err(_) => false,
    }
}
