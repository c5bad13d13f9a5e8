//! Reads arbitrary bytes as a lock file, and as a ledger's text: `cargo +nightly fuzz run ledger`.
#![no_main]

use std::cell::OnceCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use spawn_gate::admin::{Ledger, inspect_spawn_lock};
use tempfile::TempDir;

thread_local! {
    static DIRECTORY: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ledger) = String::from_utf8_lossy(bytes).parse::<Ledger>() {
        // What was read once is written and read again the same.
        let text = ledger.to_string();
        let again: Ledger = text.parse().expect("a ledger's own text");
        assert_eq!(again.to_string(), text);
    }
    DIRECTORY.with(|directory| {
        let directory = directory.get_or_init(|| tempfile::tempdir().expect("a directory"));
        let path = directory.path().join("backend.lock");
        fs::write(&path, bytes).expect("a file");
        let _ = inspect_spawn_lock(&path);
    });
});
