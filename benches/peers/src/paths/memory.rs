//! What keys take that failed once: see `src/bin/memory.rs`, which this runs.

use std::process::Command;

/// What the keys of one contender take.
#[derive(Debug)]
pub struct Memory {
    /// The contender.
    pub name: String,
    /// Bytes a key while in its window.
    pub in_window: u64,
    /// Bytes of all keys once they are idle.
    pub left: u64,
}

/// Measures it.
///
/// # Panics
///
/// If the other program cannot be built and run.
pub fn memory() -> Vec<Memory> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["run", "--release", "--quiet", "--bin", "memory"]);
    let output = command.args(["--manifest-path", manifest]).output();
    let output = output.expect("cargo is there");
    let lines = String::from_utf8(output.stdout).expect("it prints text");
    let measured: Vec<Memory> = lines.lines().filter_map(parse).collect();
    assert!(!measured.is_empty(), "it prints what it measured");
    measured
}

fn parse(line: &str) -> Option<Memory> {
    let mut words = line.splitn(3, ' ');
    Some(Memory {
        in_window: words.next()?.parse().ok()?,
        left: words.next()?.parse().ok()?,
        name: words.next()?.to_owned(),
    })
}
